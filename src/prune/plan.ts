import { type DimensionName, layerDimension, type Model, type Sizes, splitLayer } from "../models/index.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import type { Scores } from "./importance.js";

/**
 * What to cut: the size of every dimension of the smaller model, and which of the original's layers it keeps. Sizes may
 * differ from layer to layer.
 */
export interface PrunePlan {
  /** The smaller model's dimensions; its layers are numbered anew. */
  readonly sizes: Sizes;
  /** For each layer of the smaller model, the original layer it comes from, ascending. */
  readonly keptLayers: readonly number[];
}

/** Sizes that apply to every layer alike: `hidden`, `layers`, and `ffn`, `heads`, `kvHeads` for each layer. */
export const UNIFORM_AXES = ["hidden", "ffn", "heads", "kvHeads", "layers"] as const;
export type UniformAxis = (typeof UNIFORM_AXES)[number];
export type UniformSizes = Readonly<Record<UniformAxis, number>>;

/** The sizes of a model whose layers are all alike. @throws CoppiceError when they are not */
export function uniformSizes(model: Model): UniformSizes {
  const sizeOf = (axis: UniformAxis): number => {
    if (axis === "hidden" || axis === "layers") return model.sizes[axis] ?? 0;
    const all = new Set(Array.from({ length: model.layerCount }, (_, i) => model.sizes[layerDimension(i, axis)]));
    if (all.size !== 1)
      throw new CoppiceError(`the layers of this model have different ${axis} sizes (${[...all].join(", ")})`);
    return [...all][0] ?? 0;
  };
  return {
    hidden: sizeOf("hidden"),
    ffn: sizeOf("ffn"),
    heads: sizeOf("heads"),
    kvHeads: sizeOf("kvHeads"),
    layers: sizeOf("layers"),
  };
}

/**
 * Makes a plan of uniform sizes.
 * @param layerOrder the original layers, those to be cut first at the front; see `depth.ts`
 */
export function uniformPlan(model: Model, wanted: Partial<UniformSizes>, layerOrder: readonly number[]): PrunePlan {
  const count = wanted.layers ?? model.layerCount;
  const cut = new Set(layerOrder.slice(0, model.layerCount - count));
  const keptLayers = Array.from({ length: model.layerCount }, (_, i) => i).filter((layer) => !cut.has(layer));
  return planWithLayers(model, wanted, keptLayers);
}

/** The same for an explicit choice of layers. @throws UsageError for a size that cannot be cut to */
export function planWithLayers(model: Model, wanted: Partial<UniformSizes>, keptLayers: readonly number[]): PrunePlan {
  const sizes: Record<DimensionName, number> = {};
  for (const [name, size] of Object.entries(model.sizes)) {
    const layered = splitLayer(name);
    if (layered === undefined) sizes[name] = name === "hidden" ? (wanted.hidden ?? size) : size;
  }
  sizes.layers = keptLayers.length;
  keptLayers.forEach((from, to) => {
    for (const [name, size] of Object.entries(model.sizes)) {
      const layered = splitLayer(name);
      if (layered?.layer !== from) continue;
      sizes[layerDimension(to, layered.name)] = wanted[layered.name as UniformAxis] ?? size;
    }
  });
  const plan = { sizes, keptLayers };
  checkPlan(model, plan);
  return plan;
}

/** A dimension's name in the original model, for a dimension of the smaller one. */
export function originalDimension(plan: PrunePlan, name: DimensionName): DimensionName {
  const layered = splitLayer(name);
  if (layered === undefined) return name;
  return layerDimension(plan.keptLayers[layered.layer] ?? -1, layered.name);
}

/** @throws UsageError naming the dimension when a plan asks for more than there is, or heads that cannot be grouped */
export function checkPlan(model: Model, plan: PrunePlan): void {
  if (plan.keptLayers.length < 1 || plan.keptLayers.length > model.layerCount)
    throw new UsageError(`layers=${plan.keptLayers.length}: the model has ${model.layerCount}; at least 1 must stay`);
  for (const [name, size] of Object.entries(plan.sizes)) {
    if (name === "layers") continue;
    const before = model.sizes[originalDimension(plan, name)];
    if (before === undefined) throw new UsageError(`${name} is no dimension of this model`);
    if (!Number.isInteger(size) || size < 1 || size > before)
      throw new UsageError(`${name}=${size}: the model has ${before}; choose a whole number from 1 to ${before}`);
  }
  for (let layer = 0; layer < plan.keptLayers.length; layer++) {
    const sizeIn = (sizes: Sizes, at: number, name: string) => sizes[layerDimension(at, name)] ?? 1;
    const [heads, kvHeads] = [sizeIn(plan.sizes, layer, "heads"), sizeIn(plan.sizes, layer, "kvHeads")];
    const from = plan.keptLayers[layer] ?? 0;
    const group = sizeIn(model.sizes, from, "heads") / sizeIn(model.sizes, from, "kvHeads");
    if (heads % kvHeads !== 0 || heads / kvHeads > group)
      throw new UsageError(
        `layer ${layer}: heads=${heads} cannot be shared by kvHeads=${kvHeads}; heads must be a multiple of kvHeads and at most ${group} times it`,
      );
  }
}

/** Which indices of each original dimension stay, ascending. A dimension that is not cut is absent. */
export type KeptIndices = ReadonlyMap<DimensionName, Uint32Array>;

/**
 * Chooses what stays: the highest scores of every dimension, heads inside each kept group, in their original order.
 * @throws CoppiceError when a dimension is cut that has no scores
 */
export function keptIndices(model: Model, plan: PrunePlan, scores: Scores): KeptIndices {
  const kept = new Map<DimensionName, Uint32Array>();
  const scoresOf = (name: DimensionName): Float32Array => {
    const found = scores.get(name);
    if (found === undefined) throw new CoppiceError(`${name} is to be cut but has no importance scores`);
    return found;
  };
  const grouped = new Map(model.headGroups.map((group) => [group.heads, group.kvHeads]));
  const groupNames = new Set(grouped.values());
  for (const [name, size] of Object.entries(plan.sizes)) {
    const original = originalDimension(plan, name);
    const before = model.sizes[original];
    if (name === "layers" || before === undefined || groupNames.has(original)) continue;
    const kvName = grouped.get(original);
    if (kvName === undefined) {
      if (size < before) kept.set(original, highest(scoresOf(original), size));
      continue;
    }
    const kvBefore = model.sizes[kvName] ?? 1;
    const layered = splitLayer(name);
    const kvSize = plan.sizes[layerDimension(layered?.layer ?? 0, splitLayer(kvName)?.name ?? "")] ?? kvBefore;
    if (size === before && kvSize === kvBefore) continue;
    const groups = highest(scoresOf(kvName), kvSize);
    kept.set(kvName, groups);
    const headScores = scoresOf(original);
    const perGroup = before / kvBefore;
    const keptPerGroup = size / kvSize;
    const heads = [...groups].flatMap((group) =>
      [...highest(headScores.subarray(group * perGroup, (group + 1) * perGroup), keptPerGroup)].map(
        (i) => group * perGroup + i,
      ),
    );
    kept.set(original, Uint32Array.from(heads));
  }
  return kept;
}

/** The indices of the `count` highest values, ascending; of equal values the first. */
export function highest(values: Float32Array, count: number): Uint32Array {
  const order = Uint32Array.from(values.keys()).sort((a, b) => (values[b] ?? 0) - (values[a] ?? 0) || a - b);
  return order.slice(0, count).sort();
}
