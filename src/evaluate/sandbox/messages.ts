/** What is asked of the process that runs programs. */
export interface ProgramMessage {
  readonly id: number;
  readonly program: string;
}

/** What it tells: that it is ready, or how a program ended. */
export type SupervisorMessage = { readonly ready: true } | { readonly id: number; readonly verdict: string };

/** What a worker is given. */
export interface WorkerData {
  /** Directory of Pyodide. */
  readonly pyodide: string;
  /** The interpreter, compiled once for all. */
  readonly compiled: object;
  /** Its memory just after it started. */
  readonly snapshot: Uint8Array;
  readonly program: string;
  readonly memoryBytes: number;
}

/** The verdict on a program that ended without an error. */
export const PASSED = "passed";
