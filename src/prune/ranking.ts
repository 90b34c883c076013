import { perplexity } from "../evaluate/index.js";
import { loadWeights, type ModelTensors } from "../models/index.js";
import type { ComputeType } from "../tensor/index.js";
import { type Candidate, mostPromising } from "./candidates.js";
import { layerOrder, type RankingInputs } from "./depth.js";
import type { DepthMethod } from "./depth-methods.js";
import { keptIndices, type PrunePlan, planFor } from "./plan.js";
import { largestOf } from "./sizes.js";
import { type PrunedModel, prune } from "./surgery.js";

/** A candidate that was measured. */
export interface RankedCandidate extends Candidate {
  readonly plan: PrunePlan;
  /** Mean nats per token on the validation data, as pruned. */
  readonly loss: number;
  /** The same after a short distillation, if there was one. */
  readonly distilledLoss?: number | undefined;
}

export interface SearchOptions {
  /** How many candidates are measured at most: those that keep most importance. */
  readonly maxCandidates: number;
  readonly depthMethod: DepthMethod;
  readonly computeType: ComputeType;
  readonly sequenceLength: number;
  /** Validation sequences to measure each candidate on. */
  readonly maxSequences: number;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  /** Distills a candidate briefly and returns its validation loss, by which the best candidates are ranked again. */
  readonly distill?: ((pruned: PrunedModel) => Promise<number>) | undefined;
  /** How many candidates are distilled; 4 by default. */
  readonly distilled?: number | undefined;
}

const DEFAULT_DISTILLED = 4;

/**
 * Ranks candidates by validation loss as pruned, and the best of them again after a short distillation, because the order
 * before it is not the order after it (arXiv 2407.14679, section 2.3).
 * @returns best first
 */
export async function rankCandidates(
  inputs: RankingInputs & { readonly original: ModelTensors },
  candidates: readonly Candidate[],
  options: SearchOptions,
): Promise<RankedCandidate[]> {
  const { original, scores } = inputs;
  const { model } = original;
  const byInfluence = [...(scores.get("layers") ?? [])].map((_, i) => i);
  const promising = mostPromising(model, candidates, scores, byInfluence, options.maxCandidates);
  const cut = (plan: PrunePlan) => prune(original, plan, keptIndices(model, plan, scores));
  const orderFor = cachedLayerOrder(inputs, options);
  const ranked: RankedCandidate[] = [];
  for (const candidate of promising) {
    const plan = planFor(model, candidate.sizes, await orderFor(largestOf(candidate.sizes.layers)));
    ranked.push({ ...candidate, plan, loss: await lossOf(cut(plan), inputs, options) });
    options.onProgress?.(ranked.length, promising.length);
  }
  ranked.sort((a, b) => a.loss - b.loss);
  if (options.distill === undefined) return ranked;
  const distilled: (RankedCandidate & { readonly distilledLoss: number })[] = [];
  for (const candidate of ranked.splice(0, options.distilled ?? DEFAULT_DISTILLED))
    distilled.push({ ...candidate, distilledLoss: await options.distill(cut(candidate.plan)) });
  distilled.sort((a, b) => a.distilledLoss - b.distilledLoss);
  return [...distilled, ...ranked];
}

/** The layer order for a number of layers that stay, measured once for each number. */
function cachedLayerOrder(inputs: RankingInputs, options: SearchOptions): (layers: number) => Promise<number[]> {
  const { depthMethod: method, computeType, sequenceLength, maxSequences } = options;
  const orders = new Map<number, number[]>();
  return async (layers) => {
    const cut = inputs.weights.model.layerCount - layers;
    const known = orders.get(cut);
    if (known !== undefined) return known;
    const order = await layerOrder(inputs, cut, { method, computeType, sequenceLength, maxSequences });
    orders.set(cut, order);
    return order;
  };
}

async function lossOf(
  pruned: PrunedModel,
  { backend, validation }: RankingInputs,
  { computeType, sequenceLength, maxSequences }: SearchOptions,
): Promise<number> {
  const weights = loadWeights(backend, pruned.model, pruned.source, { dtype: "bf16", trainable: false });
  try {
    const options = { computeType, sequenceLength, maxSequences };
    return (await perplexity(backend, weights, validation, options)).loss;
  } finally {
    weights.free();
  }
}
