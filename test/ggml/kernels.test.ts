import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { xielu } from "../../src/check/op-cases.js";
import { availableKernels, Backend, emulatedKernels, fromFloat32, loadLibrary } from "../../src/ggml/index.js";
import { Random } from "../../src/system/random.js";
import {
  type ComputeType,
  elementCount,
  Graph,
  gradients,
  ops,
  type Shape,
  type Tensor,
  TensorStore,
} from "../../src/tensor/index.js";

const { functions } = loadLibrary();
const variants = [...availableKernels(functions), ...emulatedKernels(functions)];
const plain = Backend.open({ device: "cpu", kernels: "none" });
afterAll(() => plain.free());

/** The shapes of differentiable inputs, drawn from a normal distribution, and a computation on them. */
interface Case {
  readonly shapes: readonly Shape[];
  readonly apply: (g: Graph, inputs: readonly Tensor[]) => Tensor;
  readonly computeType?: ComputeType;
  readonly recompute?: boolean;
}

/** The result of a computation and the gradients of a random weighting of it. */
async function run(backend: Backend, { shapes, apply, computeType = "f32", recompute = false }: Case) {
  const random = new Random(9);
  const store = new TensorStore(backend, shapes.length);
  const inputs = shapes.map((shape, i) => store.add(`x${i}`, shape, "f32", { trainable: true }));
  store.allocate();
  for (const input of inputs)
    store.write(
      input,
      Float32Array.from({ length: elementCount(input.shape) }, () => random.normal()),
    );
  const g = new Graph(backend, { computeType, recompute });
  const result = g.output(apply(g, inputs));
  const weights = Float32Array.from({ length: elementCount(result.shape) }, () => random.normal());
  const loss = ops.sum(g, ops.mul(g, result, g.constant("weights", "f32", result.shape, weights)));
  const derived = gradients(g, loss, inputs).map((gradient) => g.output(gradient));
  await g.run();
  const values = [result, ...derived].map((tensor) => g.read(tensor));
  g.free();
  store.free();
  return values;
}

/** Largest difference, as a share of the largest value. */
function distance(a: readonly Float32Array[], b: readonly Float32Array[]): number {
  return Math.max(
    ...a.map((values, which) => {
      const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6);
      return values.reduce((most, value, i) => Math.max(most, Math.abs(value - b[which]![i]!)), 0) / largest;
    }),
  );
}

/** For f32, sums in another order; for bf16, rounded factors, which change each product by at most 2^-8 of it. */
const TOLERANCE: Record<ComputeType, number> = { f32: 2e-5, bf16: 1.5e-2 };

/**
 * The largest error of a product of two rows of up to 512 integers, as a share of the product of the rows' lengths: each number is
 * rounded by at most half a step, of which there are 23150 or more in a row's length, so that a row is changed by at most sqrt(512) half steps.
 */
const INTEGER_ERROR = Math.sqrt(512) / 23150;

/** The sum of products of two rows, and the product of their lengths. */
function dotProduct(a: ArrayLike<number>, b: ArrayLike<number>) {
  let [sum, aa, bb] = [0, 0, 0];
  for (let j = 0; j < a.length; j++) {
    sum += a[j]! * b[j]!;
    aa += a[j]! ** 2;
    bb += b[j]! ** 2;
  }
  return { sum, lengths: Math.sqrt(aa * bb) };
}

const attentionCase = (
  [batch, seq, heads, kvHeads, dim]: readonly [number, number, number, number, number],
  settings: { readonly window?: number; readonly softCap?: number; readonly sinks?: true } = {},
): Case => ({
  shapes: [
    [batch, seq, heads, dim],
    [batch, seq, kvHeads, dim],
    [batch, seq, kvHeads, dim],
    ...(settings.sinks ? [[heads]] : []),
  ],
  apply: (g, [q, k, v, sinks]) =>
    ops.attention(g, q!, k!, v!, { ...settings, scale: 1 / Math.sqrt(dim), sinks: settings.sinks && sinks }),
});

const targets = (g: Graph, rows: number, vocab: number) =>
  g.constant(
    "targets",
    "i32",
    [rows],
    ops.headIndices(
      Int32Array.from({ length: rows }, (_, i) => (i * 7919) % vocab),
      rows,
      vocab,
    ),
  );

/** A linear head's loss over more rows than are computed at a time. */
const headCase = (rows: number, vocab: number, kind: ops.DivergenceKind): Case => ({
  shapes: [
    [rows, 24],
    [vocab, 24],
  ],
  apply: (g, [hidden, weight]) => {
    const teacher = g.constant(
      "teacher",
      "f32",
      [rows, 24],
      Float32Array.from({ length: rows * 24 }, (_, i) => Math.sin(i)),
    );
    const indices = targets(g, rows, vocab);
    const logits = (x: Tensor) => ops.linear(g, x, weight!);
    const teacherLogits = (range: ops.RowRange) =>
      g.withoutGradient(() => ops.linear(g, ops.rowsOf(g, teacher, range), weight!));
    return ops.headLoss(g, hidden!, vocab, logits, [
      { weight: 0.7, of: (x, range) => ops.divergence(g, x, teacherLogits(range), { kind, temperature: 1.5 }) },
      { weight: 0.3, of: (x, range) => ops.crossEntropy(g, x, ops.rowsOf(g, indices, range)) },
    ]).loss;
  },
});

const ropeCase = (interleaved: boolean): Case => ({
  shapes: [[2, 19, 3, 22]],
  apply: (g, [x]) =>
    ops.rope(g, x!, {
      rotaryDim: 18,
      theta: 1e4,
      attentionFactor: 1.1,
      interleaved,
      factors: Float32Array.from({ length: 9 }, (_, i) => 1 + i / 3),
    }),
});

const CASES: Record<string, Case> = {
  "a matrix product across blocks": {
    shapes: [
      [150, 1100],
      [203, 1100],
    ],
    apply: (g, [a, b]) => ops.matmul(g, a!, b!),
  },
  "a batch of products": {
    shapes: [
      [2, 3, 50, 33],
      [2, 3, 61, 33],
    ],
    apply: (g, [a, b]) => ops.matmul(g, a!, b!),
  },
  "a product of one row": {
    shapes: [
      [1, 7],
      [5, 7],
    ],
    apply: (g, [a, b]) => ops.matmul(g, a!, b!),
  },
  attention: attentionCase([2, 70, 4, 4, 24]),
  "attention with grouped queries": attentionCase([1, 133, 6, 2, 40]),
  "attention of more threads than heads": attentionCase([1, 200, 1, 1, 16]),
  "attention in a window": attentionCase([2, 150, 2, 1, 32], { window: 37 }),
  "attention with soft-capped scores": attentionCase([2, 150, 4, 2, 32], { softCap: 1.5 }),
  "attention with sinks": attentionCase([3, 150, 4, 2, 32], { sinks: true }),
  "attention with all of it": attentionCase([2, 150, 4, 2, 32], { window: 37, softCap: 1.5, sinks: true }),
  "attention over one position": attentionCase([2, 1, 2, 2, 8]),
  "attention with wide heads": attentionCase([1, 90, 2, 1, 130]),
  "a normalization with its gain": {
    shapes: [[37, 85], [85]],
    apply: (g, [x, gain]) => ops.rmsNormGain(g, x!, gain!, { epsilon: 1e-5 }),
  },
  "a layer normalization": {
    shapes: [[37, 85], [85], [85]],
    apply: (g, [x, gain, bias]) => ops.layerNorm(g, x!, gain!, bias, { epsilon: 1e-5 }),
  },
  "GELU by tanh": { shapes: [[9, 77]], apply: (g, [x]) => ops.gelu(g, x!, { approximation: "tanh" }) },
  "GELU by erf": { shapes: [[9, 77]], apply: (g, [x]) => ops.gelu(g, x!, { approximation: "none" }) },
  GeGLU: {
    shapes: [
      [9, 77],
      [9, 77],
    ],
    apply: (g, [gate, up]) => ops.geglu(g, gate!, up!, { approximation: "tanh" }),
  },
  "a soft cap": { shapes: [[9, 77]], apply: (g, [x]) => ops.softCap(g, x!, { cap: 1.5 }) },
  xIELU: {
    shapes: [[9, 77], [1], [1]],
    apply: (g, [x, p, n]) => xielu(g, x!, p!, n!),
  },
  "an axis split and concatenated again": {
    shapes: [[37, 85]],
    apply: (g, [x]) => {
      const [a, b, c] = ops.splitLast(g, x!, [20, 1, 64]);
      return ops.concatLast(g, [c!, ops.square(g, a!), b!]);
    },
  },
  "a product by a transposed matrix": {
    shapes: [
      [150, 203],
      [203, 110],
    ],
    apply: (g, [x, w]) => ops.linear(g, x!, w!, { transposed: true }),
  },
  SwiGLU: {
    shapes: [
      [9, 77],
      [9, 77],
    ],
    apply: (g, [gate, up]) => ops.swiglu(g, gate!, up!),
  },
  "rotary embedding": ropeCase(false),
  "rotary embedding of neighbors": ropeCase(true),
  "an embedding that is also the head": {
    shapes: [[90, 21]],
    apply: (g, [table]) => {
      const ids = g.constant(
        "ids",
        "i32",
        [40],
        Int32Array.from({ length: 40 }, (_, i) => (i * 13) % 31),
      );
      return ops.linear(g, ops.embedding(g, table!, ids), table!);
    },
  },
  "a head's loss, forward KL": headCase(600, 333, "forward-kl"),
  "a head's loss, reverse KL": headCase(300, 50, "reverse-kl"),
  "a head's loss, Jensen-Shannon": headCase(300, 50, "jensen-shannon"),
  "a head's loss over a large vocabulary": headCase(300, 9001, "forward-kl"),
};

const CASE_NAMES = Object.keys(CASES);

/** Runs each case once on a backend. */
function runner(backend: Backend, computeType: ComputeType): (name: string) => Promise<Float32Array[]> {
  const results = new Map<string, Promise<Float32Array[]>>();
  return (name) => {
    const result = results.get(name) ?? run(backend, { ...CASES[name]!, computeType });
    results.set(name, result);
    return result;
  };
}
const onPlain = runner(plain, "f32");

describe.each(variants)("the %s kernels", (variant) => {
  const backend = Backend.open({ device: "cpu", kernels: variant, threads: 3 });
  const usesIntegers = backend.kernels!.multipliesIntegers;
  const single = Backend.open({ device: "cpu", kernels: variant, threads: 1 });
  afterAll(() => {
    backend.free();
    single.free();
  });
  const rounded = runner(backend, "bf16");

  it.each(CASE_NAMES)("agree with ggml's in f32: %s", async (name) => {
    const exact = await run(backend, CASES[name]!);
    expect(distance(await onPlain(name), exact)).toBeLessThan(TOLERANCE.f32 * 4);
  });

  it.each(CASE_NAMES)("agree within bf16's rounding: %s", async (name) => {
    expect(distance(await onPlain(name), await rounded(name))).toBeLessThan(TOLERANCE.bf16);
  });

  it.each(CASE_NAMES)("give the same for any number of threads: %s", async (name) => {
    const alone = await run(single, { ...CASES[name]!, computeType: "bf16" });
    const shared = await rounded(name);
    expect(alone.map((values, i) => Buffer.from(values.buffer).equals(Buffer.from(shared[i]!.buffer)))).not.toContain(
      false,
    );
  });

  it("keep what is not a number, wherever it is", async () => {
    const length = 40;
    for (const at of [0, 17, 39]) {
      const values = Float32Array.from({ length: 2 * length }, (_, i) => (i === length + at ? Number.NaN : i / 10 - 4));
      const g = new Graph(backend);
      const x = g.constant("x", "f32", [2, length], values);
      const ones = g.constant("ones", "f32", [2, length], new Float32Array(2 * length).fill(1));
      const gated = [ops.swiglu(g, x, ones), ops.gelu(g, x, { approximation: "tanh" })].map((result) =>
        g.output(result),
      );
      const ids = g.constant("ids", "i32", [2], Int32Array.of(3, length + 5));
      const loss = g.output(ops.crossEntropyOfRows(g, x, ids));
      await g.run();
      for (const result of gated)
        expect([...g.read(result).keys()].filter((i) => Number.isNaN(g.read(result)[i]))).toEqual([length + at]);
      expect([...g.read(loss)].map(Number.isNaN)).toEqual([false, true]);
      g.free();
    }
  });

  it("leave numbers below the normal ones to their caller", async () => {
    const g = new Graph(backend);
    const tiny = 1e-40;
    const x = g.constant("x", "f32", [1, 3], Float32Array.of(tiny, 1, -tiny));
    const result = g.output(ops.swiglu(g, x, g.constant("ones", "f32", [1, 3], Float32Array.of(1, 1, 1))));
    await g.run();
    expect([...g.read(result)].map(Math.abs)).toEqual([0, expect.closeTo(0.731, 3), 0]);
    const smallest = new Float64Array([Number.MIN_VALUE]);
    expect(smallest[0]! * 3).toBe(1.5e-323); // JavaScript's own arithmetic, on this thread
    g.free();
  });

  /** Products of every row of x with every row of w, in 16 bits. */
  const products = async (x: readonly number[][], w: readonly number[][]) => {
    const store = new TensorStore(backend, 2);
    const k = x[0]!.length;
    const [left, right] = [store.add("x", [x.length, k], "f32"), store.add("w", [w.length, k], "f32")];
    store.allocate();
    store.write(left, Float32Array.from(x.flat()));
    store.write(right, Float32Array.from(w.flat()));
    const g = new Graph(backend, { computeType: "bf16" });
    const result = g.output(ops.matmul(g, left, right));
    await g.run();
    const values = g.read(result);
    g.free();
    store.free();
    return values;
  };

  /** The same, as the gradient of a weight: the rows of both are columns in memory. */
  const productsOfColumns = async (x: readonly number[][], w: readonly number[][]) => {
    const store = new TensorStore(backend, 2);
    const k = x[0]!.length;
    const columns = (rows: readonly number[][]) =>
      Float32Array.from({ length: k * rows.length }, (_, i) => rows[i % rows.length]![Math.floor(i / rows.length)]!);
    const weight = store.add("weight", [x.length, w.length], "f32", { trainable: true });
    const inputs = store.add("inputs", [k, w.length], "f32");
    store.allocate();
    store.write(weight, new Float32Array(x.length * w.length));
    store.write(inputs, columns(w));
    const g = new Graph(backend, { computeType: "bf16" });
    const upstream = g.constant("upstream", "f32", [k, x.length], columns(x));
    const loss = ops.sum(g, ops.mul(g, ops.matmul(g, inputs, weight), upstream));
    const [gradient] = gradients(g, loss, [weight]).map((derived) => g.output(derived));
    await g.run();
    const values = g.read(gradient!);
    g.free();
    store.free();
    return values;
  };

  /** Rows that are hard for numbers with a common scale, of length k. */
  const hardRows = (random: Random, k: number): number[][] => {
    const normal = (scale: number) => Array.from({ length: k }, () => scale * random.normal());
    const outlier = (scale: number) => normal(1).map((v, i) => (i === k >> 1 ? scale * v : v));
    return [
      Array.from({ length: k }, () => 1), // all as one: the sum is as large as two rows of such lengths allow
      Array.from({ length: k }, () => -3),
      Array.from({ length: k }, (_, i) => (i === k - 1 ? 5 : 0)),
      Array.from({ length: k }, () => 0),
      normal(1),
      normal(1e-12),
      normal(1e-21),
      normal(1e12),
      outlier(1e3),
      outlier(1e6),
    ];
  };

  it.each([
    ["rows", products],
    ["columns", productsOfColumns],
  ])("multiply outliers, tiny and huge numbers and the largest sums, of %s", async (_, multiply) => {
    const random = new Random(5);
    for (const k of [1, 7, 511, 512, 1300]) {
      const [left, right] = [hardRows(random, k), hardRows(random, k)];
      const values = await multiply(left, right);
      for (const [i, a] of left.entries())
        for (const [j, b] of right.entries()) {
          const { sum, lengths } = dotProduct(a, b);
          const error = Math.abs(values[i * right.length + j]! - sum);
          expect(error, `rows ${i} and ${j} of ${k}`).toBeLessThanOrEqual(
            (usesIntegers ? INTEGER_ERROR : 2 ** -7) * lengths + 1e-37,
          );
        }
    }
  });

  it("make numbers that are none of rows with such", async () => {
    const row = (value: number) => Array.from({ length: 40 }, (_, i) => (i === 3 ? value : 1));
    const x = [row(Number.NaN), row(Number.POSITIVE_INFINITY), row(1)];
    const values = await products(x, [row(2)]);
    expect([...values].map(Number.isFinite)).toEqual([false, false, true]);
  });

  /** Attention of one head over q, k and v: [length, dim]. */
  const attend = async (on: Backend, computeType: ComputeType, dim: number, values: readonly Float32Array[]) => {
    const length = values[0]!.length / dim;
    const store = new TensorStore(on, 3);
    const inputs = values.map((_, i) => store.add(`x${i}`, [1, length, 1, dim], "f32"));
    store.allocate();
    for (const [i, input] of inputs.entries()) store.write(input, values[i]!);
    const g = new Graph(on, { computeType });
    const [q, k, v] = inputs;
    const result = g.output(ops.attention(g, q!, k!, v!, { scale: 1 / Math.sqrt(dim) }));
    await g.run();
    const mixed = g.read(result);
    g.free();
    store.free();
    return mixed;
  };

  it("attend to keys that are all alike", async () => {
    const alike = new Float32Array(1500 * 16).fill(0.7);
    const mixed = await attend(backend, "bf16", 16, [alike, alike, alike]);
    expect(Math.max(...mixed.map((v) => Math.abs(v - 0.7)))).toBeLessThan(0.004);
  });

  it("attend to the others beside a key that takes nearly all and says nothing", async () => {
    const [length, dim] = [1500, 16];
    const random = new Random(3);
    const sink = Math.log(32 * length); // 0.97 of the probability
    const draw = (first: number, other: () => number, rest: () => number) =>
      Float32Array.from({ length: length * dim }, (_, i) => {
        const [position, channel] = [Math.floor(i / dim), i % dim];
        if (position === 0) return channel === 0 ? first : 0;
        return channel === 0 ? other() : rest();
      });
    const normal = () => random.normal();
    const q = draw(4, () => 4, normal);
    const inputs = [q, draw(sink, () => 0, normal), draw(0, () => 1 + normal(), normal)];
    const expected = await attend(plain, "f32", dim, inputs);
    const found = await attend(backend, "bf16", dim, inputs);
    const late = expected.length / 2;
    const sizes = [0, 0];
    for (let i = late; i < expected.length; i++) {
      sizes[0]! += (found[i]! - expected[i]!) ** 2;
      sizes[1]! += expected[i]! ** 2;
    }
    expect(Math.sqrt(sizes[0]! / sizes[1]!)).toBeLessThan(usesIntegers ? 0.002 : 0.05);
  });

  it("attend to what came before alone", async () => {
    const dim = 16;
    const random = new Random(4);
    const inputs = [0, 1, 2].map(() => Float32Array.from({ length: 100 * dim }, () => random.normal()));
    const before = await attend(backend, "bf16", dim, inputs);
    const changed = inputs.map((values) => values.map((value, i) => (i < 99 * dim ? value : 1000)));
    const after = await attend(backend, "bf16", dim, changed);
    expect(after.subarray(0, 99 * dim)).toEqual(before.subarray(0, 99 * dim));
  });

  it("multiply matrices of any shape, stored in any type", async () => {
    const size = fc.integer({ min: 1, max: 130 });
    const dtype = fc.constantFrom("f32" as const, "bf16" as const, "f16" as const);
    await fc.assert(
      fc.asyncProperty(size, size, fc.integer({ min: 1, max: 600 }), dtype, async (n, m, k, stored) => {
        const random = new Random(n * 1000 + m);
        const draw = (count: number) => Float32Array.from({ length: count }, () => Math.round(8 * random.normal()) / 8);
        const [x, w] = [draw(n * k), draw(m * k)]; // few digits: exact in every type
        const store = new TensorStore(backend, 2);
        const [left, right] = [store.add("x", [n, k], "f32"), store.add("w", [m, k], stored)];
        store.allocate();
        store.write(left, x);
        store.write(right, fromFloat32(backend.functions, w, stored));
        const g = new Graph(backend, { computeType: "bf16" });
        const result = g.output(ops.matmul(g, left, right));
        await g.run();
        const values = g.read(result);
        for (let i = 0; i < 20; i++) {
          const [row, column] = [random.integer(n), random.integer(m)];
          const { sum, lengths } = dotProduct(
            x.subarray(row * k, (row + 1) * k),
            w.subarray(column * k, (column + 1) * k),
          );
          const error = Math.abs(values[row * m + column]! - sum);
          expect(error).toBeLessThan(usesIntegers ? INTEGER_ERROR * lengths + 1e-6 : 0.005);
        }
        g.free();
        store.free();
      }),
      { numRuns: variant === variants[0] ? 40 : 8 }, // the best variant is what most machines run
    );
  });
});

it("unknown kernels are refused by name", () => {
  expect(() => Backend.open({ device: "cpu", kernels: "sse9" })).toThrow(/there are no kernels "sse9"/);
});
