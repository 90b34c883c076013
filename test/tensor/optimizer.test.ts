import { describe, expect, it } from "vitest";
import { Random } from "../../src/system/random.js";
import {
  AdamW,
  Graph,
  gradients,
  learningRateAt,
  type OptimizerState,
  ops,
  TensorStore,
} from "../../src/tensor/index.js";
import { testBackends } from "../devices.js";
import { openBackend } from "./backend.js";

describe.each(testBackends)("AdamW on %s", (_, options) => {
  const { backend, freeLater } = openBackend({ ...options, threads: 2 });

  it("takes the steps of Loshchilov & Hutter's algorithm 2 with global-norm clipping, computed in double precision", async () => {
    const options = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clipNorm: 1 };
    const target = [3, -2, 0.5, 1];
    const weights = new TensorStore(backend, 2);
    const matrix = weights.add("matrix", [2, 2], "f32", { trainable: true });
    const gain = weights.add("gain", [2], "f32", { trainable: true });
    weights.allocate();
    weights.write(matrix, Float32Array.of(1, 2, -1, 0.5));
    weights.write(gain, Float32Array.of(1, -1));
    const state = new TensorStore(backend, AdamW.stateTensors(2));
    const optimizer = new AdamW(state, [matrix, gain], options);
    state.allocate();
    const g = new Graph(backend);
    freeLater(g, state, weights);
    const goal = g.constant("goal", "f32", [2, 2], Float32Array.from(target));
    // loss = Σ (gain ∘ matrix - goal)²
    const loss = g.output(ops.sum(g, ops.square(g, ops.sub(g, ops.mul(g, matrix, gain), goal))));
    const norm = g.output(optimizer.apply(g, gradients(g, loss, [matrix, gain])));

    const w = [1, 2, -1, 0.5, 1, -1];
    const m = w.map(() => 0);
    const v = w.map(() => 0);
    for (let step = 1; step <= 5; step++) {
      const rate = 0.1 / step;
      optimizer.prepare(rate, step);
      await g.run();
      const errors = target.map((goalValue, i) => w[i]! * w[4 + (i % 2)]! - goalValue);
      const gradient = [
        ...errors.map((error, i) => 2 * error * w[4 + (i % 2)]!),
        ...[0, 1].map((j) => errors.reduce((sum, error, i) => sum + (i % 2 === j ? 2 * error * w[i]! : 0), 0)),
      ];
      const length = Math.hypot(...gradient);
      gradient.forEach((value, i) => {
        const clipped = value * Math.min(1, options.clipNorm / length);
        m[i] = options.beta1 * m[i]! + (1 - options.beta1) * clipped;
        v[i] = options.beta2 * v[i]! + (1 - options.beta2) * clipped ** 2;
        const update =
          m[i]! / (1 - options.beta1 ** step) / (Math.sqrt(v[i]! / (1 - options.beta2 ** step)) + options.epsilon);
        const decay = i < 4 ? options.weightDecay : 0; // the gain is not decayed
        w[i] = w[i]! - rate * (update + decay * w[i]!);
      });
      expect(g.read(norm)[0]).toBeCloseTo(length, 4);
      expect(
        Math.max(...[...weights.read(matrix), ...weights.read(gain)].map((value, i) => Math.abs(value - w[i]!))),
      ).toBeLessThan(1e-5);
    }
  });
});

describe.each(testBackends.filter(([name]) => name.endsWith("kernels")))("AdamW on %s", (_, options) => {
  const { backend, freeLater } = openBackend({ ...options, threads: 2 });

  it("ends moments that have decayed below the normal numbers, where 0.9 of the smallest would be rounded up to it", async () => {
    const weights = new TensorStore(backend, 1);
    const row = weights.add("row", [1, 40], "f32", { trainable: true });
    weights.allocate();
    weights.write(row, new Float32Array(40).fill(1));
    const state = new TensorStore(backend, AdamW.stateTensors(1));
    const settings = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0, clipNorm: 1 };
    const optimizer = new AdamW(state, [row], settings);
    state.allocate();
    const smallest = 2 ** -149;
    for (const moment of optimizer.moments) state.write(moment, new Float32Array(40).fill(smallest));
    const g = new Graph(backend);
    freeLater(g, state, weights);
    const loss = ops.scale(g, ops.sum(g, row), { factor: 0 });
    g.output(optimizer.apply(g, gradients(g, loss, [row])));
    optimizer.prepare(0.1, 2000);
    await g.run();
    for (const moment of optimizer.moments) expect(new Set(state.read(moment))).toEqual(new Set([0]));
    expect(new Set(weights.read(row))).toEqual(new Set([1]));
  });
});

/** The value of a code from 0 to 1: a float of three bits below its exponent, by the format's definition. */
function decoded(code: number, exponents: number): number {
  const [exponent, fraction] = [code >> 3, (code & 7) / 8];
  return (exponent === 0 ? fraction * 2 ** (2 - exponents) : (1 + fraction) * 2 ** (exponent + 1 - exponents)) / 1.875;
}

describe.each(testBackends.filter(([name]) => name.endsWith("kernels")))(
  "AdamW with moments of 8 bits on %s",
  (_, options) => {
    const { backend, freeLater } = openBackend({ ...options, threads: 2 });
    const settings = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clipNorm: 1e9 };

    function optimized(count: number, state: OptimizerState) {
      const weights = new TensorStore(backend, 1);
      const weight = weights.add("weight", [1, count], "f32", { trainable: true });
      weights.allocate();
      weights.write(
        weight,
        Float32Array.from({ length: count }, (_, i) => Math.sin(i)),
      );
      const store = new TensorStore(backend, AdamW.stateTensors(1));
      const optimizer = new AdamW(store, [weight], settings, { state });
      store.allocate();
      const g = new Graph(backend);
      freeLater(g, store, weights);
      const gradient = g.input("gradient", "f32", [1, count]);
      g.output(optimizer.apply(g, [gradient]));
      const step = async (values: Float32Array, number: number) => {
        optimizer.prepare(0.01, number);
        g.write(gradient, values);
        await g.run();
      };
      return { step, read: () => weights.read(weight), store };
    }

    const bytesOf = (store: TensorStore, name: string) => new Uint8Array(store.read(store.get(name)).buffer);

    it("takes the same first step as with moments of 32 bits, for any number of weights", async () => {
      for (const count of [1, 15, 256, 257, 1000]) {
        const [packed, plain] = [optimized(count, "8bit"), optimized(count, "f32")];
        const gradient = Float32Array.from({ length: count }, (_, i) => Math.cos(3 * i) * 10 ** ((i % 7) - 3));
        await packed.step(gradient, 1);
        await plain.step(gradient, 1);
        const [one, two] = [packed.read(), plain.read()];
        one.forEach((value, i) => {
          expect(Math.abs(value - two[i]!)).toBeLessThanOrEqual(2 ** -22 * Math.abs(two[i]!));
        });
      }
    });

    it("keeps moments as one of the two codes next to them, and on average as they are", async () => {
      const count = 64 * 256;
      const ratio = (i: number) => (i % 256 === 0 ? 1 : 0.37); // the first of a block is its largest
      const { step, store } = optimized(count, "8bit");
      await step(
        Float32Array.from({ length: count }, (_, i) => -ratio(i)),
        1,
      );
      const [m, v] = [bytesOf(store, "weight.m.codes"), bytesOf(store, "weight.v.codes")];
      expect(store.read(store.get("weight.m.scales"))[5]).toBeCloseTo(0.1, 6);
      expect(store.read(store.get("weight.v.scales"))[5]).toBeCloseTo(0.05, 6);
      const small = [...Array(count).keys()].filter((i) => i % 256 !== 0);
      const values = (codes: Uint8Array, exponents: number, mask: number) =>
        small.map((i) => decoded(codes[i]! & mask, exponents));
      for (const [found, expected] of [
        [values(m, 16, 127), 0.37],
        [values(v, 32, 255), 0.37 ** 2],
      ] as const) {
        for (const value of found) expect(Math.abs(value - expected)).toBeLessThan(expected / 8);
        expect(new Set(found).size).toBe(2);
        expect(found.reduce((sum, value) => sum + value, 0) / found.length / expected).toBeCloseTo(1, 2);
      }
      expect(small.every((i) => m[i]! >= 128)).toBe(true); // negative
    });

    it("goes where moments of 32 bits go", async () => {
      const count = 3000;
      const [packed, plain] = [optimized(count, "8bit"), optimized(count, "f32")];
      const start = plain.read();
      const random = new Random(3);
      const scale = Float32Array.from({ length: count }, () => 10 ** (4 * random.uniform() - 4));
      const drift = Float32Array.from({ length: count }, () => random.normal());
      for (let number = 1; number <= 60; number++) {
        const gradient = scale.map((size, i) => size * (drift[i]! + random.normal()));
        await packed.step(gradient, number);
        await plain.step(gradient, number);
      }
      const way = (weights: Float32Array) => weights.map((value, i) => value - start[i]!);
      const [one, two] = [way(packed.read()), way(plain.read())];
      const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, value, i) => sum + value * b[i]!, 0);
      expect(dot(one, two) / Math.sqrt(dot(one, one) * dot(two, two))).toBeGreaterThan(0.995);
      expect(dot(one, two) / dot(two, two)).toBeCloseTo(1, 1);
    });
  },
);

describe("the learning rate", () => {
  const schedule = { kind: "cosine", peak: 1, minimum: 0.1, warmupSteps: 10, totalSteps: 110 } as const;
  it("rises linearly to the peak, then falls along half a cosine to the minimum", () => {
    expect(learningRateAt(schedule, 5)).toBeCloseTo(0.5);
    expect(learningRateAt(schedule, 10)).toBeCloseTo(1);
    expect(learningRateAt(schedule, 60)).toBeCloseTo(0.55);
    expect(learningRateAt(schedule, 110)).toBeCloseTo(0.1);
  });
  it("falls linearly, or stays, when asked", () => {
    expect(learningRateAt({ ...schedule, kind: "linear" }, 35)).toBeCloseTo(0.775);
    expect(learningRateAt({ ...schedule, kind: "constant" }, 110)).toBe(1);
  });
});
