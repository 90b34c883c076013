import type { Model } from "../models/index.js";
import { type AxisSize, axisSizes } from "../prune/index.js";

/** Each axis's size before and after a cut. */
export type PlanSummary = Readonly<Record<string, { readonly from: AxisSize; readonly to: AxisSize }>>;

/** Compares the sizes of two models: a number where all layers agree, a list where they differ. */
export function summarizePlan(before: Model, after: Model): PlanSummary {
  const [from, to] = [axisSizes(before), axisSizes(after)];
  return Object.fromEntries(Object.entries(from).map(([axis, size]) => [axis, { from: size, to: to[axis] ?? size }]));
}
