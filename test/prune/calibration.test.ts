import { createHash } from "node:crypto";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { readTensor } from "../../src/checkpoint/index.js";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { Sequences } from "../../src/data/index.js";
import { Backend } from "../../src/ggml/index.js";
import { loadWeights, openCheckpoint } from "../../src/models/index.js";
import {
  calibrate,
  keptIndices,
  loadScores,
  planWithLayers,
  prune,
  type Scores,
  saveScores,
} from "../../src/prune/index.js";
import { composedTestBackends } from "../devices.js";
import { hasSharedData, stories260K } from "../shared-data.js";
import { temporaryDirectory } from "../temporary.js";
import { streamOf } from "../tokens.js";

/** PyTorch's results with the same formulas (bench/peers/importance.py). */
const reference = readJsonObject(path.resolve(import.meta.dirname, "../fixtures/importance-stories260K.json")) as {
  plan: { hidden: number; ffn: number; heads: number; kvHeads: number; keptLayers: number[] };
  stream: number[];
  scores: Record<string, number[]>;
  pruned: Record<string, string>;
};

/** The CPU, with each set of kernels. */
const backends = composedTestBackends.filter(([, options]) => options.device === "cpu");

describe.skipIf(!hasSharedData).each(backends)("importance on stories260K, on %s", (_name, options) => {
  const directory = temporaryDirectory();
  const backend = Backend.open(options);
  afterAll(() => backend.free());
  const open = () => openCheckpoint(stories260K);
  const score = async (batchSize: number): Promise<Scores> => {
    const { model, source } = open();
    const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: false });
    const sequences = new Sequences(streamOf(reference.stream, directory), 64);
    const scores = await calibrate(backend, weights, sequences, { samples: 4, batchSize, computeType: "f32" });
    weights.free();
    return scores;
  };

  it.each([1, 2, 4])("equals PyTorch's on every axis, computed %i sequences at a time", async (batchSize) => {
    const scores = await score(batchSize);
    expect([...scores.keys()].sort()).toEqual(Object.keys(reference.scores).sort());
    for (const [dimension, expected] of Object.entries(reference.scores)) {
      const largest = Math.max(...expected.map(Math.abs));
      const worst = Math.max(...expected.map((value, i) => Math.abs(value - scores.get(dimension)![i]!)));
      expect(worst / largest, dimension).toBeLessThan(1e-4);
    }
  });

  it("prunes to the bits that PyTorch's slicing gives, on all axes at once", async () => {
    const { model, source } = open();
    const { keptLayers, ...sizes } = reference.plan;
    const plan = planWithLayers(model, sizes, keptLayers);
    const pruned = prune({ model, source }, plan, keptIndices(model, plan, await score(4)));
    const hashes = [...pruned.source.tensors.keys()].map((name) => [
      name,
      createHash("sha256").update(readTensor(pruned.source, name)).digest("hex"),
    ]);
    expect(Object.fromEntries(hashes)).toEqual(reference.pruned);
  });

  it("is kept in a file and read back for the same model only", async () => {
    const file = path.join(directory, "scores.safetensors");
    const { model } = open();
    const scores = await score(4);
    saveScores(file, scores);
    expect(loadScores(file, model)).toEqual(scores);
    const other = model.resized({ ...model.sizes, hidden: 32 });
    expect(() => loadScores(file, other)).toThrow(/no 32 scores for hidden: it was made for another model/);
  });
});
