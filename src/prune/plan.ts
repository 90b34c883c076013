import { type DimensionName, layerDimension, type Model, type Sizes, sizeOf } from "../models/index.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";
import type { Scores } from "./scores.js";
import { type AxisSizes, describeSize, largestOf, simplest } from "./sizes.js";

/** What to cut: every dimension's size in the smaller model, which may differ from layer to layer, and the layers that stay. */
export interface PrunePlan {
  /** The smaller model's dimensions, its layers numbered from 0. */
  readonly sizes: Sizes;
  /** For each layer of the smaller model, the original layer it comes from, ascending. */
  readonly keptLayers: readonly number[];
}

/** Sizes of a model's dimensions by its axes. */
export const sizesByAxis = (model: Model, sizes: Sizes): AxisSizes =>
  Object.fromEntries(
    model.axes.map(({ name, dimensions }) => [name, simplest(dimensions.map((dimension) => sizeOf(dimension, sizes)))]),
  );

/** The current sizes of a model's axes. */
export const axisSizes = (model: Model): AxisSizes => sizesByAxis(model, model.sizes);

/**
 * Plans a cut to the wanted sizes.
 * @param wanted sizes by axis, or by dimension (`layers.3.ffn`)
 * @param layerOrder the original's layers in the order in which they would be cut; see `layerOrder` in depth.ts
 * @throws UsageError for a size that the model cannot be cut to
 */
export function planFor(model: Model, wanted: AxisSizes, layerOrder: readonly number[]): PrunePlan {
  const { layers: count = model.layerCount } = wanted;
  if (typeof count !== "number" || count > model.layerCount)
    throw new UsageError(
      `layers=${describeSize(count)}: the model has ${model.layerCount} layers; give one number, no more than that`,
    );
  const cut = new Set(layerOrder.slice(0, Math.max(0, model.layerCount - count)));
  const keptLayers = Array.from({ length: model.layerCount }, (_, i) => i).filter((layer) => !cut.has(layer));
  return planWithLayers(model, wanted, keptLayers);
}

/** The same with the layers that stay chosen explicitly. @throws UsageError for a size that the model cannot be cut to */
export function planWithLayers(model: Model, wanted: AxisSizes, keptLayers: readonly number[]): PrunePlan {
  checkNames(model, wanted);
  const smaller = wantedSizes(model, wanted);
  const sizes: Record<DimensionName, number> = {};
  for (const [original, name] of keptDimensions(model, keptLayers))
    sizes[name] = smaller.get(original) ?? sizeOf(original, model.sizes);
  sizes.layers = keptLayers.length;
  const plan = { sizes, keptLayers };
  checkPlan(model, plan);
  return plan;
}

/** @throws UsageError for a name that is neither an axis of the model nor a dimension of one */
export function checkNames(model: Model, wanted: AxisSizes): void {
  const axes = model.axes.map(({ name }) => name);
  const unknown = Object.keys(wanted).find(
    (name) => !axes.includes(name) && !model.axes.some(({ dimensions }) => dimensions.includes(name)),
  );
  if (unknown !== undefined)
    throw new UsageError(
      `the size ${unknown} is not understood: of a ${model.architecture} model ${axes.join(", ")} can be cut.${didYouMean(unknown, axes)}`,
    );
}

/** The new size of each of the original's dimensions for which one is wanted. */
function wantedSizes(model: Model, wanted: AxisSizes): Map<DimensionName, number> {
  const sizes = new Map<DimensionName, number>();
  for (const { name, dimensions } of model.axes) {
    const size = wanted[name];
    if (size === undefined || name === "layers") continue;
    if (typeof size !== "number" && size.length !== dimensions.length)
      throw new UsageError(`${name}: ${size.length} sizes are given for ${dimensions.length} layers`);
    const differ = new Set(dimensions.map((dimension) => sizeOf(dimension, model.sizes))).size > 1;
    dimensions.forEach((dimension, i) => {
      const before = sizeOf(dimension, model.sizes);
      // where layers differ, a single size is an upper limit for each
      sizes.set(dimension, typeof size !== "number" ? (size[i] ?? before) : differ ? Math.min(size, before) : size);
    });
  }
  for (const [name, size] of Object.entries(wanted))
    if (name in model.sizes && name !== "layers") sizes.set(name, largestOf(size));
  for (const { dimension, groupedBy } of model.groups) {
    // heads and their key-value heads are cut together when only one of the two is named
    const perGroup = membersPerGroup(model, dimension, groupedBy);
    const [members, groups] = [sizes.get(dimension), sizes.get(groupedBy)];
    if (members === undefined && groups !== undefined) sizes.set(dimension, groups * perGroup);
    if (members !== undefined && groups === undefined && perGroup === 1) sizes.set(groupedBy, members);
  }
  return sizes;
}

/** How many indices of a dimension belong to each of the one that groups it; 0 where there are none. */
const membersPerGroup = (model: Model, dimension: DimensionName, groupedBy: DimensionName): number =>
  sizeOf(dimension, model.sizes) / Math.max(1, sizeOf(groupedBy, model.sizes));

/** The original's dimensions that stay, each with its name in the smaller model, whose layers are numbered anew. */
function keptDimensions(model: Model, keptLayers: readonly number[]): Map<DimensionName, DimensionName> {
  const numbers = new Map(keptLayers.map((from, to) => [from, to]));
  const kept = new Map<DimensionName, DimensionName>();
  for (const original of Object.keys(model.sizes)) {
    const layered = model.layerDimensions.get(original);
    if (layered === undefined) {
      kept.set(original, original);
      continue;
    }
    const layer = numbers.get(layered.layer);
    if (layer !== undefined) kept.set(original, layerDimension(layer, layered.name));
  }
  return kept;
}

/** @throws UsageError naming the dimension when a plan exceeds the original's size, or its heads cannot be grouped */
export function checkPlan(model: Model, plan: PrunePlan): void {
  if (plan.keptLayers.length < 1 || plan.keptLayers.length > model.layerCount)
    throw new UsageError(`layers=${plan.keptLayers.length}: the model has ${model.layerCount}; at least 1 must stay`);
  const dimensions = keptDimensions(model, plan.keptLayers);
  const names = new Set(dimensions.values());
  const unknown = Object.keys(plan.sizes).find((name) => !names.has(name));
  if (unknown !== undefined) throw new UsageError(`${unknown} is not a dimension of this model`);
  const optional = new Set(model.axes.filter(({ isOptional }) => isOptional).flatMap((axis) => axis.dimensions));
  for (const [original, name] of dimensions) {
    if (name === "layers") continue;
    const [before, size] = [sizeOf(original, model.sizes), sizeOf(name, plan.sizes)];
    const least = optional.has(original) ? 0 : 1;
    if (!Number.isInteger(size) || size < least || size > before)
      throw new UsageError(
        `${name}=${size}: the model has ${before}; choose a whole number from ${least} to ${before}`,
      );
  }
  checkSomeStay(model, plan, dimensions);
  for (const { dimension, groupedBy } of model.groups) {
    const [name, groupName] = [dimensions.get(dimension), dimensions.get(groupedBy)];
    if (name === undefined || groupName === undefined) continue;
    const [size, groupCount] = [sizeOf(name, plan.sizes), sizeOf(groupName, plan.sizes)];
    if (size === 0 && groupCount === 0) continue;
    const maxPerGroup = membersPerGroup(model, dimension, groupedBy);
    if (size === 0 || size % groupCount !== 0 || size / groupCount > maxPerGroup)
      throw new UsageError(
        `${name}=${size} cannot be shared by ${model.layerDimensions.get(groupedBy)?.name}=${groupCount}; it must be a multiple of it and at most ${maxPerGroup} times it`,
      );
  }
}

/** @throws UsageError when every layer would do without a block */
function checkSomeStay(model: Model, plan: PrunePlan, dimensions: ReadonlyMap<DimensionName, DimensionName>): void {
  for (const axis of model.axes) {
    const sizes = axis.dimensions.flatMap((original) => {
      const name = dimensions.get(original);
      return name === undefined ? [] : sizeOf(name, plan.sizes);
    });
    if (sizes.length > 0 && sizes.every((size) => size === 0))
      throw new UsageError(`${axis.name}=0 in every layer: some must stay in at least one`);
  }
}

/** The indices of each original dimension that stay, ascending. Dimensions that are not cut are absent. */
export type KeptIndices = ReadonlyMap<DimensionName, Uint32Array>;

/**
 * Chooses what stays: the indices with the highest scores in every dimension, and of heads those within each kept group, in
 * their original order.
 * @throws CoppiceError when a dimension that is cut has no scores
 */
export function keptIndices(model: Model, plan: PrunePlan, scores: Scores): KeptIndices {
  const kept = new Map<DimensionName, Uint32Array>();
  const scoresOf = (name: DimensionName): Float32Array => {
    const found = scores.get(name);
    if (found === undefined) throw new CoppiceError(`${name} is to be cut but has no importance scores`);
    return found;
  };
  const grouped = new Map(model.groups.map(({ dimension, groupedBy }) => [dimension, groupedBy]));
  const groupNames = new Set(grouped.values());
  const dimensions = keptDimensions(model, plan.keptLayers);
  const sizeAfter = (original: DimensionName) => sizeOf(dimensions.get(original) ?? original, plan.sizes);
  for (const original of dimensions.keys()) {
    if (original === "layers" || groupNames.has(original)) continue;
    const [before, size] = [sizeOf(original, model.sizes), sizeAfter(original)];
    const groupedBy = grouped.get(original);
    if (groupedBy === undefined) {
      if (size < before) kept.set(original, highest(scoresOf(original), size));
      continue;
    }
    const groupsBefore = sizeOf(groupedBy, model.sizes);
    const groupsAfter = sizeAfter(groupedBy);
    if (size === before && groupsAfter === groupsBefore) continue;
    const groups = highest(scoresOf(groupedBy), groupsAfter);
    kept.set(groupedBy, groups);
    kept.set(original, withinGroups(scoresOf(original), groups, before / groupsBefore, size / groupsAfter));
  }
  return kept;
}

/** The indices with the highest scores within each of the groups. */
function withinGroups(scores: Float32Array, groups: Uint32Array, perGroup: number, keptPerGroup: number): Uint32Array {
  return Uint32Array.from(
    [...groups].flatMap((group) =>
      [...highest(scores.subarray(group * perGroup, (group + 1) * perGroup), keptPerGroup)].map(
        (i) => group * perGroup + i,
      ),
    ),
  );
}

/** The indices of the `count` highest values, ascending; of equal values the first ones. */
export function highest(values: Float32Array, count: number): Uint32Array {
  const order = Uint32Array.from(values.keys()).sort((a, b) => (values[b] as number) - (values[a] as number) || a - b);
  return order.slice(0, count).sort();
}
