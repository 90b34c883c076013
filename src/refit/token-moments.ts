import type { TensorSource } from "../checkpoint/index.js";
import { rowCount, tensorInfo } from "../checkpoint/tensor-source.js";
import type { Backend } from "../ggml/device.js";
import type { Matrix } from "../linear-algebra/index.js";
import { Gram } from "../prune/gram.js";
import { Graph } from "../tensor/index.js";
import { ROWS, readBlocks } from "./matrix-rows.js";

/** Second moments of a model's token embeddings, [hidden, hidden]. */
export interface TokenMoments {
  /** EᵀE. */
  readonly gram: Matrix;
  /** The same of the embeddings less their mean: (E - 1μᵀ)ᵀ E. */
  readonly centred: Matrix;
}

/** @param name of the embedding matrix */
export async function tokenMoments(backend: Backend, source: TensorSource, name: string): Promise<TokenMoments> {
  const info = tensorInfo(source, name);
  const [tokens, hidden] = [rowCount(info), info.shape[1] as number];
  const sums = new Gram(backend, `the second moments of ${name}`, hidden);
  const total = new Float64Array(hidden);
  // products of numbers that are bf16 already are exact in bf16, but not where the kernels multiply integers instead
  const isExact = info.dtype === "bf16" && backend.kernels?.multipliesIntegers !== true;
  const g = new Graph(backend, { computeType: isExact ? "bf16" : "f32" });
  try {
    const rows = g.input("rows", "f32", [ROWS, hidden]);
    sums.add(g, rows);
    for (const block of readBlocks(source, name)) {
      for (let i = 0; i < block.length; i++) total[i % hidden] = (total[i % hidden] as number) + (block[i] as number);
      const padded = new Float32Array(ROWS * hidden);
      padded.set(block);
      g.write(rows, padded);
      await g.run();
    }
    const gram: Matrix = sums.matrix();
    const centred = gram.data.map(
      (value, i) => value - ((total[Math.floor(i / hidden)] as number) * (total[i % hidden] as number)) / tokens,
    );
    return { gram, centred: { ...gram, data: centred } };
  } finally {
    g.free();
    sums.free();
  }
}
