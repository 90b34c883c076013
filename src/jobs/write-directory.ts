import { tensorBytes } from "../checkpoint/index.js";
import type { FloatDType } from "../ggml/index.js";
import { type ModelTensors, storedSource, writeModel } from "../models/index.js";
import type { JobOptions } from "./job.js";

/** How to write a model directory. */
export interface WriteJob extends JobOptions {
  readonly out: string;
  readonly dtype?: FloatDType | undefined;
  readonly shardBytes?: number | undefined;
  /** The path of each file by its name, as for `writeCheckpoint`. */
  readonly place?: ((name: string) => string) | undefined;
}

/** Writes a model directory, with progress. @param from the directory whose tokenizer, settings and license are copied */
export function writeDirectory(tensors: ModelTensors, from: string, job: WriteJob, stage: string): void {
  const { out, dtype, shardBytes, place, onNote } = job;
  const stored = [...storedSource(tensors).tensors.values()];
  const total = stored.reduce((sum, info) => sum + tensorBytes({ ...info, dtype: dtype ?? info.dtype }), 0);
  let done = 0;
  writeModel(out, tensors, {
    carryFrom: from,
    place,
    onNote,
    dtype,
    shardBytes,
    onBytes: (count) => {
      done += count;
      job.onProgress?.({ stage, done, total, unit: "bytes" });
    },
  });
}
