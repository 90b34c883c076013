import { CoppiceError } from "../system/errors.js";

/**
 * The name of a dimension of a model: `hidden`, `vocab`, `headDim`, `layers.3.ffn`, `layers.3.heads`, ... Everything that
 * has to do with sizes (pruning, counting, memory estimates) goes by these names.
 */
export type DimensionName = string;

/** The size of each dimension. */
export type Sizes = Readonly<Record<DimensionName, number>>;

/**
 * One axis of a parameter: a product of dimensions, outermost first, written `layers.3.heads x headDim`. Index
 * h · headDim + d of the axis belongs to head h.
 */
export type Axis = string;

/** How a parameter starts when a model is trained from scratch. */
export type Initialisation = "normal" | "ones" | "zeros";

/** A parameter of a model: its axes, outermost first as in PyTorch. */
export interface ParameterSpec {
  readonly name: string;
  readonly axes: readonly Axis[];
  readonly initialisation: Initialisation;
  /** The tapped activation that this matrix multiplies, where it multiplies one. */
  readonly input?: string;
}

/** The dimensions an axis is the product of, outermost first. */
export const factorsOf = (axis: Axis): DimensionName[] => axis.split(" x ");

/** The size of an axis. @throws CoppiceError when a dimension has no size */
export function axisSize(axis: Axis, sizes: Sizes): number {
  return factorsOf(axis).reduce((product, name) => {
    const size = sizes[name];
    if (size === undefined) throw new CoppiceError(`the dimension ${name} has no size`);
    return product * size;
  }, 1);
}

/** The shape of a parameter, outermost axis first. */
export const shapeOf = (spec: ParameterSpec, sizes: Sizes): number[] => spec.axes.map((axis) => axisSize(axis, sizes));

/** Total number of elements of a table of parameters. */
export const countParameters = (specs: readonly ParameterSpec[], sizes: Sizes): number =>
  specs.reduce((total, spec) => total + shapeOf(spec, sizes).reduce((a, b) => a * b, 1), 0);

/** The dimension of a layer: `layerDimension(3, "ffn")` is `layers.3.ffn`. */
export const layerDimension = (layer: number, name: string): DimensionName => `layers.${layer}.${name}`;

/** Splits `layers.3.ffn` into its layer and the name within it; undefined for a dimension of the whole model. */
export function splitLayer(name: DimensionName): { readonly layer: number; readonly name: string } | undefined {
  const match = /^layers\.(\d+)\.(.+)$/.exec(name);
  return match === null ? undefined : { layer: Number(match[1]), name: match[2] as string };
}
