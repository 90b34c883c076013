import { writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Sequences, TokenStream } from "../../src/data/index.js";
import { perplexity } from "../../src/evaluate/index.js";
import { SavedStreams } from "../../src/evaluate/saved-streams.js";
import { Backend } from "../../src/ggml/index.js";
import {
  type ModelTensors,
  openCheckpoint,
  openWeights,
  StreamedWeights,
  wholeWeights,
} from "../../src/models/index.js";
import { calibrate } from "../../src/prune/index.js";
import { exportGguf, measureImportance } from "../../src/quantize/index.js";
import { Random } from "../../src/system/random.js";
import { models } from "../models/architectures.js";
import { randomModel } from "../random-model.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();
const backend = Backend.open({ device: "cpu" });
afterAll(() => backend.free());

const LENGTH = 8;
const streamFor = (vocabSize: number) => {
  const random = new Random(5);
  const ids = Int32Array.from({ length: 12 * LENGTH - 3 }, () => Math.floor(random.uniform() * vocabSize));
  return TokenStream.of(ids, "random");
};

/** Everything that is measured by passes over data. */
async function measured(tensors: ModelTensors, memoryBytes: number, computeType: "f32" | "bf16") {
  const { model } = tensors;
  const weights = openWeights(backend, tensors, { dtype: computeType, memoryBytes });
  const stream = streamFor(model.vocabSize);
  const sequences = new Sequences(stream, LENGTH);
  const options = { samples: 8, batchSize: 2, computeType };
  const layers = [0, ...Array(model.layerCount).keys()].slice(-model.layerCount);
  const loss = { sequenceLength: LENGTH, batchSize: 2, computeType };
  try {
    return {
      isStreamed: weights instanceof StreamedWeights,
      loss: await perplexity(backend, weights, stream, loss),
      ofOtherLayers: await perplexity(backend, weights, stream, { ...loss, layers, maxSequences: 3 }),
      scores: await calibrate(backend, weights, sequences, options),
      importance: await measureImportance(backend, weights, sequences, options),
    };
  } finally {
    weights.free();
  }
}

/** Hidden states of the tests take 2 to 24 KiB: a fifth of the one bound holds them, of the other not. */
const [IN_MEMORY, ON_DISK] = [200_000, 4000];

describe("a model that is read layer by layer", () => {
  it.each(models)("has the bits of one that is in memory: $name", async ({ directory }) => {
    const tensors = openCheckpoint(directory);
    const whole = await measured(tensors, Number.POSITIVE_INFINITY, "f32");
    expect(whole.isStreamed).toBe(false);
    expect(await measured(tensors, ON_DISK, "f32")).toEqual({ ...whole, isStreamed: true });
  });

  it("has them in bf16 as well, with states in memory, and where its file is quantized", async () => {
    const { checkpoint } = randomModel(root, "large", {});
    const whole = await measured(checkpoint, Number.POSITIVE_INFINITY, "bf16");
    expect(await measured(checkpoint, IN_MEMORY, "bf16")).toEqual({ ...whole, isStreamed: true });
    const file = path.join(root, "large.gguf");
    await exportGguf(file, checkpoint, { kind: "q4_0" });
    const quantized = openCheckpoint(file);
    const { loss } = await measured(quantized, Number.POSITIVE_INFINITY, "f32");
    expect(await measured(quantized, IN_MEMORY, "f32")).toMatchObject({ isStreamed: true, loss });
  });

  it("tells how far a pass is", async () => {
    const tensors = openCheckpoint(models[0]?.directory ?? "");
    const weights = openWeights(backend, tensors, { dtype: "f32", memoryBytes: ON_DISK });
    const done: number[] = [];
    const stream = streamFor(tensors.model.vocabSize);
    await perplexity(backend, weights, stream, { sequenceLength: LENGTH, onProgress: (n) => void done.push(n) });
    expect(done).toEqual([...done].sort((a, b) => a - b));
    expect(done.at(-1)).toBe(12);
  });

  it.each([ON_DISK, Number.POSITIVE_INFINITY])("stops when it is told to, with %d bytes", async (memoryBytes) => {
    const tensors = openCheckpoint(models[0]?.directory ?? "");
    const weights = openWeights(backend, tensors, { dtype: "f32", memoryBytes });
    const abort = new AbortController();
    let calls = 0;
    const onProgress = () => {
      calls++;
      abort.abort();
    };
    const stream = streamFor(tensors.model.vocabSize);
    const options = { sequenceLength: LENGTH, batchSize: 1, signal: abort.signal, onProgress };
    await expect(perplexity(backend, weights, stream, options)).rejects.toThrow(/abort/i);
    expect(calls).toBe(1);
    weights.free();
  });

  it.each([1, 2])("goes on from layer %i after it was stopped, to the same scores", async (layers) => {
    const { checkpoint } = randomModel(root, `stopped-${layers}`, {});
    const weights = openWeights(backend, checkpoint, { dtype: "f32", memoryBytes: ON_DISK });
    const sequences = new Sequences(streamFor(checkpoint.model.vocabSize), LENGTH);
    const options = { samples: 8, batchSize: 2, computeType: "f32" } as const;
    const wanted = await calibrate(backend, weights, sequences, options);
    const savedStreams = new SavedStreams(path.join(root, `stopped-${layers}.safetensors`), 0);
    const all = 4 * (checkpoint.model.layerCount + 1);
    let batches = 0;
    const stop = () => {
      if (++batches > 4 * layers) throw new Error("stopped");
    };
    const stopped = calibrate(backend, weights, sequences, { ...options, savedStreams, onProgress: stop });
    await expect(stopped).rejects.toThrow("stopped");
    let rest = 0;
    const onProgress = () => void rest++;
    expect(await calibrate(backend, weights, sequences, { ...options, savedStreams, onProgress })).toEqual(wanted);
    expect(rest).toBe(all - 4 * layers);
    // what is kept of other data, or damaged, is not used
    const other = new Sequences(streamFor(checkpoint.model.vocabSize), LENGTH - 1);
    const whole = await calibrate(backend, weights, other, options);
    expect(await calibrate(backend, weights, other, { ...options, savedStreams })).toEqual(whole);
    writeFileSync(path.join(root, `stopped-${layers}.safetensors`), "damaged");
    expect(await calibrate(backend, weights, sequences, { ...options, savedStreams })).toEqual(wanted);
    weights.free();
  });

  it("is refused where the whole is needed, with its size", () => {
    const tensors = openCheckpoint(models[0]?.directory ?? "");
    const weights = openWeights(backend, tensors, { dtype: "f32", memoryBytes: ON_DISK });
    expect(() => wholeWeights(weights, "training")).toThrow(
      /^training needs the whole model in memory, .*B: .*--memory/,
    );
  });
});
