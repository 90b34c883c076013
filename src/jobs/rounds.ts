import { forTokens, type MetricsRecord, stepsOf, type TrainOptions } from "../distill/index.js";
import { countParameters, type Model } from "../models/index.js";
import { type AxisSizes, axisSizes, type Candidate, enumerateCandidates, largestOf, planFor } from "../prune/index.js";
import { elementAt } from "../system/arrays.js";
import { UsageError } from "../system/errors.js";
import { candidatesFor, type TargetOptions } from "./target.js";

/** A round of a compression that has not begun. */
export interface PlannedRound {
  readonly training: RoundTraining;
  /** The sizes that it may cut to; see {@link candidatesOfRounds}. */
  readonly candidates: readonly Candidate[];
}

/** The training of one round: its settings, and where in the order of the data it begins. */
export interface RoundTraining {
  readonly settings: TrainOptions;
  /** Sequences that earlier rounds have trained on. */
  readonly firstSequence: number;
}

/**
 * Shares the steps of a run evenly among rounds, the first ones taking what is left over. Each round has a learning-rate schedule of
 * its own and continues in the data where the one before ended.
 * @throws UsageError when there are fewer steps than rounds
 */
export function trainingOfRounds(settings: TrainOptions, rounds: number): RoundTraining[] {
  if (rounds === 1) return [{ settings, firstSequence: 0 }];
  const { batchSize, sequenceLength, tokens } = settings;
  const steps = stepsOf(settings);
  if (steps < rounds)
    throw new UsageError(
      `${tokens} tokens are ${steps} steps, too few for ${rounds} rounds: give more --tokens or fewer --rounds`,
    );
  const begin = (round: number) => Math.ceil((steps * round) / rounds);
  return Array.from({ length: rounds }, (_, i) => ({
    settings: forTokens(settings, (begin(i + 1) - begin(i)) * batchSize * sequenceLength),
    firstSequence: begin(i) * batchSize,
  }));
}

/** Intermediate sizes need not be near their share of the cut: only the last ones are what was asked for. */
const INTERMEDIATE_TOLERANCE = 0.05;

/**
 * The sizes that each round may cut to, nearest to its share of the cut first. Each round removes the same share of the parameters
 * that are left, and its sizes can all be cut further to sizes of the next round; so a target that can be met at all is met.
 * @throws UsageError when a target cannot be met, or not in so many rounds
 */
export function candidatesOfRounds(model: Model, options: TargetOptions, rounds: number): Candidate[][] {
  if (!Number.isInteger(rounds) || rounds < 1)
    throw new UsageError(`--rounds ${rounds}: give a whole number from 1 on`);
  const last = candidatesFor(model, options);
  if (rounds === 1) return [last];
  const next = last.map(({ sizes, parameters }) => ({ sizes: completeSizes(model, sizes), parameters }));
  const original = countParameters(model.parameters, model.sizes);
  const factor = (elementAt(last, 0).parameters / original) ** (1 / rounds);
  const space = {
    ...options.space,
    axes: Object.keys(axisSizes(model)).filter((axis) => next.some(({ sizes }) => isCut(model, sizes, axis))),
    maxWidthCut: largestCut(model, next, (axis) => axis !== "layers"),
    maxDepthCut: largestCut(model, next, (axis) => axis === "layers"),
    tolerance: Math.max(INTERMEDIATE_TOLERANCE, options.space?.tolerance ?? 0),
  };
  const all: Candidate[][] = [next];
  for (let round = rounds - 1; round >= 1; round--) {
    const wanted = Math.round(original * factor ** round);
    const following = elementAt(all, 0);
    const found = candidatesNear(model, wanted, space).filter(({ sizes }) =>
      following.some((smaller) => contains(sizes, smaller.sizes)),
    );
    if (found.length === 0)
      throw new UsageError(
        `--rounds ${rounds}: no sizes with about ${wanted} parameters lie between the model and the target; give fewer rounds, or finer --divisors`,
      );
    all.unshift(found);
  }
  return all;
}

/** Of a round's candidates, those that a model can be cut to. */
export const withinSizes = (model: Model, candidates: readonly Candidate[]): Candidate[] =>
  candidates.filter(({ sizes }) => contains(axisSizes(model), sizes));

function candidatesNear(
  model: Model,
  parameters: number,
  space: Parameters<typeof enumerateCandidates>[2],
): Candidate[] {
  try {
    return enumerateCandidates(model, parameters, space);
  } catch (error) {
    if (error instanceof UsageError) return []; // the caller says it in terms of rounds
    throw error;
  }
}

/** The sizes of all axes, where a target names some of them. @throws UsageError for sizes that depend on a layer's number */
function completeSizes(model: Model, wanted: AxisSizes): AxisSizes {
  const known = axisSizes(model);
  const isUniform = Object.entries({ ...known, ...wanted }).every(
    ([axis, size]) => axis in known && typeof size === "number",
  );
  if (!isUniform && wanted.layers !== undefined && largestOf(wanted.layers) < model.layerCount)
    throw new UsageError(
      "--rounds cannot cut layers where sizes differ from layer to layer, because the layers are numbered anew after each round: cut one of the two, or do without --rounds",
    );
  const plan = planFor(model, wanted, [...Array(model.layerCount).keys()]);
  return axisSizes(model.resized(plan.sizes, plan.keptLayers));
}

const atLayer = (size: AxisSizes[string] | undefined, i: number): number =>
  typeof size === "number" ? size : (size?.[i] ?? largestOf(size));

/** Each size of an axis beside another's: one pair where neither differs from layer to layer. */
function pairs(a: AxisSizes[string] | undefined, b: AxisSizes[string] | undefined): (readonly [number, number])[] {
  const length = Math.max([a ?? 0].flat().length, [b ?? 0].flat().length);
  return Array.from({ length }, (_, i) => [atLayer(a, i), atLayer(b, i)] as const);
}

/** Whether sizes can be cut to others: none is smaller. */
const contains = (larger: AxisSizes, smaller: AxisSizes): boolean =>
  Object.keys(smaller).every((axis) => pairs(larger[axis], smaller[axis]).every(([a, b]) => a >= b));

const isCut = (model: Model, sizes: AxisSizes, axis: string): boolean =>
  pairs(axisSizes(model)[axis], sizes[axis]).some(([before, after]) => after < before);

/** The largest share that any candidate cuts from one of the axes. */
function largestCut(model: Model, candidates: readonly Candidate[], counts: (axis: string) => boolean): number {
  const original = axisSizes(model);
  const shares = candidates.flatMap(({ sizes }) =>
    Object.keys(original)
      .filter(counts)
      .flatMap((axis) => pairs(original[axis], sizes[axis]))
      .map(([before, after]) => (before === 0 ? 0 : 1 - after / before)),
  );
  return Math.max(0, ...shares);
}

/** The folder of a round, counted from 1, in a run's directory; the last round has none. */
export const roundFolder = (round: number): string => `round-${round}`;

/** The metrics of consecutive rounds as those of one training. */
export function joinMetrics(rounds: readonly (readonly MetricsRecord[])[]): MetricsRecord[] {
  const joined: MetricsRecord[] = [];
  for (const records of rounds) {
    const last = joined.at(-1);
    for (const record of records)
      joined.push({
        ...record,
        step: record.step + (last?.step ?? 0),
        tokens: record.tokens + (last?.tokens ?? 0),
        seconds: record.seconds + (last?.seconds ?? 0),
      });
  }
  return joined;
}
