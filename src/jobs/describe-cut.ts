import { type AxisSize, describeSize } from "../prune/sizes.js";

/** Says of each axis that was cut what became of it: `ffn 1536 to 1024`. */
export const describeCut = (
  plan: Readonly<Record<string, { readonly from: AxisSize; readonly to: AxisSize }>>,
): string[] =>
  Object.entries(plan)
    .map(([axis, { from, to }]) => [axis, describeSize(from), describeSize(to)] as const)
    .filter(([, from, to]) => from !== to)
    .map(([axis, from, to]) => `${axis} ${from} to ${to}`);
