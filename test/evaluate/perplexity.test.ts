import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { gunzipSync } from "node:zlib";
import { afterAll, describe, expect, it } from "vitest";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { openCorpus, Tokenizer } from "../../src/data/index.js";
import { perplexity } from "../../src/evaluate/index.js";
import { Backend } from "../../src/ggml/index.js";
import { initialize, loadWeights, modelFromConfig, openCheckpoint } from "../../src/models/index.js";
import { corpora, hasSharedData, stories260K } from "../shared-data.js";
import { temporaryDirectory } from "../temporary.js";
import { streamOf } from "../tokens.js";

const directory = temporaryDirectory();
const backend = Backend.open({ device: "cpu" });
afterAll(() => backend.free());

/** What transformers computed on the same sequences (bench/peers/perplexity.py). */
const reference = readJsonObject(path.resolve(import.meta.dirname, "../fixtures/perplexity-stories260K.json")) as {
  documents: number;
  losses: { length: number; loss: number; tokens: number }[];
};

describe("perplexity", () => {
  it.skipIf(!hasSharedData).each(reference.losses)(
    "of stories260K in sequences of $length equals transformers'",
    async ({ length, loss, tokens }) => {
      const text = gunzipSync(readFileSync(path.join(corpora, "tinystories-excerpt.txt.gz"))).toString();
      const documents = text.split("<|endoftext|>").filter((document) => document.trim() !== "");
      const file = path.join(directory, "excerpt.txt");
      writeFileSync(file, documents.slice(0, reference.documents).join("<|endoftext|>"));
      const { train } = await openCorpus([file], await Tokenizer.load(stories260K), { cacheDir: directory });
      const { config, source } = openCheckpoint(stories260K);
      const weights = loadWeights(backend, modelFromConfig(config), source, { dtype: "f32", trainable: false });
      const result = await perplexity(backend, weights, train, { sequenceLength: length });
      weights.free();
      expect(result.tokens).toBe(tokens);
      expect(result.loss).toBeCloseTo(loss, 4);
      expect(result.perplexity).toBeCloseTo(Math.exp(loss), 3);
    },
  );

  const model = modelFromConfig({
    model_type: "llama",
    vocab_size: 16,
    hidden_size: 8,
    intermediate_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 2,
  });

  it("does not depend on how many sequences are computed at once, and counts a short last one", async () => {
    const weights = initialize(backend, model, 1);
    const stream = streamOf(
      Array.from({ length: 95 }, (_, i) => (i * 7) % 16),
      directory,
    );
    const results = [];
    for (const batchSize of [1, 3, 10])
      results.push(await perplexity(backend, weights, stream, { sequenceLength: 10, batchSize }));
    for (const { loss, tokens } of results) {
      expect(tokens).toBe(94);
      expect(loss).toBeCloseTo(results[0]!.loss, 5);
    }
    weights.free();
  });

  it("refuses data of another vocabulary, and data without anything to predict", async () => {
    const weights = initialize(backend, model, 1);
    const run = (ids: number[]) => perplexity(backend, weights, streamOf(ids, directory, `ids-${ids.length}`));
    await expect(run([1, 2, 16])).rejects.toThrow(/token id 16, the model's vocabulary ends at 15/);
    await expect(run([1])).rejects.toThrow(/fewer than two tokens/);
    weights.free();
  });
});
