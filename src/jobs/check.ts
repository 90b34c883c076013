import { checkDevice } from "../check/check.js";
import type { Comparison } from "../check/compare.js";
import { deviceChoice } from "../ggml/index.js";
import { type Diagnosis, diagnose } from "./diagnosis.js";
import type { JobOptions } from "./job.js";

export interface CheckJob extends JobOptions {
  /** Leaves out comparisons whose names do not match. */
  readonly only?: RegExp | undefined;
}

export interface CheckOutcome {
  readonly machine: Diagnosis;
  /** Of every op and of training. */
  readonly comparisons: readonly Comparison[];
  readonly seconds: number;
}

/**
 * Compares what a device computes with what the processor computes without our kernels: every op with its gradients, and the losses
 * along a few steps of training.
 * @example
 * ```ts
 * import { check } from "coppice";
 *
 * const { comparisons } = await check({ device: "cuda" });
 * console.log(comparisons.filter(({ isClose, isRefused }) => !isClose && !isRefused)); // none, on a device that can be trusted
 * ```
 */
export async function check(job: CheckJob = {}): Promise<CheckOutcome> {
  const started = performance.now();
  const machine = await diagnose(job);
  const { only, signal, onProgress } = job;
  const comparisons = await checkDevice({
    ...deviceChoice(job),
    only,
    signal,
    onProgress: (done, total, detail) => onProgress?.({ stage: "check", done, total, unit: "comparisons", detail }),
  });
  return { machine, comparisons, seconds: (performance.now() - started) / 1000 };
}
