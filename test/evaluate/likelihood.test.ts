import path from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { Tokenizer } from "../../src/data/index.js";
import {
  EngineLikelihoods,
  type Likelihood,
  type LogLikelihoodRequest,
  RequestEncoder,
  type TokenPair,
} from "../../src/evaluate/index.js";
import { packSequences, type ScoredSequence } from "../../src/evaluate/packing.js";
import { Backend } from "../../src/ggml/index.js";
import { loadWeights, modelFromConfig, openCheckpoint, openWeights } from "../../src/models/index.js";
import { Graph } from "../../src/tensor/index.js";

const directory = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const { config, source } = openCheckpoint(directory);
const tokenizer = await Tokenizer.load(directory);

describe("packed sequences", () => {
  const ids = fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 1, maxLength: 12 });
  const sequence = fc.tuple(ids, fc.integer({ min: 1, max: 3 })).map(
    ([input, count]): ScoredSequence => ({
      input: Int32Array.from(input),
      targets: Int32Array.from({ length: Math.min(count, input.length) }, (_, i) => 100 + i),
    }),
  );

  it("read what is before them in their own sequence, and nothing else", () => {
    const packable = fc.tuple(fc.array(sequence, { minLength: 1, maxLength: 20 }), fc.integer({ min: 0, max: 60 }));
    fc.assert(
      fc.property(packable, ([sequences, places]) => {
        const packings = packSequences(sequences, places);
        const members = packings.flatMap((packing) => packing.members);
        expect([...members].sort((a, b) => a - b)).toEqual(sequences.map((_, i) => i));
        for (const { tokens, positions, ends, rows, targets, members: own } of packings) {
          expect(tokens.length).toBeLessThanOrEqual(sequences[own[0]!]!.input.length + places);
          let at = 0;
          for (const member of own) {
            const { input, targets: expected } = sequences[member]!;
            expected.forEach((target, i) => {
              const row = rows[at]!;
              const depth = input.length - expected.length + i;
              const read = [...tokens.keys()].filter((place) => place <= row && row < ends[place]!);
              expect(read.map((place) => tokens[place])).toEqual([...input.subarray(0, depth + 1)]);
              expect(read.map((place) => positions[place])).toEqual(read.map((_, j) => j));
              expect(targets[at]).toBe(target);
              at++;
            });
          }
        }
      }),
      { numRuns: 300 },
    );
  });

  it("are computed once where they are equal", () => {
    const same = { input: Int32Array.of(1, 2, 3, 4), targets: Int32Array.of(5) };
    const other = { input: Int32Array.of(1, 2, 3, 9), targets: Int32Array.of(5) };
    const [packing] = packSequences([same, other, same], 100);
    expect(packing?.tokens).toEqual(Int32Array.of(1, 2, 3, 4, 9));
    expect(packSequences([same, other, same], 0).map(({ members }) => members.length)).toEqual([2, 1]);
  });
});

it("sequences up to LongRoPE's original length are rotated as by themselves, however many are computed together", async () => {
  const backend = Backend.open({ device: "cpu" });
  const half = (value: number) => Array.from({ length: 16 }, (_, i) => value + i / 16);
  const rope = {
    type: "longrope",
    short_factor: half(1),
    long_factor: half(4),
    original_max_position_embeddings: 2048,
  };
  const model = modelFromConfig({ ...config, rope_scaling: rope, max_position_embeddings: 8192 });
  const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: false });
  const engine = new EngineLikelihoods(backend, weights, tokenizer, { maxLength: 8000 });
  const of = (seed: string, length: number): LogLikelihoodRequest => ({
    kind: "log-likelihood",
    context: Array.from({ length }, (_, i) => `${seed}${i} kites`).join(" "),
    continuation: " and a boat",
  });
  const requests = [of("a", 200), of("b", 200), of("c", 700)];
  const lengths = (await RequestEncoder.of(tokenizer).pairs(requests)).map(({ context }) => context.length);
  expect(lengths[0]! + lengths[1]!).toBeGreaterThan(2048);
  expect(Math.max(lengths[0]!, lengths[1]!)).toBeLessThan(2040);
  expect(lengths[2]).toBeGreaterThan(2048);
  const answers = async (...asked: LogLikelihoodRequest[]) => {
    const replies: Likelihood[] = [];
    await engine.logLikelihoods(asked, (i, reply) => {
      replies[i] = reply;
    });
    return replies.map(({ logLikelihood }) => logLikelihood);
  };
  const together = await answers(...requests);
  for (const [i, request] of requests.entries()) {
    const [alone = 0] = await answers(request);
    expect(Math.abs(together[i]! - alone)).toBeLessThan(1e-3 * Math.abs(alone));
  }
  weights.free();
  backend.free();
});

describe.each([
  { kernels: "auto", changes: {} },
  { kernels: "none", changes: {} },
  { kernels: "auto", changes: { model_type: "mistral", sliding_window: 20 } }, // by position, also among shared beginnings
  { kernels: "auto", changes: {}, memoryBytes: 1e5 }, // read layer by layer
  { kernels: "none", changes: { model_type: "mistral", sliding_window: 20 }, memoryBytes: 1e5 },
] as const)("log-likelihoods with %j", ({ kernels, changes, ...options }) => {
  const backend = Backend.open({ device: "cpu", kernels });
  const model = modelFromConfig({ ...config, ...changes });
  const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: false });
  const read = openWeights(backend, { model, source }, { dtype: "f32", ...options });
  const engine = new EngineLikelihoods(backend, read, tokenizer, { maxLength: 96 });
  afterAll(() => {
    weights.free();
    read.free();
    backend.free();
  });

  const encoder = RequestEncoder.of(tokenizer);
  const alone = async (request: LogLikelihoodRequest) => ofPair((await encoder.pairs([request]))[0]!);

  /** The same without sharing: by itself through the plain forward pass. */
  async function ofPair({ context, continuation }: TokenPair): Promise<Likelihood> {
    const ids = [...context, ...continuation].slice(-97);
    const g = new Graph(backend);
    const tokens = g.input("tokens", "i32", [1, ids.length - 1]);
    const logits = g.output(model.forward(g, weights.get, tokens).logits());
    try {
      g.write(tokens, Int32Array.from(ids.slice(0, -1)));
      await g.run();
      const all = g.read(logits);
      let logLikelihood = 0;
      let isGreedy = true;
      for (let i = ids.length - 1 - continuation.length; i < ids.length - 1; i++) {
        const row = [...all.subarray(i * model.vocabSize, (i + 1) * model.vocabSize)];
        const target = row[ids[i + 1]!]!;
        logLikelihood += target - Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0));
        isGreedy &&= target === Math.max(...row);
      }
      return { logLikelihood, isGreedy };
    } finally {
      g.free();
    }
  }

  it("of requests that share their beginnings are those of each by itself", async () => {
    const stories = ["Once upon a time there was a little cat. ", "One day, Tom saw a big red ball. He "];
    const questions = ["The cat was", "Tom liked the", "She said:", ""];
    const requests = stories.flatMap((story) =>
      questions.flatMap((question) =>
        [" happy", " sad and went home to sleep", " a", " happy", ""].map((end) => ({
          kind: "log-likelihood" as const,
          context: story.repeat(3) + question,
          continuation: end,
        })),
      ),
    );
    requests.push({ kind: "log-likelihood", context: "", continuation: "Once upon" });
    const replies: Likelihood[] = [];
    await engine.logLikelihoods(requests, (index, reply) => {
      expect(replies[index], "answered once").toBeUndefined();
      replies[index] = reply;
    });
    expect(replies.filter(Boolean)).toHaveLength(requests.length);
    for (const [i, request] of requests.entries()) {
      const expected = await alone(request);
      const label = JSON.stringify(request);
      expect(Math.abs(replies[i]!.logLikelihood - expected.logLikelihood), label).toBeLessThan(1e-4);
      expect(replies[i]!.isGreedy, label).toBe(expected.isGreedy);
    }
  });

  it("of requests with nothing to predict are certain", async () => {
    const replies: Likelihood[] = [];
    const nothing = { kind: "log-likelihood" as const, context: "Once", continuation: "" };
    await engine.logLikelihoods([nothing, nothing], (index, reply) => {
      replies[index] = reply;
    });
    expect(replies).toEqual([nothing, nothing].map(() => ({ logLikelihood: 0, isGreedy: true })));
  });

  it("of a long text count each token once, in windows", async () => {
    const text = "Once upon a time there was a little cat who liked to play in the garden. ".repeat(6);
    let rolled = Number.NaN;
    await engine.logLikelihoods([{ kind: "rolling", text }], (_, reply) => {
      rolled = reply.logLikelihood;
    });
    const windows = await encoder.windows({ kind: "rolling", text }, 96);
    const [ids] = await tokenizer.encode([text], true);
    expect(windows.flatMap(({ continuation }) => continuation)).toEqual(ids);
    expect(windows.length).toBeGreaterThan(2);
    let expected = 0;
    for (const window of windows) expected += (await ofPair(window)).logLikelihood;
    expect(Math.abs(rolled / expected - 1)).toBeLessThan(1e-6);
  });
});
