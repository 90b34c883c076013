/** Asks the supervisor process to run a program. */
export interface ProgramMessage {
  readonly id: number;
  readonly program: string;
}

/** The supervisor's messages: that it is ready, or how a program ended. */
export type SupervisorMessage = { readonly ready: true } | { readonly id: number; readonly verdict: string };

/** Data for a worker thread. */
export interface WorkerData {
  /** Pyodide's directory. */
  readonly pyodide: string;
  /** The interpreter, compiled once for all workers. */
  readonly compiled: object;
  /** The interpreter's memory just after its start. */
  readonly snapshot: Uint8Array;
  readonly program: string;
  readonly memoryBytes: number;
}

/** What a worker says when its interpreter has started. */
export const BEGUN = "begun";

/** The verdict on programs that end without an error. */
export const PASSED = "passed";
