import { countParameters, type DimensionName, type Model, type PruningAxis, shapeOf } from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { FormatError, UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";
import { ascending } from "./depth.js";
import { axisSizes, keptIndices, type PrunePlan, planFor } from "./plan.js";
import type { Scores } from "./scores.js";
import { type AxisSize, type AxisSizes, describeSizes, largestOf, sizeOn } from "./sizes.js";

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
  /**
   * The largest share that may be cut from a width, and from the depth; 40 % and 20 % by default, as in Model Optimizer, but 60 % of
   * feed-forward networks: cut alone they lose less than two widths do.
   */
  readonly maxWidthCut?: number | undefined;
  readonly maxDepthCut?: number | undefined;
  /** How far the parameter count may be from the target; 5 % by default (arXiv 2407.14679, section 2.3). */
  readonly tolerance?: number | undefined;
  /** Leave out architectures that llama.cpp has no graph for. */
  readonly forLlamaCpp?: boolean | undefined;
}

/** Largest cuts by axis; of other widths {@link DEFAULT_WIDTH_CUT}. */
const DEFAULT_CUTS: Readonly<Record<string, number>> = { layers: 0.2, ffn: 0.6 };
const DEFAULT_WIDTH_CUT = 0.4;
export const DEFAULT_TOLERANCE = 0.05;

const powerOfTwoBelow = (value: number): number => 2 ** Math.max(0, Math.floor(Math.log2(value)));

/** Axes that count a few items, of which any number may stay. */
const COUNTED = new Set(["heads", "kvHeads"]);

/** The divisor of an axis's sizes: as requested, else a fraction of the size, and always a multiple of what the format needs. */
export function divisorOf({ name, multipleOf = 1 }: PruningAxis, size: number, space: SearchSpace): number {
  const defaultDivisor = COUNTED.has(name) ? 1 : powerOfTwoBelow(name === "layers" ? size / 16 : size / 32);
  return leastCommonMultiple(space.divisors?.[name] ?? defaultDivisor, multipleOf);
}

const greatestCommonDivisor = (a: number, b: number): number => (b === 0 ? a : greatestCommonDivisor(b, a % b));
const leastCommonMultiple = (a: number, b: number): number => (a / greatestCommonDivisor(a, b)) * b;

/** The sizes that an axis may take, largest first. Layers of different sizes are cut by the same share. */
function choices(axis: PruningAxis, original: AxisSize, space: SearchSpace): AxisSize[] {
  if (!space.axes.includes(axis.name)) return [original];
  const size = largestOf(original);
  const divisor = divisorOf(axis, size, space);
  const wanted = axis.name === "layers" ? space.maxDepthCut : space.maxWidthCut;
  const cut = wanted ?? DEFAULT_CUTS[axis.name] ?? DEFAULT_WIDTH_CUT;
  const smallest = Math.max(1, Math.ceil(size * (1 - cut) - 1e-9));
  const multiples: number[] = [];
  for (let value = Math.floor(size / divisor) * divisor; value >= smallest; value -= divisor) multiples.push(value);
  const all = multiples.includes(size) ? multiples : [size, ...multiples];
  if (typeof original === "number") return all;
  const scaled = (before: number, value: number) =>
    value === size ? before : Math.min(before, Math.max(1, Math.round((before * value) / size / divisor) * divisor));
  return all.map((value) => original.map((before) => scaled(before, value)));
}

/** How many layers of a model a candidate keeps. */
export const layersOf = (model: Model, { sizes }: Candidate): number =>
  sizes.layers === undefined ? model.layerCount : largestOf(sizes.layers);

/** The candidate with most parameters. */
export const largestCandidate = (candidates: readonly Candidate[]): Candidate =>
  candidates.reduce((largest, each) => (each.parameters > largest.parameters ? each : largest));

/** A model cut to the given sizes, without its first layers. @throws FormatError when its configuration cannot express them */
export function cutTo(
  model: Model,
  sizes: AxisSizes,
): { readonly model: Model; readonly keptLayers: readonly number[] } {
  const layers = Array.from({ length: model.layerCount }, (_, i) => i);
  const plan = planFor(model, sizes, layers);
  return { model: model.resized(plan.sizes, plan.keptLayers), keptLayers: plan.keptLayers };
}

/** The parameter count of a model cut to the given sizes. @throws FormatError when its configuration cannot express them */
export function parametersAt(model: Model, sizes: AxisSizes): number {
  const { parameters, sizes: smaller } = cutTo(model, sizes).model;
  return countParameters(parameters, smaller);
}

/**
 * Every architecture of the space whose parameter count is within the tolerance of the target, nearest first. Architectures
 * that the model's configuration cannot express are left out.
 * @throws UsageError when there is none, naming the nearest that the limits allow
 */
export function enumerateCandidates(model: Model, targetParameters: number, space: SearchSpace): Candidate[] {
  const { ranked, isNear, isPossible } = rank(model, targetParameters, space);
  const found = ranked.filter((candidate) => isNear(candidate) && isPossible(candidate));
  if (found.length > 0) return found;
  const nearest = ranked.find(isPossible);
  const limits = nearest
    ? `the nearest that the limits allow has ${nearest.parameters} (${describeSizes(nearest.sizes)})`
    : `the limits allow none that ${space.forLlamaCpp ? "llama.cpp can compute" : "the model's configuration can express"}`;
  throw new UsageError(
    `no architecture has ${targetParameters} parameters within ${toleranceOf(space) * 100} %; ${limits}: ` +
      "widen --axes, the limits (--max-width-cut, --max-depth-cut) or --tolerance",
  );
}

/** The first of the candidates that `enumerateCandidates` returns; undefined when there is none. */
export function nearestCandidate(model: Model, targetParameters: number, space: SearchSpace): Candidate | undefined {
  const { ranked, isNear, isPossible } = rank(model, targetParameters, space);
  return ranked.find((candidate) => isNear(candidate) && isPossible(candidate));
}

const toleranceOf = ({ tolerance = DEFAULT_TOLERANCE }: SearchSpace): number => tolerance;

/** The whole space, nearest to the target first, and tests of whether a candidate is within the tolerance, and is possible at all. */
function rank(model: Model, targetParameters: number, space: SearchSpace) {
  checkAxes(model, space);
  const { count, isExpressible, isInLlamaCpp } = formulaOf(model);
  const distance = ({ parameters }: Candidate) => Math.abs(parameters - targetParameters);
  const size = ({ sizes }: Candidate, axis: string) => largestOf(sizes[axis]);
  const ranked = [...combinations(model, axisSizes(model), space)]
    .map((sizes): Candidate => ({ sizes, parameters: count(sizes) }))
    .sort(
      (a, b) =>
        distance(a) - distance(b) || size(b, "layers") - size(a, "layers") || size(b, "hidden") - size(a, "hidden"),
    );
  return {
    ranked,
    isNear: (candidate: Candidate) => distance(candidate) <= toleranceOf(space) * targetParameters,
    isPossible: ({ sizes }: Candidate) => (space.forLlamaCpp === true ? isInLlamaCpp(sizes) : isExpressible(sizes)),
  };
}

/** @throws UsageError naming an axis that the model does not have, or whose sizes cannot be multiples of what they should be */
function checkAxes(model: Model, space: SearchSpace): void {
  const axes = model.axes.map(({ name }) => name);
  const unknown = [...space.axes, ...Object.keys(space.divisors ?? {})].find((name) => !axes.includes(name));
  if (unknown !== undefined)
    throw new UsageError(
      `${model.architecture} has no axis ${unknown} that could be cut; it has ${axes.join(", ")}.${didYouMean(unknown, axes)}`,
    );
  const [name, divisor] =
    Object.entries(space.divisors ?? {}).find(([, one]) => !(Number.isInteger(one) && one > 0)) ?? [];
  if (name !== undefined) throw new UsageError(`sizes of ${name} cannot be multiples of ${divisor} (--divisors)`);
}

/** Every combination of sizes in which heads divide evenly among their groups. */
function* combinations(model: Model, original: AxisSizes, space: SearchSpace): Generator<AxisSizes> {
  const axes = model.axes;
  const chosen: Record<string, AxisSize> = {};
  function* from(at: number): Generator<AxisSizes> {
    const axis = axes[at];
    if (axis === undefined) {
      if (axes.every((each) => isGrouped(each, original, chosen))) yield { ...chosen };
      return;
    }
    for (const size of choices(axis, sizeOn(axis.name, original), spaceFor(axis, original, space))) {
      chosen[axis.name] = size;
      yield* from(at + 1);
    }
  }
  yield* from(0);
}

/** Where every head has its own key-value head, both counts may change when one may. */
function spaceFor(axis: PruningAxis, original: AxisSizes, space: SearchSpace): SearchSpace {
  const isUngrouped = String(original.heads) === String(original.kvHeads);
  return isUngrouped && axis.name === "kvHeads" && space.axes.includes("heads")
    ? { ...space, axes: [...space.axes, "kvHeads"] }
    : space;
}

/** Whether an axis's sizes are multiples of its groups' sizes, with no more to a group than in the original. */
function isGrouped({ name, groupedBy }: PruningAxis, original: AxisSizes, chosen: AxisSizes): boolean {
  if (groupedBy === undefined) return true;
  const inLayer = (sizes: AxisSizes, axis: string, layer: number): number => {
    const size = sizeOn(axis, sizes);
    return typeof size === "number" ? size : (size[layer] ?? largestOf(size));
  };
  const layers = Math.max(...[name, groupedBy].map((axis) => [sizeOn(axis, chosen)].flat().length));
  return Array.from({ length: layers }, (_, layer) => layer).every((layer) => {
    const [members, groups] = [inLayer(chosen, name, layer), inLayer(chosen, groupedBy, layer)];
    if (members === 0 && groups === 0) return true;
    const perGroup = members / groups;
    return (
      Number.isInteger(perGroup) && perGroup <= inLayer(original, name, layer) / inLayer(original, groupedBy, layer)
    );
  });
}

/** Parameter counts as a function of sizes, and which sizes the model's configuration can express. */
interface Formula {
  /** Layers count in proportion to how many stay, which is exact where all are alike. */
  readonly count: (sizes: AxisSizes) => number;
  readonly isExpressible: (sizes: AxisSizes) => boolean;
  /** The same, with a graph in llama.cpp. */
  readonly isInLlamaCpp: (sizes: AxisSizes) => boolean;
}

/** Counting and trying take long for large models, and several targets ask for the same sizes. */
const formulas = new WeakMap<Model, Formula>();

function formulaOf(model: Model): Formula {
  const known = formulas.get(model) ?? newFormula(model);
  formulas.set(model, known);
  return known;
}

function newFormula(model: Model): Formula {
  const counts = new Map<string, readonly [rest: number, layers: number]>();
  const [expressible, inLlamaCpp] = [new Map<string, boolean>(), new Map<string, boolean>()];
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
      if (size === undefined) continue;
      for (const [i, dimension] of dimensions.entries())
        sizes[dimension] = typeof size === "number" ? size : (size[i] as number);
    }
    const parts: [number, number] = [0, 0];
    for (const spec of model.parameters)
      parts[spec.layer === undefined ? 0 : 1] += shapeOf(spec, sizes).reduce((a, b) => a * b, 1);
    return parts;
  };
  const allLayers = Array.from({ length: model.layerCount }, (_, i) => i);
  const succeeds = (sizes: AxisSizes, use: (smaller: Model) => unknown): boolean => {
    const { layers, ...widths } = sizes;
    try {
      const kept = allLayers.slice(0, layers === undefined ? undefined : largestOf(layers));
      use(model.resized(planFor(model, widths, []).sizes, kept));
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
    isExpressible: ({ layers: _, ...widths }) => once(expressible, widths, () => succeeds(widths, () => {})),
    isInLlamaCpp: (sizes) => once(inLlamaCpp, sizes, () => succeeds(sizes, (smaller) => smaller.gguf())),
  };
}

/**
 * The share of all importance that a plan keeps: the kept scores' share of a dimension's total, averaged over the dimensions.
 * A quick estimate of quality, to choose which candidates are worth measuring.
 */
export function retainedImportance(model: Model, plan: PrunePlan, scores: Scores): number {
  const kept = keptIndices(model, plan, scores);
  const isCutLayers = (dimension: DimensionName): boolean => {
    const layer = model.layerDimensions.get(dimension)?.layer;
    return layer !== undefined && !plan.keptLayers.includes(layer);
  };
  const shares: number[] = [];
  for (const [dimension, values] of scores) {
    const indices = dimension === "layers" ? Uint32Array.from(plan.keptLayers) : kept.get(dimension);
    const total = values.reduce((a, b) => a + b, 0);
    if (total === 0) continue;
    if (isCutLayers(dimension)) shares.push(0);
    else shares.push(indices === undefined ? 1 : indices.reduce((sum, i) => sum + (values[i] as number), 0) / total);
  }
  return shares.reduce((a, b) => a + b, 0) / shares.length;
}

/** Which of a model's axes sizes cut, as a key. */
export function cutAxes(model: Model, sizes: AxisSizes): string {
  const original = axisSizes(model);
  return Object.keys(sizes)
    .filter((axis) => String(sizes[axis]) !== String(original[axis]))
    .join();
}

/**
 * The `count` candidates that keep most importance, without the layers of least influence, in that order, as many of each shape as possible: shares of importance say little
 * of one axis against another.
 */
export function mostPromising(
  model: Model,
  candidates: readonly Candidate[],
  scores: Scores,
  count: number,
): Candidate[] {
  if (candidates.length <= count) return [...candidates];
  const byInfluence = ascending([...(scores.get("layers") ?? [])]);
  const estimates = Float32Array.from(candidates, ({ sizes }) =>
    retainedImportance(model, planFor(model, sizes, byInfluence), scores),
  );
  const byEstimate = (a: number, b: number) => elementAt(estimates, b) - elementAt(estimates, a) || a - b;
  const places = new Map<string, number>();
  const placed = [...candidates.keys()].sort(byEstimate).map((i) => {
    const axes = cutAxes(model, elementAt(candidates, i).sizes);
    const place = places.get(axes) ?? 0; // among those that cut the same axes
    places.set(axes, place + 1);
    return { i, place };
  });
  const chosen = placed.sort((a, b) => a.place - b.place).slice(0, count);
  return chosen
    .map(({ i }) => i)
    .sort(byEstimate)
    .map((i) => elementAt(candidates, i));
}
