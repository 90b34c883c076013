import { DTYPE_ID, type DType, QUANTIZED_DTYPES } from "../ggml/dtype.js";
import type { Functions, Pointer } from "../ggml/functions.js";
import type { KernelName, Kernels } from "../ggml/kernels.js";
import { elementAt } from "../system/arrays.js";
import { MissingKernelError, ShapeError } from "../system/errors.js";
import type { Gradient } from "./gradient.js";
import type { Graph } from "./graph.js";
import { checkShape, describe, nativeSizes, type Shape, type Tensor } from "./tensor.js";

/** A node computed by one of our own kernels. */
export interface KernelUse {
  readonly name: KernelName;
  /** The output reuses this tensor's memory. The kernel finds it as its first source. */
  readonly inPlace?: Tensor | undefined;
  /** Bits for the kernel; 0 by default. */
  readonly flags?: number | undefined;
  /** A number for the kernel; 0 by default. */
  readonly value?: number | undefined;
}

/** For an op's `build`: ggml's functions and the context that owns new tensor records. */
export interface Native {
  readonly f: Functions;
  readonly context: Pointer;
}

/** Inputs, output and attributes of a recorded step, for its gradient. */
export interface Step<Inputs extends readonly Tensor[], Attributes> {
  readonly inputs: Inputs;
  readonly output: Tensor;
  readonly attributes: Attributes;
}

export interface OpDefinition<Inputs extends readonly Tensor[], Attributes> {
  /** The element types that each input may have; only f32 by default. */
  readonly accepts?: readonly (readonly DType[] | undefined)[] | undefined;
  /** The output's shape. @throws ShapeError naming the inputs when they do not fit */
  readonly shape: (inputs: Inputs, attributes: Attributes) => Shape;
  /** The output's type; f32 by default. */
  readonly dtype?: ((inputs: Inputs, attributes: Attributes) => DType) | undefined;
  /** Our own kernel, used on devices with kernels. */
  readonly kernel?: ((inputs: Inputs, attributes: Attributes, g: Graph) => KernelUse) | undefined;
  /** Whether the output is a view of the first input's memory. */
  readonly isView?: boolean | undefined;
  /** Makes the native node, after the shape rule has passed. */
  readonly build?: ((native: Native, inputs: Inputs, attributes: Attributes) => Pointer) | undefined;
  /** Composes the op from others, for devices that have neither. */
  readonly composed?: ((g: Graph, inputs: Inputs, attributes: Attributes) => Tensor) | undefined;
  /** Whether the gradient reads the output, whose memory is then not reused before the gradient is computed. */
  readonly readsOutput?: boolean | undefined;
  /**
   * Whether the output costs so little that a gradient which reads it as an input computes it again (see `Graph.again`), rather than that
   * it is kept until then.
   */
  readonly isCheap?: boolean | undefined;
  /** Vector-Jacobian product: from the gradient of the output, dy, to that of each input. */
  readonly vjp?: ((g: Graph, dy: Tensor, step: Step<Inputs, Attributes>) => readonly Gradient[]) | undefined;
}

/** A defined op: `(graph, ...inputs, attributes) => tensor`. */
export type Op<Inputs extends readonly Tensor[], Attributes = undefined> = (
  g: Graph,
  ...rest: Attributes extends undefined ? Inputs : [...Inputs, Attributes]
) => Tensor;

/**
 * Defines an op: its shape rule, its forward node and its gradient, side by side like the row of a table (see the files in
 * `ops/`).
 * @param arity the number of inputs
 * @returns a function `(graph, ...inputs, attributes) => tensor` that throws ShapeError when the inputs do not fit, and
 * CoppiceError when the device cannot compute the op
 */
export function defineOp<Inputs extends readonly Tensor[], Attributes = undefined>(
  name: string,
  arity: Inputs["length"],
  definition: OpDefinition<Inputs, Attributes>,
): Op<Inputs, Attributes> {
  const op: Op<Inputs, Attributes> = (g, ...rest) => {
    const inputs = rest.slice(0, arity) as unknown as Inputs;
    const attributes = rest[arity] as Attributes;
    checkTypes(name, inputs, definition.accepts);
    const shape = definition.shape(inputs, attributes);
    checkShape(name, shape);
    const requiresGrad = definition.vjp !== undefined && g.isRecording && inputs.some((input) => input.requiresGrad);
    const description = {
      name: `${name}(${inputs.map((input) => input.name).join(", ")})`.slice(0, 120),
      shape,
      dtype: definition.dtype?.(inputs, attributes) ?? "f32",
      requiresGrad,
    };
    const native = { f: g.functions, context: g.nativeContext() };
    const kernels = definition.kernel === undefined ? undefined : g.backend.kernels;
    const use = kernels === undefined ? undefined : definition.kernel?.(inputs, attributes, g);
    const handle =
      kernels !== undefined && use !== undefined
        ? kernelNode(native, kernels, shape, inputs, use)
        : definition.build?.(native, inputs, attributes);
    // what is computed from weights alone, a transpose, is where they are
    const place = inputs.every((input) => input.place !== undefined) ? inputs[0]?.place : undefined;
    let output: Tensor;
    if (handle !== undefined && (kernels !== undefined || g.backend.supports(handle))) {
      output = { ...description, handle, place };
      g.schedule(name, output, inputs);
      const [first] = inputs;
      if (definition.isView && first !== undefined) g.share(output, first);
      if (use?.inPlace !== undefined) g.overwrite(output, use.inPlace);
    } else {
      const { composed } = definition;
      if (composed === undefined)
        throw new MissingKernelError(
          `${g.backend.device.name} cannot compute ${description.name} [${shape.join(", ")}]`,
        );
      output = { ...description, handle: g.withoutGradient(() => composed(g, inputs, attributes)).handle };
    }
    const { vjp } = definition;
    if (vjp === undefined) return output;
    if (definition.readsOutput && requiresGrad) g.keep(output);
    const step = {
      inputs,
      attributes,
      get output(): Tensor {
        if (!definition.readsOutput)
          throw new ShapeError(`the gradient of ${name} reads its output: set readsOutput in its definition`);
        return output;
      },
    };
    g.record({ output, inputs, vjp: (dy) => vjp(g, dy, step) });
    if (definition.isCheap && requiresGrad) g.costsLittle(output, () => op(g, ...rest));
    return output;
  };
  return op;
}

/** ggml's constant for "on all threads". */
const ALL_THREADS = -1;

function kernelNode(
  { f, context }: Native,
  kernels: Kernels,
  shape: Shape,
  inputs: readonly Tensor[],
  { name, inPlace, flags = 0, value = 0 }: KernelUse,
): Pointer {
  // ggml inserts the tensor whose memory is reused before the other sources
  const others = inputs.filter((input) => input !== inPlace);
  const sources = BigUint64Array.from(others, ({ handle }) => handle);
  const bits = BigInt(elementAt(new Uint32Array(Float32Array.of(value).buffer), 0));
  const settings = BigInt.asIntN(64, BigInt(flags) | (bits << 32n)) as Pointer;
  const run = [sources, sources.length, kernels.address(name), ALL_THREADS, settings] as const;
  return inPlace === undefined
    ? f.ggml_custom_4d(context, DTYPE_ID.f32, ...nativeSizes(shape), ...run)
    : f.ggml_custom_inplace(context, inPlace.handle, ...run);
}

export const FLOATS: readonly DType[] = ["f32", "f16", "bf16"];
/** Types of weights that are only read. */
export const WEIGHTS: readonly DType[] = [...FLOATS, ...QUANTIZED_DTYPES];
export const INDICES: readonly DType[] = ["i32"];
export const ANY: readonly DType[] = [...FLOATS, ...INDICES];
const F32: readonly DType[] = ["f32"];

/** Checks types, because ggml ends the process over an unexpected one. @throws ShapeError naming the tensor */
function checkTypes(
  name: string,
  inputs: readonly Tensor[],
  accepts: OpDefinition<readonly Tensor[], unknown>["accepts"],
): void {
  inputs.forEach((input, i) => {
    const allowed = accepts?.[i] ?? F32;
    if (!allowed.includes(input.dtype))
      throw new ShapeError(`${name}: ${describe(input)} must be ${allowed.join(" or ")}`);
  });
}

/** A native view of a tensor with another shape of as many elements. */
export const reshaped = ({ f, context }: Native, handle: Pointer, shape: Shape): Pointer =>
  f.ggml_reshape_4d(context, handle, ...nativeSizes(shape));

/** An uninitialized native tensor that only lends its shape, as ggml's `repeat` needs. */
export const shapeOnly = ({ f, context }: Native, shape: Shape): Pointer =>
  f.ggml_new_tensor_4d(context, DTYPE_ID.f32, ...nativeSizes(shape));
