import { countParameters, type Model } from "../models/index.js";
import { UsageError } from "../system/errors.js";
import type { Scores } from "./importance.js";
import {
  highest,
  keptIndices,
  type PrunePlan,
  UNIFORM_AXES,
  type UniformAxis,
  type UniformSizes,
  uniformPlan,
  uniformSizes,
} from "./plan.js";

/** An architecture that meets the target. */
export interface Candidate {
  readonly sizes: UniformSizes;
  readonly parameters: number;
}

export interface SearchSpace {
  /** Which sizes may change. */
  readonly axes: readonly UniformAxis[];
  /** Sizes are multiples of these. Default: the largest power of two up to a 32nd of the original; for layers a 16th. */
  readonly divisors?: Partial<UniformSizes>;
  /** Largest share cut off a width and off the depth (Model Optimizer's 40 % and 20 % by default). */
  readonly maxWidthCut?: number;
  readonly maxDepthCut?: number;
  /** How far the parameter count may be from the target; 5 % by default (arXiv 2407.14679, section 2.3). */
  readonly tolerance?: number;
}

const DEFAULT_WIDTH_CUT = 0.4;
const DEFAULT_DEPTH_CUT = 0.2;
export const DEFAULT_TOLERANCE = 0.05;

const powerOfTwoBelow = (value: number): number => 2 ** Math.max(0, Math.floor(Math.log2(value)));

/** What sizes of an axis are multiples of where nothing else is said. */
function defaultDivisor(axis: UniformAxis, size: number): number {
  if (axis === "heads" || axis === "kvHeads") return 1;
  return powerOfTwoBelow(axis === "layers" ? size / 16 : size / 32);
}

/** The sizes an axis may take, largest first. */
function choices(axis: UniformAxis, size: number, space: SearchSpace): number[] {
  if (!space.axes.includes(axis)) return [size];
  const divisor = space.divisors?.[axis] ?? defaultDivisor(axis, size);
  const cut = axis === "layers" ? (space.maxDepthCut ?? DEFAULT_DEPTH_CUT) : (space.maxWidthCut ?? DEFAULT_WIDTH_CUT);
  const smallest = Math.max(1, Math.ceil(size * (1 - cut) - 1e-9));
  const multiples: number[] = [];
  for (let value = Math.floor(size / divisor) * divisor; value >= smallest; value -= divisor) multiples.push(value);
  return multiples.includes(size) ? multiples : [size, ...multiples];
}

/** Parameters of a model cut to uniform sizes, without making a plan of it. */
export function parametersAt(model: Model, sizes: Partial<UniformSizes>): number {
  const layers = Array.from({ length: model.layerCount }, (_, i) => i);
  const plan = uniformPlan(model, sizes, layers);
  return countParameters(model.resized(plan.sizes).parameters, plan.sizes);
}

/**
 * Every architecture of the space whose parameter count is within the tolerance of the target, nearest first.
 * @throws UsageError when there is none, with the nearest that the limits allow
 */
export function enumerateCandidates(model: Model, targetParameters: number, space: SearchSpace): Candidate[] {
  const original = uniformSizes(model);
  const tolerance = space.tolerance ?? DEFAULT_TOLERANCE;
  const group = original.heads / original.kvHeads;
  const found: Candidate[] = [];
  let nearest: Candidate | undefined;
  const distance = (candidate: Candidate) => Math.abs(candidate.parameters - targetParameters);
  const linear = parameterFormula(model, original);
  for (const layers of choices("layers", original.layers, space))
    for (const kvHeads of choices("kvHeads", original.kvHeads, space))
      for (const heads of choices("heads", original.heads, space)) {
        if (heads % kvHeads !== 0 || heads / kvHeads > group) continue;
        for (const hidden of choices("hidden", original.hidden, space))
          for (const ffn of choices("ffn", original.ffn, space)) {
            const sizes = { hidden, ffn, heads, kvHeads, layers };
            const candidate = { sizes, parameters: linear(sizes) };
            if (nearest === undefined || distance(candidate) < distance(nearest)) nearest = candidate;
            if (distance(candidate) <= tolerance * targetParameters) found.push(candidate);
          }
      }
  if (found.length === 0)
    throw new UsageError(
      `no architecture has ${targetParameters} parameters within ${tolerance * 100} %; the nearest that the limits allow has ${nearest?.parameters} (${describeSizes(nearest?.sizes ?? original)}): ` +
        "widen --axes, the limits (--max-width-cut, --max-depth-cut) or --tolerance",
    );
  return found.sort(
    (a, b) => distance(a) - distance(b) || b.sizes.layers - a.sizes.layers || b.sizes.hidden - a.sizes.hidden,
  );
}

/**
 * Parameter counts as a function of uniform sizes. A count is a sum of layers, each linear in every width, so it is found
 * exactly from the parameter table of a model with one layer and one with none.
 */
function parameterFormula(model: Model, original: UniformSizes): (sizes: UniformSizes) => number {
  const cache = new Map<string, readonly [rest: number, perLayer: number]>();
  return (sizes) => {
    const key = `${sizes.hidden} ${sizes.ffn} ${sizes.heads} ${sizes.kvHeads}`;
    let parts = cache.get(key);
    if (parts === undefined) {
      const one = parametersAt(model, { ...sizes, layers: 1 });
      const two = original.layers > 1 ? parametersAt(model, { ...sizes, layers: 2 }) : one;
      parts = original.layers > 1 ? [2 * one - two, two - one] : [0, one];
      cache.set(key, parts);
    }
    return parts[0] + parts[1] * sizes.layers;
  };
}

/** Sizes as they are written on the command line. */
export const describeSizes = (sizes: Partial<UniformSizes>): string =>
  UNIFORM_AXES.flatMap((axis) => (sizes[axis] === undefined ? [] : [`${axis}=${sizes[axis]}`])).join(",");

/**
 * The share of all importance that a plan keeps: the mean over the cut dimensions of the kept scores' share. A quick guess
 * at quality, to choose which candidates are worth measuring.
 */
export function retainedImportance(model: Model, plan: PrunePlan, scores: Scores): number {
  const kept = keptIndices(model, plan, scores);
  const shares: number[] = [];
  for (const [dimension, values] of scores) {
    const indices = dimension === "layers" ? Uint32Array.from(plan.keptLayers) : kept.get(dimension);
    const total = values.reduce((a, b) => a + b, 0);
    if (total > 0)
      shares.push(indices === undefined ? 1 : indices.reduce((sum, i) => sum + (values[i] ?? 0), 0) / total);
  }
  return shares.reduce((a, b) => a + b, 0) / shares.length;
}

/** The `count` candidates that keep most importance, in that order. */
export function mostPromising(
  model: Model,
  candidates: readonly Candidate[],
  scores: Scores,
  layerOrder: readonly number[],
  count: number,
): Candidate[] {
  if (candidates.length <= count) return [...candidates];
  const guesses = Float32Array.from(candidates, ({ sizes }) =>
    retainedImportance(model, uniformPlan(model, sizes, layerOrder), scores),
  );
  return [...highest(guesses, count)].map((i) => candidates[i] as Candidate);
}
