import { CoppiceError, UsageError } from "../system/errors.js";

/** A size that all layers have, or one for each dimension of the axis where they differ. */
export type AxisSize = number | readonly number[];

/** Sizes by the model's axes: `hidden`, `ffn`, `heads`, ..., `layers`. */
export type AxisSizes = Readonly<Record<string, AxisSize>>;

/** One number when all sizes are equal, else the list. */
export const simplest = (sizes: readonly number[]): AxisSize =>
  sizes[0] !== undefined && sizes.every((size) => size === sizes[0]) ? sizes[0] : sizes;

/** The largest of an axis's sizes; 0 for an axis that there is not. */
export const largestOf = (size: AxisSize | undefined): number => Math.max(0, ...[size ?? 0].flat());

/** The size of an axis. @throws CoppiceError when it has none */
export function sizeOn(axis: string, sizes: AxisSizes): AxisSize {
  const size = sizes[axis];
  if (size === undefined) throw new CoppiceError(`the axis ${axis} has no size`);
  return size;
}

/**
 * Reads `hidden=4096,ffn=11520`; sizes that differ from layer to layer are written `ffn=1024/768/1024`.
 * @throws UsageError for anything else
 */
export function parseSizes(text: string): AxisSizes {
  const sizes: Record<string, AxisSize> = {};
  for (const part of text.split(",")) {
    const [, name, value] = /^\s*([\w.]+)\s*=\s*(\d+(?:\/\d+)*)\s*$/.exec(part) ?? [];
    if (name === undefined || value === undefined)
      throw new UsageError(
        `the size "${part}" is not understood; sizes are hidden=N, ffn=N, heads=N, kvHeads=N, layers=N; for each layer ffn=N/N/N, for one layers.2.ffn=N`,
      );
    const numbers = value.split("/").map(Number);
    sizes[name] = value.includes("/") ? numbers : Number(value);
  }
  return sizes;
}

/** A size as it is written on the command line: `1024`, or `1024/768/1024` where layers differ. */
export const describeSize = (size: AxisSize): string => [size].flat().join("/");

/** Sizes as they are written on the command line. */
export const describeSizes = (sizes: AxisSizes): string =>
  Object.entries(sizes)
    .map(([axis, size]) => `${axis}=${describeSize(size)}`)
    .join(",");
