import { countParameters, type Model, type PruningAxis, shapeOf } from "../models/index.js";
import { FormatError, UsageError } from "../system/errors.js";
import type { Scores } from "./importance.js";
import { axisSizes, highest, keptIndices, type PrunePlan, planFor } from "./plan.js";
import { type AxisSize, type AxisSizes, describeSizes, largestOf } from "./sizes.js";

/** An architecture that meets the target. */
export interface Candidate {
  readonly sizes: AxisSizes;
  readonly parameters: number;
}

export interface SearchSpace {
  /** Which of the model's axes may change. */
  readonly axes: readonly string[];
  /** Sizes are multiples of these. Default: the largest power of two up to a 32nd of the original; for layers a 16th. */
  readonly divisors?: Readonly<Record<string, number>> | undefined;
  /** Largest share cut off a width and off the depth (Model Optimizer's 40 % and 20 % by default). */
  readonly maxWidthCut?: number | undefined;
  readonly maxDepthCut?: number | undefined;
  /** How far the parameter count may be from the target; 5 % by default (arXiv 2407.14679, section 2.3). */
  readonly tolerance?: number | undefined;
}

const DEFAULT_WIDTH_CUT = 0.4;
const DEFAULT_DEPTH_CUT = 0.2;
export const DEFAULT_TOLERANCE = 0.05;

const powerOfTwoBelow = (value: number): number => 2 ** Math.max(0, Math.floor(Math.log2(value)));

/** Axes of few, whole things: any number of them may stay. */
const COUNTED = new Set(["heads", "kvHeads"]);

/** What sizes of an axis are multiples of: what is asked for, else a part of the size, and what the format needs. */
function divisorOf({ name, multipleOf = 1 }: PruningAxis, size: number, space: SearchSpace): number {
  const own = COUNTED.has(name) ? 1 : powerOfTwoBelow(name === "layers" ? size / 16 : size / 32);
  return leastCommonMultiple(space.divisors?.[name] ?? own, multipleOf);
}

const greatestCommonDivisor = (a: number, b: number): number => (b === 0 ? a : greatestCommonDivisor(b, a % b));
const leastCommonMultiple = (a: number, b: number): number => (a / greatestCommonDivisor(a, b)) * b;

/** The sizes an axis may take, largest first. Layers that differ are cut by the same share. */
function choices(axis: PruningAxis, original: AxisSize, space: SearchSpace): AxisSize[] {
  if (!space.axes.includes(axis.name)) return [original];
  const size = largestOf(original);
  const divisor = divisorOf(axis, size, space);
  const cut =
    axis.name === "layers" ? (space.maxDepthCut ?? DEFAULT_DEPTH_CUT) : (space.maxWidthCut ?? DEFAULT_WIDTH_CUT);
  const smallest = Math.max(1, Math.ceil(size * (1 - cut) - 1e-9));
  const multiples: number[] = [];
  for (let value = Math.floor(size / divisor) * divisor; value >= smallest; value -= divisor) multiples.push(value);
  const all = multiples.includes(size) ? multiples : [size, ...multiples];
  if (typeof original === "number") return all;
  const scaled = (before: number, value: number) =>
    value === size ? before : Math.min(before, Math.max(1, Math.round((before * value) / size / divisor) * divisor));
  return all.map((value) => original.map((before) => scaled(before, value)));
}

/** Parameters of a model cut to some sizes. @throws FormatError where its configuration cannot say them */
export function parametersAt(model: Model, sizes: AxisSizes): number {
  const layers = Array.from({ length: model.layerCount }, (_, i) => i);
  const { sizes: wanted, keptLayers } = planFor(model, sizes, layers);
  return countParameters(model.resized(wanted, keptLayers).parameters, wanted);
}

/**
 * Every architecture of the space whose parameter count is within the tolerance of the target, nearest first. What the model's
 * configuration cannot say is left out.
 * @throws UsageError when there is none, with the nearest that the limits allow
 */
export function enumerateCandidates(model: Model, targetParameters: number, space: SearchSpace): Candidate[] {
  const { ranked, isNear } = rank(model, targetParameters, space);
  const { isSayable } = formulaOf(model);
  const found = ranked.filter((one) => isNear(one) && isSayable(one.sizes));
  if (found.length > 0) return found;
  const nearest = ranked.find(({ sizes }) => isSayable(sizes));
  throw new UsageError(
    `no architecture has ${targetParameters} parameters within ${toleranceOf(space) * 100} %; the nearest that the limits allow has ${nearest?.parameters} (${describeSizes(nearest?.sizes ?? axisSizes(model))}): ` +
      "widen --axes, the limits (--max-width-cut, --max-depth-cut) or --tolerance",
  );
}

/** The first of them alone; undefined where there is none. */
export function nearestCandidate(model: Model, targetParameters: number, space: SearchSpace): Candidate | undefined {
  const { ranked, isNear } = rank(model, targetParameters, space);
  const { isSayable } = formulaOf(model);
  return ranked.find((one) => isNear(one) && isSayable(one.sizes));
}

const toleranceOf = ({ tolerance = DEFAULT_TOLERANCE }: SearchSpace): number => tolerance;

/** All of the space, nearest to the target first, and whether one is within the tolerance. */
function rank(model: Model, targetParameters: number, space: SearchSpace) {
  checkAxes(model, space);
  const { count } = formulaOf(model);
  const distance = ({ parameters }: Candidate) => Math.abs(parameters - targetParameters);
  const size = ({ sizes }: Candidate, axis: string) => largestOf(sizes[axis]);
  const ranked = [...combinations(model, axisSizes(model), space)]
    .map((sizes): Candidate => ({ sizes, parameters: count(sizes) }))
    .sort(
      (a, b) =>
        distance(a) - distance(b) || size(b, "layers") - size(a, "layers") || size(b, "hidden") - size(a, "hidden"),
    );
  return { ranked, isNear: (one: Candidate) => distance(one) <= toleranceOf(space) * targetParameters };
}

/** @throws UsageError naming an axis that the model has not */
function checkAxes(model: Model, space: SearchSpace): void {
  const axes = model.axes.map(({ name }) => name);
  const unknown = [...space.axes, ...Object.keys(space.divisors ?? {})].find((name) => !axes.includes(name));
  if (unknown !== undefined)
    throw new UsageError(`${model.architecture} has no axis ${unknown} that could be cut; it has ${axes.join(", ")}`);
}

/** Every combination of sizes in which heads can be shared out to their groups. */
function* combinations(model: Model, original: AxisSizes, space: SearchSpace): Generator<AxisSizes> {
  const axes = model.axes;
  const chosen: Record<string, AxisSize> = {};
  function* from(at: number): Generator<AxisSizes> {
    const axis = axes[at];
    if (axis === undefined) {
      if (axes.every((one) => isGrouped(one, original, chosen))) yield { ...chosen };
      return;
    }
    for (const size of choices(axis, original[axis.name] ?? 0, spaceFor(axis, original, space))) {
      chosen[axis.name] = size;
      yield* from(at + 1);
    }
  }
  yield* from(0);
}

/** Where every head has a key-value head of its own, both may change when one may. */
function spaceFor(axis: PruningAxis, original: AxisSizes, space: SearchSpace): SearchSpace {
  const alone = String(original.heads) === String(original.kvHeads);
  return alone && axis.name === "kvHeads" && space.axes.includes("heads")
    ? { ...space, axes: [...space.axes, "kvHeads"] }
    : space;
}

/** Whether an axis's sizes are multiples of their groups' and at most as many times them as in the original. */
function isGrouped({ name, groupedBy }: PruningAxis, original: AxisSizes, chosen: AxisSizes): boolean {
  if (groupedBy === undefined) return true;
  const at = (sizes: AxisSizes, axis: string, i: number) => [sizes[axis] ?? 1].flat()[i] ?? largestOf(sizes[axis]);
  const length = Math.max(...[chosen[name], chosen[groupedBy]].map((size) => [size ?? 1].flat().length));
  return Array.from({ length }, (_, i) => i).every((i) => {
    const ratio = at(chosen, name, i) / at(chosen, groupedBy, i);
    return Number.isInteger(ratio) && ratio <= at(original, name, i) / at(original, groupedBy, i);
  });
}

/** Parameter counts as a function of sizes, and which sizes the model's configuration can say. */
interface Formula {
  /** Of the whole model, and of its layers in proportion to how many stay: exact where layers are alike. */
  readonly count: (sizes: AxisSizes) => number;
  readonly isSayable: (sizes: AxisSizes) => boolean;
}

/** Counting and trying take long for large models, and several targets ask for the same. */
const formulas = new WeakMap<Model, Formula>();

function formulaOf(model: Model): Formula {
  const known = formulas.get(model) ?? newFormula(model);
  formulas.set(model, known);
  return known;
}

function newFormula(model: Model): Formula {
  const counts = new Map<string, readonly [rest: number, layers: number]>();
  const sayable = new Map<string, boolean>();
  const once = <T>(cache: Map<string, T>, widths: AxisSizes, value: () => T): T => {
    const key = JSON.stringify(widths);
    const found = cache.get(key) ?? value();
    cache.set(key, found);
    return found;
  };
  const countAt = (widths: AxisSizes): readonly [number, number] => {
    const sizes: Record<string, number> = { ...model.sizes };
    for (const { name, dimensions } of model.axes) {
      const size = widths[name];
      if (size !== undefined)
        for (const [i, one] of dimensions.entries()) sizes[one] = typeof size === "number" ? size : (size[i] ?? 0);
    }
    const parts: [number, number] = [0, 0];
    for (const spec of model.parameters)
      parts[spec.layer === undefined ? 0 : 1] += shapeOf(spec, sizes).reduce((a, b) => a * b, 1);
    return parts;
  };
  const all = Array.from({ length: model.layerCount }, (_, i) => i);
  const canSay = (widths: AxisSizes): boolean => {
    try {
      model.resized(planFor(model, widths, []).sizes, all);
      return true;
    } catch (error) {
      if (error instanceof FormatError) return false;
      throw error;
    }
  };
  return {
    count: ({ layers, ...widths }) => {
      const [rest, inLayers] = once(counts, widths, () => countAt(widths));
      const share = layers === undefined ? 1 : largestOf(layers) / model.layerCount;
      return Math.round(rest + inLayers * share);
    },
    isSayable: ({ layers: _, ...widths }) => once(sayable, widths, () => canSay(widths)),
  };
}

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
    retainedImportance(model, planFor(model, sizes, layerOrder), scores),
  );
  return [...highest(guesses, count)].map((i) => candidates[i] as Candidate);
}
