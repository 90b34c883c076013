import { type DimensionName, layerDimension, type Model, type Sizes, sizeOf, splitLayer } from "../models/index.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import type { Scores } from "./scores.js";
import { type AxisSizes, largestOf, simplest } from "./sizes.js";

/** What to cut: every dimension's size in the smaller model, which may differ from layer to layer, and the layers that stay. */
export interface PrunePlan {
  /** The smaller model's dimensions, its layers numbered from 0. */
  readonly sizes: Sizes;
  /** For each layer of the smaller model, the original layer it comes from, ascending. */
  readonly keptLayers: readonly number[];
}

/** The current sizes of a model's axes. */
export const axisSizes = (model: Model): AxisSizes =>
  Object.fromEntries(
    model.axes.map(({ name, dimensions }) => [
      name,
      simplest(dimensions.map((dimension) => sizeOf(dimension, model.sizes))),
    ]),
  );

/**
 * Plans a cut to the wanted sizes.
 * @param wanted sizes by axis, or by dimension (`layers.3.ffn`)
 * @param layerOrder the original's layers in the order in which they would be cut; see `layerOrder` in depth.ts
 * @throws UsageError for a size that the model cannot be cut to
 */
export function planFor(model: Model, wanted: AxisSizes, layerOrder: readonly number[]): PrunePlan {
  const count = wanted.layers === undefined ? model.layerCount : largestOf(wanted.layers);
  const cut = new Set(layerOrder.slice(0, Math.max(0, model.layerCount - count)));
  const keptLayers = Array.from({ length: model.layerCount }, (_, i) => i).filter((layer) => !cut.has(layer));
  return planWithLayers(model, wanted, keptLayers);
}

/** The same with the layers that stay chosen explicitly. @throws UsageError for a size that the model cannot be cut to */
export function planWithLayers(model: Model, wanted: AxisSizes, keptLayers: readonly number[]): PrunePlan {
  checkNames(model, wanted);
  const smaller = wantedSizes(model, wanted);
  const sizes: Record<DimensionName, number> = {};
  for (const [name, size] of Object.entries(model.sizes))
    if (!model.layerDimensions.has(name)) sizes[name] = smaller.get(name) ?? size;
  sizes.layers = keptLayers.length;
  keptLayers.forEach((from, to) => {
    for (const [name, size] of Object.entries(model.sizes)) {
      const layered = model.layerDimensions.get(name);
      if (layered?.layer === from) sizes[layerDimension(to, layered.name)] = smaller.get(name) ?? size;
    }
  });
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
      `the size ${unknown} is not understood: of a ${model.architecture} model ${axes.join(", ")} can be cut`,
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
    const perGroup = sizeOf(dimension, model.sizes) / sizeOf(groupedBy, model.sizes);
    const [members, groups] = [sizes.get(dimension), sizes.get(groupedBy)];
    if (members === undefined && groups !== undefined) sizes.set(dimension, groups * perGroup);
    if (members !== undefined && groups === undefined && perGroup === 1) sizes.set(groupedBy, members);
  }
  return sizes;
}

/** The original model's name for a dimension of the smaller one. */
export function originalDimension(plan: PrunePlan, name: DimensionName): DimensionName {
  const layered = splitLayer(name);
  if (layered === undefined) return name;
  return layerDimension(plan.keptLayers[layered.layer] ?? -1, layered.name);
}

/** @throws UsageError naming the dimension when a plan exceeds the original's size, or its heads cannot be grouped */
export function checkPlan(model: Model, plan: PrunePlan): void {
  if (plan.keptLayers.length < 1 || plan.keptLayers.length > model.layerCount)
    throw new UsageError(`layers=${plan.keptLayers.length}: the model has ${model.layerCount}; at least 1 must stay`);
  for (const [name, size] of Object.entries(plan.sizes)) {
    if (name === "layers") continue;
    const before = model.sizes[originalDimension(plan, name)];
    if (before === undefined) throw new UsageError(`${name} is not a dimension of this model`);
    if (!Number.isInteger(size) || size < 1 || size > before)
      throw new UsageError(`${name}=${size}: the model has ${before}; choose a whole number from 1 to ${before}`);
  }
  const groups = new Map(model.groups.map(({ dimension, groupedBy }) => [dimension, groupedBy]));
  for (const [name, size] of Object.entries(plan.sizes)) {
    const groupedBy = groups.get(originalDimension(plan, name));
    if (groupedBy === undefined) continue;
    const groupCount = sizeOf(inLayerOf(name, groupedBy), plan.sizes);
    const maxPerGroup = sizeOf(originalDimension(plan, name), model.sizes) / sizeOf(groupedBy, model.sizes);
    if (size % groupCount !== 0 || size / groupCount > maxPerGroup)
      throw new UsageError(
        `${name}=${size} cannot be shared by ${model.layerDimensions.get(groupedBy)?.name}=${groupCount}; it must be a multiple of it and at most ${maxPerGroup} times it`,
      );
  }
}

/** The smaller model's name for an original dimension, in the layer of another of the smaller model's dimensions. */
function inLayerOf(sibling: DimensionName, original: DimensionName): DimensionName {
  const [layered, named] = [splitLayer(sibling), splitLayer(original)];
  return layered === undefined || named === undefined ? original : layerDimension(layered.layer, named.name);
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
  for (const [name, size] of Object.entries(plan.sizes)) {
    const original = originalDimension(plan, name);
    const before = model.sizes[original];
    if (name === "layers" || before === undefined || groupNames.has(original)) continue;
    const groupedBy = grouped.get(original);
    if (groupedBy === undefined) {
      if (size < before) kept.set(original, highest(scoresOf(original), size));
      continue;
    }
    const groupsBefore = sizeOf(groupedBy, model.sizes);
    const groupsAfter = sizeOf(inLayerOf(name, groupedBy), plan.sizes);
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
