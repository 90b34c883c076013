import { createContext, Script } from "node:vm";

/** What clients and models bring along (templates, schemas) may take for ever; real ones take a few milliseconds. */
export const MOST_MILLISECONDS = 1000;

const limited = createContext({ work: undefined as (() => unknown) | undefined });
const script = new Script("work()");

/** The error is of the script's own context, and so no instance of this one's class. */
const isTimeout = (error: unknown): boolean =>
  (error as { readonly code?: unknown } | null)?.code === "ERR_SCRIPT_EXECUTION_TIMEOUT";

/** Runs something that does not wait, and ends it where it takes too long, regular expressions included. @throws what `tooSlow` gives, then */
export function withinTime<T>(work: () => T, tooSlow: () => Error): T {
  limited.work = work;
  try {
    return script.runInContext(limited, { timeout: MOST_MILLISECONDS }) as T;
  } catch (error) {
    throw isTimeout(error) ? tooSlow() : error;
  } finally {
    limited.work = undefined;
  }
}
