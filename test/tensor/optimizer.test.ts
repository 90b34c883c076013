import { describe, expect, it } from "vitest";
import { AdamW, Graph, gradients, learningRateAt, ops, TensorStore } from "../../src/tensor/index.js";
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
