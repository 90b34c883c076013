import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openSafetensors, readTensor } from "../../src/checkpoint/index.js";
import { crossEntropyObjective } from "../../src/distill/index.js";
import { Backend, toFloat32 } from "../../src/ggml/index.js";
import { loadWeights, openCheckpoint, writeModel } from "../../src/models/index.js";
import { Random } from "../../src/system/random.js";
import { elementCount, Graph, gradients } from "../../src/tensor/index.js";
import { composedTestBackends } from "../devices.js";
import { temporaryDirectory } from "../temporary.js";
import {
  cut,
  cutsOf,
  expected,
  logitsOf,
  models,
  relativeDifference,
  sampled,
  withoutFixture,
} from "./architectures.js";

/** What every architecture is held to. Adding one is its file, its line in the registry, and its fixture. */

it("every architecture has a fixture", () => expect(withoutFixture().join("\n")).toBe(""));

/** ggml alone, and one variant of our kernels if there are any. */
const ON_CPU = composedTestBackends;

describe.each(ON_CPU)("on %s", (_, options) => {
  const backend = Backend.open(options);
  afterAll(() => backend.free());

  it.each(models)("gradients of $name are the loss's slope", async ({ directory }) => {
    const { model, source } = openCheckpoint(directory);
    const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: true });
    const { tokens } = expected(backend, directory);
    const [batch, length] = [tokens.length, tokens[0]!.length];
    const g = new Graph(backend, { computeType: "f32" });
    try {
      const input = g.input("tokens", "i32", [batch, length]);
      const student = model.forward(g, weights.get, input);
      const { loss, feed } = crossEntropyObjective.build({
        g,
        model,
        tokens: input,
        student,
        taps: new Map(),
        auxiliary: () => {
          throw new Error("there is none");
        },
      });
      g.output(loss);
      const derived = gradients(g, loss, weights.trained).map((gradient) => g.output(gradient));
      const ids = Int32Array.from(tokens.flat());
      g.write(input, ids);
      await feed({ tokens: ids, targets: Int32Array.from(ids, (id) => (id * 7 + 3) % model.vocabSize) }, [0, 1]);
      await g.run();
      const analytic = derived.map((gradient) => g.read(gradient).slice());
      const random = new Random(3);
      const before = weights.trained.map((weight) => weights.store.read(weight).slice());
      // every parameter alone would take long: all at once, in random directions, each by its own scale
      for (let round = 0; round < 3; round++) {
        const directions = weights.trained.map(({ shape }, i) => {
          const scale = Math.sqrt(analytic[i]!.reduce((sum, x) => sum + x * x, 0) / elementCount(shape)) || 1;
          return Float32Array.from(
            { length: elementCount(shape) },
            (_, j) => (analytic[i]![j]! + scale * random.normal()) / scale,
          );
        });
        const lossAt = async (step: number) => {
          weights.trained.forEach((weight, i) => {
            weights.store.write(
              weight,
              before[i]!.map((value, j) => value + step * directions[i]![j]!),
            );
          });
          await g.run();
          return g.read(loss)[0]!;
        };
        const step = 1e-4;
        const coarse = ((await lossAt(2 * step)) - (await lossAt(-2 * step))) / (4 * step);
        const fine = ((await lossAt(step)) - (await lossAt(-step))) / (2 * step);
        const numeric = (4 * fine - coarse) / 3;
        const slope = analytic.reduce(
          (sum, gradient, i) => sum + gradient.reduce((part, x, j) => part + x * directions[i]![j]!, 0),
          0,
        );
        expect(Math.abs(slope - numeric) / Math.abs(numeric)).toBeLessThan(0.02);
      }
    } finally {
      g.free();
      weights.free();
    }
  });
});

describe("a cut model", () => {
  const backend = Backend.open({ device: "cpu" });
  const root = temporaryDirectory();
  afterAll(() => backend.free());
  const cases = models.flatMap(({ name, directory }) =>
    cutsOf(openCheckpoint(directory).model).map(({ name: axis, plan }) => ({ name, directory, axis, plan })),
  );

  it.each(cases)(
    "$name cut by $axis computes what transformers makes of its files",
    async ({ name, directory, axis, plan }) => {
      const folder = path.join(root, name, axis);
      writeModel(folder, cut(openCheckpoint(directory), plan));
      const again = openCheckpoint(folder);
      expect(again.model.sizes).toEqual(plan.sizes);
      const { tokens } = expected(backend, directory);
      const values = await logitsOf(backend, again, tokens.slice(0, 1));
      const file = openSafetensors(path.join(directory, "cuts.safetensors"));
      const logits = toFloat32(backend.functions, readTensor(file, axis), "f32");
      expect(relativeDifference(sampled(values, again.model.vocabSize, tokens[0]!.length), logits)).toBeLessThan(1e-5);
    },
  );
});
