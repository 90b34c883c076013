import { CoppiceError } from "../system/errors.js";

/**
 * The name of a dimension of a model: `hidden`, `vocab`, `layers.3.ffn`, `layers.3.heads`, ... Everything that deals with sizes
 * (pruning, counting, memory estimates) uses these names.
 */
export type DimensionName = string;

/** The place of a dimension in its layer: `layers.3.ffn` is `ffn` in layer 3. */
export interface LayerDimension {
  readonly layer: number;
  readonly name: string;
}

/** The size of each dimension. */
export type Sizes = Readonly<Record<DimensionName, number>>;

/**
 * One axis of a parameter: a dimension; a product of axes, outermost first (index h · headDim + d of heads x headDim belongs to
 * head h); or a concatenation of axes, as in a matrix that holds queries, keys and values.
 */
export type Axis = DimensionName | { readonly product: readonly Axis[] } | { readonly concat: readonly Axis[] };

/** The initial values of a parameter when a model is trained from scratch. */
export type Initialization = "normal" | "ones" | "zeros" | { readonly constant: number };

/** A parameter of a model. Its axes are outermost first, as in PyTorch; a scalar has none. */
export interface ParameterSpec {
  /** Its name in a Hugging Face checkpoint, without any prefix of a wrapper. */
  readonly name: string;
  readonly axes: readonly Axis[];
  readonly initialization: Initialization;
  /** The tapped activation that this matrix multiplies, if any. */
  readonly input?: string | undefined;
  /** Not to be trained: a constant that checkpoints store. */
  readonly fixed?: boolean | undefined;
  /** The layer it belongs to; undefined for parameters of the whole model. */
  readonly layer?: number | undefined;
  /** Its name within its layer; the whole name for parameters of the whole model. */
  readonly local: string;
  /** Whether a Hugging Face checkpoint stores it with its two axes swapped (GPT-2). */
  readonly transposed?: boolean | undefined;
}

/** The size of a dimension. @throws CoppiceError naming the dimension when it has no size */
export function sizeOf(name: DimensionName, sizes: Sizes): number {
  const size = sizes[name];
  if (size === undefined) throw new CoppiceError(`the dimension ${name} has no size`);
  return size;
}

/** The size of an axis. @throws CoppiceError when a dimension has no size */
export function axisSize(axis: Axis, sizes: Sizes): number {
  if (typeof axis === "string") return sizeOf(axis, sizes);
  return "product" in axis
    ? axis.product.reduce((product, factor) => product * axisSize(factor, sizes), 1)
    : axis.concat.reduce((sum, part) => sum + axisSize(part, sizes), 0);
}

/** Every dimension in an axis. */
export function dimensionsOf(axis: Axis): DimensionName[] {
  if (typeof axis === "string") return [axis];
  return ("product" in axis ? axis.product : axis.concat).flatMap(dimensionsOf);
}

/** An axis with its dimensions renamed. */
export function renamed(axis: Axis, rename: (name: DimensionName) => DimensionName): Axis {
  if (typeof axis === "string") return rename(axis);
  return "product" in axis
    ? { product: axis.product.map((factor) => renamed(factor, rename)) }
    : { concat: axis.concat.map((part) => renamed(part, rename)) };
}

/** An axis as it is written in messages: `layers.3.heads x layers.3.headDim`, `a + b`. */
export function describeAxis(axis: Axis): string {
  if (typeof axis === "string") return axis;
  return "product" in axis ? axis.product.map(describeAxis).join(" x ") : axis.concat.map(describeAxis).join(" + ");
}

/** The shape of a parameter, outermost axis first. */
export const shapeOf = (spec: ParameterSpec, sizes: Sizes): number[] => spec.axes.map((axis) => axisSize(axis, sizes));

/** Total number of elements of parameters. */
export const countParameters = (specs: readonly ParameterSpec[], sizes: Sizes): number =>
  specs.reduce((total, spec) => total + shapeOf(spec, sizes).reduce((a, b) => a * b, 1), 0);

/** The dimension of a layer: `layerDimension(3, "ffn")` is `layers.3.ffn`. */
export const layerDimension = (layer: number, name: string): DimensionName => `layers.${layer}.${name}`;
