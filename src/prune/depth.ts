import type { TokenStream } from "../data/index.js";
import { perplexity } from "../evaluate/index.js";
import type { Backend } from "../ggml/device.js";
import type { PassWeights } from "../models/index.js";
import { UsageError } from "../system/errors.js";
import type { KnownValues } from "../system/known-values.js";
import type { ComputeType } from "../tensor/index.js";
import type { DepthMethod } from "./depth-methods.js";
import { type PrunePlan, planWithLayers } from "./plan.js";
import type { Scores } from "./scores.js";

/** What layers and candidates are ranked by. */
export interface RankingInputs {
  readonly backend: Backend;
  /** Of the original. */
  readonly weights: PassWeights;
  readonly scores: Scores;
  readonly validation: TokenStream;
  /** Losses that were measured before. */
  readonly known?: KnownValues | undefined;
}

/** How to choose the layers to cut. */
export interface DepthOptions {
  readonly method: DepthMethod;
  readonly computeType: ComputeType;
  /** In tokens. */
  readonly sequenceLength: number;
  /** Validation sequences to measure each choice on. */
  readonly maxSequences: number;
  readonly signal?: AbortSignal | undefined;
  /** Of contiguous runs of layers, only those are cut that leave a model that will do, if there are such; any will by default. */
  readonly isPossible?: IsPossible | undefined;
}

/** Whether what a plan leaves of a model will do. */
export type IsPossible = (plan: PrunePlan) => boolean;

/**
 * Orders the layers for cutting: the first `n` are the ones to cut when `n` are to go.
 * @param cut how many are to go; a contiguous run is chosen for exactly that number
 */
export async function layerOrder(inputs: RankingInputs, cut: number, options: DepthOptions): Promise<number[]> {
  const { backend, weights, scores, validation, known } = inputs;
  const all = Array.from({ length: weights.model.layerCount }, (_, i) => i);
  if (cut === 0) return all;
  const { method, computeType, sequenceLength, maxSequences, signal, isPossible } = options;
  const without = (removed: readonly number[]) => all.filter((layer) => !removed.includes(layer));
  const lossWithout = async (removed: readonly number[]): Promise<number> => {
    const layers = without(removed);
    const measuring = { computeType, sequenceLength, maxSequences, layers, signal };
    const measure = async () => (await perplexity(backend, weights, validation, measuring)).loss;
    return known === undefined ? await measure() : await known.once(["loss without layers", removed], measure);
  };
  if (method === "block-influence") return ascending([...(scores.get("layers") ?? [])]);
  if (method === "loss") {
    const losses: number[] = [];
    for (const layer of all) losses.push(await lossWithout([layer]));
    return ascending(losses);
  }
  const runs = Array.from({ length: all.length - cut + 1 }, (_, first) => all.slice(first, first + cut));
  const possible = runs.filter((run) => {
    try {
      return isPossible?.(planWithLayers(weights.model, {}, without(run))) !== false;
    } catch (error) {
      if (error instanceof UsageError) return false; // no attention would be left, or no feed-forward network
      throw error;
    }
  });
  let best: { readonly run: readonly number[]; readonly loss: number } | undefined;
  for (const run of possible.length > 0 ? possible : runs) {
    const loss = await lossWithout(run);
    if (best === undefined || loss < best.loss) best = { run, loss };
  }
  const run = best?.run ?? [];
  return [...run, ...without(run)];
}

/** Indices in the order of their values; equal values in the order of their indices. */
export const ascending = (values: readonly number[]): number[] =>
  [...values.entries()].sort(([i, a], [j, b]) => a - b || i - j).map(([i]) => i);
