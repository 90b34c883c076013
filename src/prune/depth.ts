import type { TokenStream } from "../data/index.js";
import { perplexity } from "../evaluate/index.js";
import type { Backend } from "../ggml/device.js";
import type { PassWeights } from "../models/index.js";
import type { ComputeType } from "../tensor/index.js";
import type { DepthMethod } from "./depth-methods.js";
import type { Scores } from "./scores.js";

/** What layers and candidates are ranked by. */
export interface RankingInputs {
  readonly backend: Backend;
  /** Of the original. */
  readonly weights: PassWeights;
  readonly scores: Scores;
  readonly validation: TokenStream;
}

/** How to choose the layers to cut. */
export interface DepthOptions {
  readonly method: DepthMethod;
  readonly computeType: ComputeType;
  /** In tokens. */
  readonly sequenceLength: number;
  /** Validation sequences to measure each choice on. */
  readonly maxSequences: number;
}

/**
 * Orders the layers for cutting: the first `n` are the ones to cut when `n` are to go.
 * @param cut how many are to go; a contiguous run is chosen for exactly that number
 */
export async function layerOrder(inputs: RankingInputs, cut: number, options: DepthOptions): Promise<number[]> {
  const { backend, weights, scores, validation } = inputs;
  const all = Array.from({ length: weights.model.layerCount }, (_, i) => i);
  if (cut === 0) return all;
  const { method, computeType, sequenceLength, maxSequences } = options;
  const lossWithout = async (removed: readonly number[]): Promise<number> => {
    const layers = all.filter((layer) => !removed.includes(layer));
    const { loss } = await perplexity(backend, weights, validation, {
      computeType,
      sequenceLength,
      maxSequences,
      layers,
    });
    return loss;
  };
  if (method === "block-influence") return ascending([...(scores.get("layers") ?? [])]);
  if (method === "loss") {
    const losses: number[] = [];
    for (const layer of all) losses.push(await lossWithout([layer]));
    return ascending(losses);
  }
  let best: { readonly run: readonly number[]; readonly loss: number } | undefined;
  for (let first = 0; first + cut <= all.length; first++) {
    const run = all.slice(first, first + cut);
    const loss = await lossWithout(run);
    if (best === undefined || loss < best.loss) best = { run, loss };
  }
  const run = best?.run ?? [];
  return [...run, ...all.filter((layer) => !run.includes(layer))];
}

/** Indices in the order of their values; equal values in the order of their indices. */
export const ascending = (values: readonly number[]): number[] =>
  [...values.entries()].sort(([i, a], [j, b]) => a - b || i - j).map(([i]) => i);
