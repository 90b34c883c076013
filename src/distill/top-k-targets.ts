import { fromFloat32, toFloat32 } from "../ggml/convert.js";
import { bytesOf } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { ops } from "../tensor/index.js";
import { topKDivergence } from "./losses.js";
import type { SparseTargets, TargetValues } from "./sparse-targets.js";

export interface TopKOptions {
  readonly k: number;
  readonly temperature: number;
}

/** An id (i32) and a log-probability (f16). */
const ENTRY_BYTES = 6;

/** The teacher's k most probable tokens, with their log-probabilities. */
export function topKTargets({ k, temperature }: TopKOptions): SparseTargets {
  const functions = loadFunctions();
  return {
    slots: k,
    identity: ["top-k", k, temperature],
    expectedBytes: k * ENTRY_BYTES,
    divergence: "top-k",
    temperature,
    lossName: "divergence",
    declare: (g, logits) => {
      const logP = ops.logSoftmax(g, logits, { scale: 1 / temperature });
      const ids = g.output(ops.topKIndices(g, logP, { k }));
      const values = g.output(ops.takeAlongRows(g, logP, ids));
      return ({ length }) => ({
        ids: g.readInt32(ids).subarray(0, length * k),
        values: normalized(g.read(values).subarray(0, length * k), k),
      });
    },
    encode: ({ ids, values }) => {
      const entry = new Uint8Array(ids.length * ENTRY_BYTES);
      entry.set(bytesOf(ids));
      entry.set(fromFloat32(functions, values.slice(), "f16"), ids.length * 4);
      return entry;
    },
    decode: (entry, positions): TargetValues => {
      const count = positions * k;
      const values = toFloat32(functions, entry.subarray(count * 4), "f16");
      return { ids: new Int32Array(entry.buffer, entry.byteOffset, count), values: normalized(values, k) };
    },
    loss: (g, studentLogits, targets) => topKDivergence(g, studentLogits, targets, temperature),
  };
}

/** Scales rows whose probabilities sum to more than 1, by rounding, so that no negative probability is left for the rest. */
function normalized(logProbabilities: Float32Array, k: number): Float32Array {
  for (let row = 0; row < logProbabilities.length; row += k) {
    const values = logProbabilities.subarray(row, row + k);
    const total = values.reduce((sum, value) => sum + Math.exp(value), 0);
    if (total > 1) values.set(values.map((value) => value - Math.log(total)));
  }
  return logProbabilities;
}
