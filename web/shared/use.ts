import { useEffect, useState } from "preact/hooks";

/** The result of a request, which is sent again when the dependencies change. */
export function useLoaded<T>(
  load: () => Promise<T>,
  dependencies: readonly unknown[],
): { value: T | undefined; error: string | undefined; reload: () => void } {
  const [state, setState] = useState<{ value?: T | undefined; error?: string | undefined }>({});
  const [round, setRound] = useState(0);
  useEffect(() => {
    let isCurrent = true;
    load().then(
      (value) => isCurrent && setState({ value }),
      (error: unknown) => isCurrent && setState(({ value }) => ({ value, error: messageOf(error) })),
    );
    return () => {
      isCurrent = false;
    };
  }, [...dependencies, round]);
  return { value: state.value, error: state.error, reload: () => setRound((n) => n + 1) };
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
