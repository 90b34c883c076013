import type { TokenStream } from "../data/index.js";
import { perplexity } from "../evaluate/index.js";
import type { Backend } from "../ggml/device.js";
import type { ModelWeights } from "../models/index.js";
import type { ComputeType } from "../tensor/index.js";
import type { DepthMethod } from "./depth-methods.js";
import type { Scores } from "./importance.js";

export interface DepthOptions {
  readonly method: DepthMethod;
  readonly computeType: ComputeType;
  readonly sequenceLength: number;
  readonly maxSequences: number;
}

/**
 * Orders the layers: the first `n` are those to cut when `n` go.
 * @param cut how many are to go; a contiguous run is chosen for exactly so many
 */
export async function layerOrder(
  backend: Backend,
  weights: ModelWeights,
  validation: TokenStream,
  scores: Scores,
  cut: number,
  options: DepthOptions,
): Promise<number[]> {
  const all = Array.from({ length: weights.model.layerCount }, (_, i) => i);
  if (cut === 0) return all;
  const { computeType, sequenceLength, maxSequences } = options;
  const lossWithout = async (removed: readonly number[]): Promise<number> => {
    const layers = all.filter((layer) => !removed.includes(layer));
    const { loss } = await perplexity(backend, weights.model, weights, validation, {
      computeType,
      sequenceLength,
      maxSequences,
      forward: { layers },
    });
    return loss;
  };
  const ordered = (costs: readonly number[]) => [...all].sort((a, b) => (costs[a] ?? 0) - (costs[b] ?? 0) || a - b);
  if (options.method === "block-influence") return ordered([...(scores.get("layers") ?? [])]);
  if (options.method === "loss") {
    const costs: number[] = [];
    for (const layer of all) costs.push(await lossWithout([layer]));
    return ordered(costs);
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
