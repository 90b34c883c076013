import { useEffect, useState } from "preact/hooks";

/** What a request comes to, asked again when its dependencies change. */
export function useLoaded<T>(
  load: () => Promise<T>,
  dependencies: readonly unknown[],
): { value: T | undefined; error: string | undefined; reload: () => void } {
  const [state, setState] = useState<{ value?: T; error?: string }>({});
  const [round, setRound] = useState(0);
  useEffect(() => {
    let current = true;
    load().then(
      (value) => current && setState({ value }),
      (error: unknown) =>
        current && setState(({ value }) => ({ ...(value !== undefined && { value }), error: messageOf(error) })),
    );
    return () => {
      current = false;
    };
  }, [...dependencies, round]);
  return { value: state.value, error: state.error, reload: () => setRound((n) => n + 1) };
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
