import { perplexity } from "../evaluate/index.js";
import { type Model, type ModelTensors, openWeights } from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import type { ComputeType } from "../tensor/index.js";
import { type CandidateLosses, rankingLoss } from "./candidate-losses.js";
import { type Candidate, cutAxes, mostPromising } from "./candidates.js";
import { layerOrder, type RankingInputs } from "./depth.js";
import type { DepthMethod } from "./depth-methods.js";
import { keptIndices, type PrunePlan, planFor } from "./plan.js";
import { largestOf } from "./sizes.js";
import { type PrunedModel, prune } from "./surgery.js";

/** A candidate that was measured. */
export interface RankedCandidate extends Candidate, CandidateLosses {
  readonly plan: PrunePlan;
}

/** A costlier measurement, by which the best candidates so far are ranked again. */
export interface Reranking {
  readonly measure: "refittedLoss" | "distilledLoss";
  /** How many candidates are measured. */
  readonly candidates: number;
  readonly lossOf: (candidate: RankedCandidate) => Promise<number>;
}

/** How a candidate is measured. */
export interface MeasuringOptions {
  readonly computeType: ComputeType;
  readonly sequenceLength: number;
  /** Validation sequences to measure each candidate on. */
  readonly maxSequences: number;
  /** Candidates that are larger are read layer by layer. */
  readonly memoryBytes?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface SearchOptions extends MeasuringOptions {
  /** How many candidates are measured at most: those that keep most importance. */
  readonly maxCandidates: number;
  readonly depthMethod: DepthMethod;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  /** Measures plans, where several processes share that; one after the other by default. */
  readonly measureAll?: MeasureAll | undefined;
  /** Costlier measurements, each of fewer candidates (successive halving, arXiv 1502.07943). */
  readonly rerankings?: readonly Reranking[] | undefined;
}

/** Measures the loss of each plan. @param lossOf measures one in this process */
export type MeasureAll = (
  plans: readonly PrunePlan[],
  lossOf: (plan: PrunePlan) => Promise<number>,
) => Promise<readonly number[]>;

const oneByOne: MeasureAll = async (plans, lossOf) => {
  const losses: number[] = [];
  for (const plan of plans) losses.push(await lossOf(plan));
  return losses;
};

/**
 * Ranks candidates by validation loss as pruned, and the best of them again by costlier measurements, because the order after a refit or a
 * short distillation is not the order before it (arXiv 2407.14679, section 2.3).
 * @returns best first
 */
export async function rankCandidates(
  inputs: RankingInputs & { readonly original: ModelTensors },
  candidates: readonly Candidate[],
  options: SearchOptions,
): Promise<RankedCandidate[]> {
  const { original, scores } = inputs;
  const { model } = original;
  const promising = mostPromising(model, candidates, scores, options.maxCandidates);
  const rerankings = promising.length === 1 ? [] : (options.rerankings ?? []);
  const total = rerankings.reduce((sum, each) => sum + Math.min(each.candidates, promising.length), promising.length);
  let done = 0;
  const advance = () => options.onProgress?.(++done, total);
  const orderFor = cachedLayerOrder(inputs, options);
  const plans: PrunePlan[] = [];
  for (const { sizes } of promising) plans.push(planFor(model, sizes, await orderFor(largestOf(sizes.layers))));
  const losses = await (options.measureAll ?? oneByOne)(plans, async (plan) => {
    const loss = await candidateLoss(prune(original, plan, keptIndices(model, plan, scores)), inputs, options);
    advance();
    return loss;
  });
  let ranked: RankedCandidate[] = promising.map((candidate, i) => ({
    ...candidate,
    plan: elementAt(plans, i),
    loss: elementAt(losses, i),
  }));
  ranked.sort((a, b) => a.loss - b.loss);
  for (const { measure, candidates: count, lossOf: costlierLoss } of rerankings) {
    const again = bestOfEachKind(model, ranked, count);
    const measured: RankedCandidate[] = [];
    for (const candidate of again) {
      measured.push({ ...candidate, [measure]: await costlierLoss(candidate) });
      advance();
    }
    measured.sort((a, b) => rankingLoss(a) - rankingLoss(b));
    ranked = [...measured, ...ranked.filter((candidate) => !again.includes(candidate))];
  }
  return ranked;
}

/** The best candidates, but first of all the best that cuts some axes: which ones to cut is known only after a costlier measurement. */
function bestOfEachKind(model: Model, ranked: readonly RankedCandidate[], count: number): RankedCandidate[] {
  const kinds = ranked.map(({ sizes }) => cutAxes(model, sizes));
  const isFirst = (i: number) => kinds.indexOf(elementAt(kinds, i)) === i;
  const order = [...ranked.keys()].sort((a, b) => Number(isFirst(b)) - Number(isFirst(a)) || a - b);
  return order
    .slice(0, count)
    .sort((a, b) => a - b)
    .map((i) => elementAt(ranked, i));
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

/** A candidate's loss on the beginning of the validation data, mean nats per token. */
export async function candidateLoss(
  cut: PrunedModel,
  { backend, validation }: Pick<RankingInputs, "backend" | "validation">,
  { memoryBytes, computeType, sequenceLength, maxSequences, signal }: MeasuringOptions,
): Promise<number> {
  const weights = openWeights(backend, cut, { dtype: "bf16", memoryBytes });
  try {
    const options = { computeType, sequenceLength, maxSequences, signal };
    return (await perplexity(backend, weights, validation, options)).loss;
  } finally {
    weights.free();
  }
}
