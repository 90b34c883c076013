import type { HubOptions } from "../checkpoint/index.js";
import { Backend, type BackendOptions } from "../ggml/index.js";
import type { Ranks } from "../ranks/index.js";
import type { Invocation } from "./invocation.js";

/** Progress of something that takes a while. */
export interface ProgressEvent {
  /** What is being done, for example `distill`. */
  readonly stage: string;
  readonly done: number;
  readonly total: number;
  readonly unit:
    | "tokens"
    | "bytes"
    | "sequences"
    | "candidates"
    | "steps"
    | "tensors"
    | "files"
    | "requests"
    | "tasks"
    | "programs"
    | "comparisons";
  /** A short remark, for example the current loss. */
  readonly detail?: string | undefined;
}

/** Options of every job. */
export interface JobOptions extends BackendOptions {
  readonly hub?: HubOptions | undefined;
  /** Memory for a model's weights and activations; a larger model is read layer by layer. By default what is free. */
  readonly memoryBytes?: number | undefined;
  readonly onProgress?: ((event: ProgressEvent) => void) | undefined;
  /** Called with what the user should know although the job continues. */
  readonly onNote?: ((note: string) => void) | undefined;
  /** Stops the job as soon as its state is safe. */
  readonly signal?: AbortSignal | undefined;
  /** Processes that share the job's training, started by MPI; this is their leader. */
  readonly ranks?: Ranks | undefined;
  /** The command line that started the job, for the record of a run. */
  readonly invocation?: Invocation | undefined;
}

/** Runs a job on a device, and frees the device afterwards. */
export async function onDevice<T>(
  options: BackendOptions & Pick<JobOptions, "ranks">,
  job: (backend: Backend) => Promise<T>,
): Promise<T> {
  const backend = Backend.open({ ...options, instance: options.ranks?.local.rank ?? options.instance });
  try {
    return await job(backend);
  } finally {
    backend.free();
  }
}
