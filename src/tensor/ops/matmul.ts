import { isQuantized } from "../../ggml/dtype.js";
import { ShapeError } from "../../system/errors.js";
import type { Gradient } from "../gradient.js";
import type { Graph } from "../graph.js";
import { defineOp, FLOATS, type Op, WEIGHTS } from "../op.js";
import { axisFromEnd, describe, elementCount, type Shape, sameShape, sizesOf, type Tensor } from "../tensor.js";
import { add, assign, PRECISION_F32 } from "./elementwise.js";
import { operand, reshape, transpose, transposedOperand } from "./shape.js";

/** Bits of the kernel's flags. */
const FLAG = { leftTransposed: 1, rightTransposed: 2, add: 4, bf16: 8, lower: 16 };

interface KernelProduct {
  /** [rows, columns] of the result. */
  readonly rows: number;
  readonly columns: number;
  readonly flags: number;
}

/**
 * A product by our kernel, which reads either operand along either axis and converts on the fly, so nothing is copied first:
 * result[.., i, j] is the sum over the shared axis of row[.., i] times column[.., j].
 */
const kernelProduct: Op<[column: Tensor, row: Tensor], KernelProduct> = defineOp("matmul", 2, {
  accepts: [FLOATS, FLOATS],
  shape: ([, row], { rows, columns }) => [...row.shape.slice(0, -2), rows, columns],
  kernel: (_, { flags }, g) => ({ name: "matmul", flags: flags | (g.computeType === "bf16" ? FLAG.bf16 : 0) }),
});

/** The same, added to `sum` in place. */
const kernelProductInto: Op<[sum: Tensor, column: Tensor, row: Tensor], KernelProduct> = defineOp("matmul", 3, {
  accepts: [undefined, FLOATS, FLOATS],
  shape: ([sum]) => sum.shape,
  kernel: ([sum], { flags }, g) => ({
    name: "matmul",
    inPlace: sum,
    flags: flags | FLAG.add | (g.computeType === "bf16" ? FLAG.bf16 : 0),
  }),
});

/** a bᵀ by dot products: [..., n, k] x [..., m, k] -> [..., n, m]. */
const dotProducts: Op<[a: Tensor, b: Tensor]> = defineOp("matmul", 2, {
  accepts: [undefined, WEIGHTS],
  shape: ([a, b]) => [...a.shape.slice(0, -1), axisFromEnd(b.shape, 2)],
  build: ({ f, context }, [a, b]) => {
    const node = f.ggml_mul_mat(context, b.handle, a.handle);
    if (b.dtype === "f32") f.ggml_mul_mat_set_prec(node, PRECISION_F32);
    return node;
  },
});

const outerShape = (a: Tensor, n: number): Shape => [...a.shape.slice(0, -2), n, axisFromEnd(a.shape, 1)];

/** bᵀ a by adding up rows: a [..., k, m], b [..., k, n] -> [..., n, m]. f32. */
const outerProducts: Op<[a: Tensor, b: Tensor]> = defineOp("outerProducts", 2, {
  shape: ([a, b]) => outerShape(a, axisFromEnd(b.shape, 1)),
  build: ({ f, context }, [a, b]) => f.ggml_out_prod(context, a.handle, b.handle),
});

/** The same with b transposed, [..., n, k], which is read without a copy. */
const outerProductsTransposed: Op<[a: Tensor, b: Tensor]> = defineOp("outerProductsTransposed", 2, {
  shape: ([a, b]) => outerShape(a, axisFromEnd(b.shape, 2)),
  build: ({ f, context }, [a, b]) => f.ggml_out_prod(context, a.handle, f.ggml_permute(context, b.handle, 1, 0, 2, 3)),
});

/** On the CPU, sums of at most so many terms are faster by rows than by dot products (measured: 10x at 8, 2x at 32). */
const SHORT_SUM = 32;
/** Batches of matrices up to this width are cheaper to add up by rows than to transpose. */
const NARROW = 64;

const rowwise = (g: Graph, ...tensors: readonly Tensor[]): boolean =>
  g.backend.device.kind === "cpu" && tensors.every(({ dtype }) => dtype === "f32");

/** The product with its gradient. `value` is the computed product. */
const recorded: Op<[a: Tensor, b: Tensor, value: Tensor]> = defineOp("matmul", 3, {
  accepts: [undefined, WEIGHTS],
  shape: ([, , value]) => value.shape,
  build: (_native, [, , value]) => value.handle,
  vjp: (g, dy, { inputs: [a, b] }) => [leftGradient(g, dy, b), rightGradient(g, dy, () => g.again(a)), null],
});

/** The product by a transposed matrix, a b: [n, k] x [k, m] -> [n, m], with its gradient. */
const recordedTransposed: Op<[a: Tensor, b: Tensor, value: Tensor]> = defineOp("matmul", 3, {
  accepts: [undefined, FLOATS],
  shape: ([, , value]) => value.shape,
  build: (_native, [, , value]) => value.handle,
  vjp: (g, dy, { inputs: [a, b] }) => [
    { value: () => product(g, dy, b) },
    rightGradient(g, g.again(a), () => dy),
    null,
  ],
});

/** a bᵀ, computed in the way that suits the device, the types and the length of the sum. */
function product(g: Graph, a: Tensor, b: Tensor): Tensor {
  if (isQuantized(b.dtype)) return dotProducts(g, a, b);
  if (g.backend.kernels !== undefined)
    return kernelProduct(g, b, a, { rows: axisFromEnd(a.shape, 2), columns: axisFromEnd(b.shape, 2), flags: 0 });
  if (axisFromEnd(a.shape, 1) <= SHORT_SUM && rowwise(g, a, b)) return outerProductsTransposed(g, transpose(g, b), a);
  return dotProducts(g, a, operand(g, b));
}

/**
 * Adds aᵀ b to a sum in f32, in place, for statistics. Where the graph computes in bf16, by kernels of ours that
 * do, a and b are rounded to it, or to integers with a scale: aᵀ a stays exactly the moments of the rounded rows, and so positive semidefinite. Make the result an effect of the graph.
 * a: [rows, m], b: [rows, n], sum: [m, n]
 */
export function addProducts(g: Graph, sum: Tensor, a: Tensor, b: Tensor): Tensor {
  const [rows, m] = sizesOf(a, 2);
  const [others, n] = sizesOf(b, 2);
  if (rows !== others || !sameShape(sum.shape, [m, n]))
    throw new ShapeError(`the transpose of ${describe(a)} times ${describe(b)} cannot be added to ${describe(sum)}`);
  if (g.backend.kernels === undefined)
    return assign(g, add(g, sum, dotProducts(g, transpose(g, a), transpose(g, b))), sum);
  return rowProductsInto(g, sum, b, a, { lower: false });
}

/**
 * Adds aᵀ a to a sum, in place, as {@link addProducts} does, on and below the diagonal only: above it the sum's values are undefined
 * afterwards. a: [rows, m], sum: [m, m]
 */
export function addGram(g: Graph, sum: Tensor, a: Tensor): Tensor {
  const [, m] = sizesOf(a, 2);
  if (g.backend.kernels === undefined || !sameShape(sum.shape, [m, m])) return addProducts(g, sum, a, a);
  return rowProductsInto(g, sum, a, a, { lower: true });
}

/** The transpose of `row` times `column`, added to `sum` in place. */
const rowProductsInto: Op<[sum: Tensor, column: Tensor, row: Tensor], { readonly lower: boolean }> = defineOp(
  "matmul",
  3,
  {
    shape: ([sum]) => sum.shape,
    kernel: ([sum], { lower }, g) => ({
      name: "matmul",
      inPlace: sum,
      flags:
        FLAG.add |
        FLAG.leftTransposed |
        FLAG.rightTransposed |
        (lower ? FLAG.lower : 0) |
        (g.computeType === "bf16" ? FLAG.bf16 : 0),
    }),
  },
);

/** The kernel's attributes for a b. */
const untransposed = (a: Tensor, b: Tensor): KernelProduct => ({
  rows: axisFromEnd(a.shape, 2),
  columns: axisFromEnd(b.shape, 1),
  flags: FLAG.leftTransposed,
});

/** a b: [..., n, m] x [..., m, k] -> [..., n, k]. */
function productUntransposed(g: Graph, a: Tensor, b: Tensor): Tensor {
  if (g.backend.kernels !== undefined) return kernelProduct(g, b, a, untransposed(a, b));
  if (axisFromEnd(a.shape, 1) <= SHORT_SUM && rowwise(g, a, b)) return outerProductsTransposed(g, b, a);
  return dotProducts(g, a, transposedOperand(g, b));
}

/** dA = dC B: [..., n, m] x [..., m, k] -> [..., n, k]. */
function leftGradient(g: Graph, dy: Tensor, b: Tensor): Gradient {
  const value = () => productUntransposed(g, dy, b);
  if (g.backend.kernels === undefined) return { value };
  return { value, addTo: (sum) => kernelProductInto(g, sum, b, dy, untransposed(dy, b)) };
}

/** dB = dCᵀ A: [..., n, m], [..., n, k] -> [..., m, k]. */
function rightGradient(g: Graph, dy: Tensor, left: () => Tensor): Gradient {
  const of = (product: (a: Tensor, attributes: KernelProduct) => Tensor): Tensor => {
    const a = left();
    const [rows, columns] = [axisFromEnd(dy.shape, 1), axisFromEnd(a.shape, 1)];
    return product(a, { rows, columns, flags: FLAG.leftTransposed | FLAG.rightTransposed });
  };
  if (g.backend.kernels === undefined)
    return { value: () => of((a, { rows, columns }) => composedRightGradient(g, dy, a, rows, columns)) };
  return {
    value: () => of((a, attributes) => kernelProduct(g, a, dy, attributes)),
    addTo: (sum) => of((a, attributes) => kernelProductInto(g, sum, a, dy, attributes)),
  };
}

function composedRightGradient(g: Graph, dy: Tensor, a: Tensor, m: number, k: number): Tensor {
  if (a.shape.length > 2 && Math.min(m, k) <= NARROW && rowwise(g, dy, a))
    return m <= k ? outerProducts(g, a, dy) : transpose(g, outerProducts(g, dy, a));
  return dotProducts(g, transpose(g, dy), transposedOperand(g, a));
}

/**
 * a bᵀ over the last two axes: [..., n, k] x [..., m, k] -> [..., n, m]. The leading axes must agree. Long sums read b in the
 * graph's compute type (bf16 for speed) and add up in f32. A quantized b is read as it is, by ggml's kernels, and takes no gradient.
 */
export function matmul(g: Graph, a: Tensor, b: Tensor): Tensor {
  const fits =
    axisFromEnd(a.shape, 1) === axisFromEnd(b.shape, 1) && sameShape(a.shape.slice(0, -2), b.shape.slice(0, -2));
  if (!fits || a.shape.length < 2)
    throw new ShapeError(
      `${describe(a)} times the transpose of ${describe(b)}: the last axes and the leading axes must agree`,
    );
  const value = g.withoutGradient(() => product(g, a, b));
  return recorded(g, a, b, value);
}

/** a b by a matrix b: [n, k] x [k, m] -> [n, m]. */
function matmulTransposed(g: Graph, a: Tensor, b: Tensor): Tensor {
  if (b.shape.length !== 2 || b.shape[0] !== axisFromEnd(a.shape, 1) || !FLOATS.includes(b.dtype))
    throw new ShapeError(
      `${describe(a)} times ${describe(b)}: the inner axes must agree, and the matrix must not be quantized`,
    );
  const value = g.withoutGradient(() => productUntransposed(g, a, b));
  return recordedTransposed(g, a, b, value);
}

export interface LinearAttributes {
  /** Whether the weight is stored as [in, out] (GPT-2's Conv1D); [out, in] by default. */
  readonly transposed?: boolean | undefined;
}

/** A linear layer, x Wᵀ: [..., in] x [out, in] -> [..., out]. */
export function linear(g: Graph, x: Tensor, weight: Tensor, { transposed = false }: LinearAttributes = {}): Tensor {
  const inputSize = axisFromEnd(x.shape, 1);
  const rows = elementCount(x.shape) / inputSize;
  const flat = x.shape.length === 2 ? x : reshape(g, x, { to: [rows, inputSize] });
  const result = transposed ? matmulTransposed(g, flat, weight) : matmul(g, flat, weight);
  if (x.shape.length === 2) return result;
  return reshape(g, result, { to: [...x.shape.slice(0, -1), axisFromEnd(result.shape, 1)] });
}
