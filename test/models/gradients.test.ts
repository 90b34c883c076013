import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { crossEntropyObjective } from "../../src/distill/index.js";
import { Backend } from "../../src/ggml/index.js";
import { loadWeights, modelFromConfig, openCheckpoint } from "../../src/models/index.js";
import { Random } from "../../src/system/random.js";
import { elementCount, Graph, gradients } from "../../src/tensor/index.js";
import { testBackends } from "../devices.js";

const fixtures = path.resolve(import.meta.dirname, "../fixtures/models");

const VARIANTS = ["llama-2-tied-gqa", "llama-biases", "mistral-window", "llama-rope-yarn"];
/** A software driver takes long: one model, all its parameters moved together. Every op has its own test there too. */
const ON_VULKAN = ["llama-biases"];

describe.each(testBackends)("the gradient of a whole model on %s", (name, options) => {
  const backend = Backend.open(options);
  const finished: { free(): void }[] = [];
  afterAll(() => {
    for (const item of finished) item.free();
    backend.free();
  });

  it.each(name === "Vulkan" ? ON_VULKAN : VARIANTS)(
    "is the slope of the loss along random directions of every parameter: %s",
    async (variant) => {
      const { config, source } = openCheckpoint(path.join(fixtures, variant));
      const model = modelFromConfig(config);
      const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: true });
      const random = new Random(2);
      const [batch, length] = [2, 40];
      const draw = () => Int32Array.from({ length: batch * length }, () => random.integer(model.vocabSize));
      const g = new Graph(backend);
      finished.push(g, weights);
      const input = g.input("tokens", "i32", [batch, length]);
      const { loss, feed } = crossEntropyObjective.build({
        g,
        model,
        tokens: input,
        student: model.forward(g, weights.get, input),
        taps: new Map(),
        auxiliary: () => {
          throw new Error("not needed");
        },
      });
      g.output(loss);
      const derived = gradients(g, loss, weights.trained).map((gradient) => g.output(gradient));
      const tokens = draw();
      g.write(input, tokens);
      await feed({ tokens, targets: draw() }, [0, 1]);
      await g.run();
      const analytic = derived.map((gradient) => g.read(gradient));
      /** Moves some of the parameters at once. */
      const checkSlope = async (moved: readonly number[]) => {
        const all = moved.map((i) => {
          const weight = weights.trained[i]!;
          const direction = Float32Array.from({ length: elementCount(weight.shape) }, () => random.normal());
          return { weight, at: weights.store.read(weight), direction, gradient: analytic[i]! };
        });
        const lossAt = async (step: number) => {
          for (const { weight, at, direction } of all)
            weights.store.write(
              weight,
              at.map((value, j) => value + step * direction[j]!),
            );
          await g.run();
          return g.read(loss)[0]!;
        };
        const step = 2e-3 / Math.sqrt(moved.length);
        const coarse = ((await lossAt(2 * step)) - (await lossAt(-2 * step))) / (4 * step);
        const fine = ((await lossAt(step)) - (await lossAt(-step))) / (2 * step);
        for (const { weight, at } of all) weights.store.write(weight, at);
        const numeric = (4 * fine - coarse) / 3;
        const sum = (of: (value: number, direction: number) => number) =>
          all.reduce(
            (total, { gradient, direction }) => total + gradient.reduce((part, v, j) => part + of(v, direction[j]!), 0),
            0,
          );
        const slope = sum((value, direction) => value * direction);
        const norm = Math.sqrt(sum((value) => value * value));
        const names = all.map(({ weight }) => weight.name).join();
        expect(Math.abs(slope - numeric), names).toBeLessThan(2e-3 * Math.sqrt(moved.length) + 0.02 * norm);
      };
      const indices = weights.trained.map((_, i) => i);
      for (const moved of name === "Vulkan" ? [indices] : indices.map((i) => [i])) await checkSlope(moved);
    },
  );
});
