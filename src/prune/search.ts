import type { TokenStream } from "../data/index.js";
import { perplexity } from "../evaluate/index.js";
import type { Backend } from "../ggml/device.js";
import { loadWeights, type ModelTensors, type ModelWeights } from "../models/index.js";
import type { ComputeType } from "../tensor/index.js";
import { type Candidate, mostPromising } from "./candidates.js";
import { layerOrder } from "./depth.js";
import type { DepthMethod } from "./depth-methods.js";
import type { Scores } from "./importance.js";
import { keptIndices, type PrunePlan, planFor } from "./plan.js";
import { largestOf } from "./sizes.js";
import { type PrunedModel, prune } from "./surgery.js";

/** A candidate with what was measured of it. */
export interface RankedCandidate extends Candidate {
  readonly plan: PrunePlan;
  /** Mean nats per token on the validation data, as pruned. */
  readonly loss: number;
  /** The same after a short distillation, where there was one. */
  readonly distilledLoss?: number | undefined;
}

export interface SearchOptions {
  /** At most so many candidates are measured: those that keep most importance. */
  readonly maxCandidates: number;
  readonly depthMethod: DepthMethod;
  readonly computeType: ComputeType;
  readonly sequenceLength: number;
  /** How much of the validation data each is measured on. */
  readonly maxSequences: number;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  /** Distils a candidate briefly and returns its validation loss; the best `distilled` candidates are ranked anew by it. */
  readonly distill?: ((pruned: PrunedModel) => Promise<number>) | undefined;
  readonly distilled?: number | undefined;
}

/**
 * Ranks candidates by validation loss as pruned, and the best of them again after a short distillation, because the order
 * before it is not the order after it (arXiv 2407.14679, section 2.3).
 * @returns best first
 */
export async function rankCandidates(
  backend: Backend,
  original: ModelTensors,
  weights: ModelWeights,
  candidates: readonly Candidate[],
  scores: Scores,
  validation: TokenStream,
  options: SearchOptions,
): Promise<RankedCandidate[]> {
  const { model } = original;
  const { computeType, sequenceLength, maxSequences } = options;
  const measuring = { computeType, sequenceLength, maxSequences };
  const orders = new Map<number, number[]>();
  const orderFor = async (layers: number): Promise<number[]> => {
    const cut = model.layerCount - layers;
    const known = orders.get(cut);
    if (known !== undefined) return known;
    const order = await layerOrder(backend, weights, validation, scores, cut, {
      ...measuring,
      method: options.depthMethod,
    });
    orders.set(cut, order);
    return order;
  };
  const byInfluence = [...(scores.get("layers") ?? [])].map((_, i) => i);
  const chosen = mostPromising(model, candidates, scores, byInfluence, options.maxCandidates);
  const ranked: RankedCandidate[] = [];
  for (const candidate of chosen) {
    const plan = planFor(model, candidate.sizes, await orderFor(largestOf(candidate.sizes.layers)));
    const pruned = prune(original, plan, keptIndices(model, plan, scores));
    const loaded = loadWeights(backend, pruned.model, pruned.source, { dtype: "bf16", trainable: false });
    try {
      const { loss } = await perplexity(backend, pruned.model, loaded, validation, measuring);
      ranked.push({ ...candidate, plan, loss });
    } finally {
      loaded.free();
    }
    options.onProgress?.(ranked.length, chosen.length);
  }
  ranked.sort((a, b) => a.loss - b.loss);
  if (options.distill === undefined) return ranked;
  const best = ranked.splice(0, options.distilled ?? 4);
  const distilled: RankedCandidate[] = [];
  for (const candidate of best) {
    const pruned = prune(original, candidate.plan, keptIndices(model, candidate.plan, scores));
    distilled.push({ ...candidate, distilledLoss: await options.distill(pruned) });
  }
  distilled.sort((a, b) => (a.distilledLoss ?? 0) - (b.distilledLoss ?? 0));
  return [...distilled, ...ranked];
}
