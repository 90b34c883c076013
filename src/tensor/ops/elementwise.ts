import { ShapeError } from "../../system/errors.js";
import type { Graph } from "../graph.js";
import { ANY, defineOp, type Native, type Op, reshaped, shapeOnly } from "../op.js";
import {
  axisFromEnd,
  describe,
  elementCount,
  rowCount,
  type Shape,
  sameShape,
  sizesOf,
  type Tensor,
} from "../tensor.js";

/** a's shape, to which b broadcasts by numpy's rule: on every axis b has a's size or 1. @throws ShapeError otherwise */
function broadcastShape([a, b]: readonly [Tensor, Tensor]): Shape {
  for (let n = 1; n <= 4; n++) {
    const size = axisFromEnd(b.shape, n);
    if (size !== 1 && size !== axisFromEnd(a.shape, n))
      throw new ShapeError(`${describe(b)} does not broadcast to ${describe(a)}`);
  }
  return a.shape;
}

/** Sums over broadcast axes: from a shape that `like` broadcasts to, to the shape of `like`. */
export const sumTo: Op<[x: Tensor, like: Tensor]> = defineOp("sumTo", 2, {
  accepts: [undefined, ANY],
  shape: ([x, like]) => broadcastShape([x, like]) && like.shape,
  build: (native, [x, like]) => native.f.ggml_repeat_back(native.context, x.handle, shapeOnly(native, like.shape)),
  vjp: (g, dy, { inputs: [x] }) => [() => broadcastTo(g, dy, x), null],
});

/** Repeats x along the axes where it has size 1, to the shape of `like`. */
export const broadcastTo: Op<[x: Tensor, like: Tensor]> = defineOp("broadcastTo", 2, {
  accepts: [undefined, ANY],
  shape: ([x, like]) => broadcastShape([like, x]),
  build: (native, [x, like]) => native.f.ggml_repeat(native.context, x.handle, shapeOnly(native, like.shape)),
  vjp: (g, dy, { inputs: [x] }) => [() => sumTo(g, dy, x), null],
});

function unbroadcast(g: Graph, gradient: Tensor, b: Tensor): Tensor {
  if (sameShape(gradient.shape, b.shape)) return gradient;
  // the gradient of one number is a long sum, which `sum` computes more accurately
  return sameShape(b.shape, [1]) ? sum(g, gradient) : sumTo(g, gradient, b);
}

/** a + b, b broadcast to a. */
export const add: Op<[a: Tensor, b: Tensor]> = defineOp("add", 2, {
  shape: broadcastShape,
  build: ({ f, context }, [a, b]) => f.ggml_add(context, a.handle, b.handle),
  vjp: (g, dy, { inputs: [, b] }) => [() => dy, () => unbroadcast(g, dy, b)],
});

/** a - b, b broadcast to a. */
export const sub: Op<[a: Tensor, b: Tensor]> = defineOp("sub", 2, {
  shape: broadcastShape,
  build: ({ f, context }, [a, b]) => f.ggml_sub(context, a.handle, b.handle),
  vjp: (g, dy, { inputs: [, b] }) => [() => dy, () => unbroadcast(g, scale(g, dy, { factor: -1 }), b)],
});

/** a * b elementwise, b broadcast to a. */
export const mul: Op<[a: Tensor, b: Tensor]> = defineOp("mul", 2, {
  shape: broadcastShape,
  build: ({ f, context }, [a, b]) => f.ggml_mul(context, a.handle, b.handle),
  vjp: (g, dy, { inputs: [a, b] }) => [() => mul(g, dy, b), () => unbroadcast(g, mul(g, dy, a), b)],
});

/** a / b elementwise, b broadcast to a. */
export const div: Op<[a: Tensor, b: Tensor]> = defineOp("div", 2, {
  shape: broadcastShape,
  build: ({ f, context }, [a, b]) => f.ggml_div(context, a.handle, b.handle),
  readsOutput: true,
  vjp: (g, dy, { inputs: [, b], output }) => [
    () => div(g, dy, b),
    () => unbroadcast(g, div(g, mul(g, scale(g, dy, { factor: -1 }), output), b), b), // -dy (a/b) / b
  ],
});

/** x * factor + bias, with numbers. */
export const scale: Op<[x: Tensor], { readonly factor: number; readonly bias?: number | undefined }> = defineOp(
  "scale",
  1,
  {
    shape: ([x]) => x.shape,
    build: ({ f, context }, [x], { factor, bias }) => f.ggml_scale_bias(context, x.handle, factor, bias ?? 0),
    vjp: (g, dy, { attributes: { factor } }) => [() => scale(g, dy, { factor })],
  },
);

/** x². */
export const square: Op<[x: Tensor]> = defineOp("square", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_sqr(context, x.handle),
  vjp: (g, dy, { inputs: [x] }) => [() => scale(g, mul(g, dy, x), { factor: 2 })],
});

/** √x. */
export const sqrt: Op<[x: Tensor]> = defineOp("sqrt", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_sqrt(context, x.handle),
  readsOutput: true,
  vjp: (g, dy, { output }) => [() => scale(g, div(g, dy, output), { factor: 0.5 })],
});

/** Natural logarithm. */
export const log: Op<[x: Tensor]> = defineOp("log", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_log(context, x.handle),
  vjp: (g, dy, { inputs: [x] }) => [() => div(g, dy, x)],
});

/** eˣ. */
export const exp: Op<[x: Tensor]> = defineOp("exp", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_exp(context, x.handle),
  readsOutput: true,
  vjp: (g, dy, { output }) => [() => mul(g, dy, output)],
});

/** |x|. */
export const abs: Op<[x: Tensor]> = defineOp("abs", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_abs(context, x.handle),
  vjp: (g, dy, { inputs: [x] }) => [() => mul(g, dy, sign(g, x))],
});

/** -1, 0 or 1. Piecewise constant: no gradient. */
export const sign: Op<[x: Tensor]> = defineOp("sign", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_sgn(context, x.handle),
});

/** 1 where x > 0, 0 elsewhere. Piecewise constant: no gradient. */
export const step: Op<[x: Tensor]> = defineOp("step", 1, {
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x]) => f.ggml_step(context, x.handle),
});

/** x limited to [low, high]. No gradient. */
export const clamp: Op<[x: Tensor], { readonly low: number; readonly high: number }> = defineOp("clamp", 1, {
  // ggml clamps in place, so it gets a copy
  shape: ([x]) => x.shape,
  build: ({ f, context }, [x], { low, high }) =>
    f.ggml_clamp(context, f.ggml_scale_bias(context, x.handle, 1, 0), low, high),
});

/**
 * Elements that are summed at once: a GPU gives a sum to one group of its threads, which takes long over many, loses digits (in f32
 * 3e-4 of 2^18 equal terms), and with drivers that limit the turns of a loop leaves some out.
 */
const SUMMED_AT_ONCE = 2 ** 16;
/** Longer sums are of the sums of runs of at most so many elements. */
const LONGEST_RUN = 4096;

/** The length of equal runs that many elements are summed by; undefined for a number of elements that has no such divisor. */
function runOf(count: number): number | undefined {
  for (let length = LONGEST_RUN; length > 1; length--) if (count % length === 0) return length;
  return undefined;
}

/** Sum of all elements: [1]. */
export const sum: Op<[x: Tensor]> = defineOp("sum", 1, {
  shape: () => [1],
  build: (native, [x]) => {
    const { f, context } = native;
    const count = elementCount(x.shape);
    const run = count > SUMMED_AT_ONCE ? runOf(count) : undefined;
    if (run === undefined) return f.ggml_sum(context, x.handle);
    return f.ggml_sum(context, f.ggml_sum_rows(context, reshaped(native, x.handle, [count / run, run])));
  },
  vjp: (g, dy, { inputs: [x] }) => [() => broadcastTo(g, dy, x)],
});

/** Sum over the last axis, kept with size 1. */
export const sumLast: Op<[x: Tensor]> = defineOp("sumLast", 1, {
  shape: ([x]) => [...x.shape.slice(0, -1), 1],
  build: ({ f, context }, [x]) => f.ggml_sum_rows(context, x.handle),
  vjp: (g, dy, { inputs: [x] }) => [() => broadcastTo(g, dy, x)],
});

/** Sums over the last axis of a * b: in one pass, on all threads. [rows, n] -> [rows, 1, 1]. No gradient. */
export const dotLast: Op<[a: Tensor, b: Tensor]> = defineOp("dotLast", 2, {
  shape: ([a, b]) => {
    if (a.shape.length !== 2 || !sameShape(a.shape, b.shape))
      throw new ShapeError(`${describe(a)} and ${describe(b)} are not rows of the same length`);
    return [rowCount(a), 1, 1];
  },
  build: (native, [a, b]) => {
    const [rows, n] = sizesOf(a, 2);
    const single = (x: Tensor) => reshaped(native, x.handle, [rows, 1, n]); // a batch of products of one row each
    const products = native.f.ggml_mul_mat(native.context, single(a), single(b));
    native.f.ggml_mul_mat_set_prec(products, PRECISION_F32);
    return products;
  },
});

/** ggml's constant for sums in f32 on every device. */
export const PRECISION_F32 = 10;

/** Mean of all elements. */
export const mean = (g: Graph, x: Tensor): Tensor => scale(g, sum(g, x), { factor: 1 / elementCount(x.shape) });

/** Sum over axis -2, kept with size 1: [..., n, c] -> [..., 1, c]. */
export const sumRows: Op<[x: Tensor]> = defineOp("sumRows", 1, {
  shape: ([x]) => [...x.shape.slice(0, -2), 1, axisFromEnd(x.shape, 1)],
  build: (native: Native, [x]) =>
    native.f.ggml_repeat_back(
      native.context,
      x.handle,
      shapeOnly(native, [...x.shape.slice(0, -2), 1, axisFromEnd(x.shape, 1)]),
    ),
  vjp: (g, dy, { inputs: [x] }) => [() => broadcastTo(g, dy, x)],
});

/** Copies `value` into `target`, a tensor of a store. Make the result an effect of the graph. */
export const assign: Op<[value: Tensor, target: Tensor]> = defineOp("assign", 2, {
  accepts: [ANY, ANY],
  shape: ([value, target]) => {
    if (elementCount(value.shape) !== elementCount(target.shape) || value.dtype !== target.dtype)
      throw new ShapeError(`${describe(value)} cannot be assigned to ${describe(target)}`);
    return target.shape;
  },
  dtype: ([, target]) => target.dtype,
  build: (native, [value, target]) =>
    native.f.ggml_cpy(native.context, reshaped(native, value.handle, target.shape), target.handle),
});
