import { perplexity } from "../evaluate/index.js";
import { type Model, type ModelTensors, openWeights } from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { required } from "../system/errors.js";
import type { ComputeType } from "../tensor/index.js";
import { type CandidateLosses, rankingLoss } from "./candidate-losses.js";
import { type Candidate, cutAxes, layersOf, mostPromising } from "./candidates.js";
import { type IsPossible, layerOrder, type RankingInputs } from "./depth.js";
import type { DepthMethod } from "./depth-methods.js";
import { keptIndices, type PrunePlan, planFor } from "./plan.js";
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
  /** Whether a plan will do; any will by default. */
  readonly isPossible?: IsPossible | undefined;
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
 * @returns best first; empty where no candidate is possible without the layers that are chosen
 */
export async function rankCandidates(
  inputs: RankingInputs & { readonly original: ModelTensors },
  candidates: readonly Candidate[],
  options: SearchOptions,
): Promise<RankedCandidate[]> {
  const { original, scores } = inputs;
  const { model } = original;
  const orderFor = cachedLayerOrder(inputs, options);
  const planned: (Candidate & { readonly plan: PrunePlan })[] = [];
  for (const candidate of mostPromising(model, candidates, scores, options.maxCandidates)) {
    const plan = planFor(model, candidate.sizes, await orderFor(layersOf(model, candidate)));
    if (options.isPossible?.(plan) !== false) planned.push({ ...candidate, plan });
  }
  const rerankings = planned.length === 1 ? [] : (options.rerankings ?? []);
  const total = rerankings.reduce((sum, each) => sum + Math.min(each.candidates, planned.length), planned.length);
  let done = 0;
  const advance = () => options.onProgress?.(++done, total);
  const plans = planned.map(({ plan }) => plan);
  const losses = await lossesOf(inputs, plans, options, advance);
  let ranked: RankedCandidate[] = planned.map((candidate, i) => ({ ...candidate, loss: elementAt(losses, i) }));
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
  const { depthMethod: method, computeType, sequenceLength, maxSequences, signal, isPossible } = options;
  const orders = new Map<number, number[]>();
  return async (layers) => {
    const cut = inputs.weights.model.layerCount - layers;
    const known = orders.get(cut);
    if (known !== undefined) return known;
    const order = await layerOrder(inputs, cut, {
      method,
      computeType,
      sequenceLength,
      maxSequences,
      signal,
      isPossible,
    });
    orders.set(cut, order);
    return order;
  };
}

/** The losses of plans as they are cut. @param advance is called after each */
async function lossesOf(
  inputs: RankingInputs & { readonly original: ModelTensors },
  plans: readonly PrunePlan[],
  options: SearchOptions,
  advance: () => void,
): Promise<number[]> {
  const { original, scores, known } = inputs;
  const keyOf = ({ sizes, keptLayers }: PrunePlan) => ["loss", sizes, keptLayers];
  const losses = new Map<PrunePlan, number>();
  const found = (plan: PrunePlan, loss: number) => {
    losses.set(plan, loss);
    known?.set(keyOf(plan), loss);
  };
  for (const plan of plans) {
    const loss = known?.get<number>(keyOf(plan));
    if (loss === undefined) continue;
    losses.set(plan, loss);
    advance();
  }
  const others = plans.filter((plan) => !losses.has(plan));
  const measureAll = others.length === 0 ? async () => [] : (options.measureAll ?? oneByOne);
  const measured = await measureAll(others, async (plan) => {
    const cut = prune(original, plan, keptIndices(original.model, plan, scores));
    const loss = await candidateLoss(cut, inputs, options);
    found(plan, loss);
    advance();
    return loss;
  });
  others.forEach((plan, i) => {
    if (!losses.has(plan)) found(plan, elementAt(measured, i)); // another process has measured it
  });
  return plans.map((plan) => required(losses.get(plan), "a candidate was not measured"));
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
