import { readdirSync, readFileSync, statSync } from "node:fs";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Sequences } from "../../src/data/index.js";
import { type SparseTargets, SparseTeacher, sampledTargets, topKTargets } from "../../src/distill/index.js";
import { Backend } from "../../src/ggml/index.js";
import { initialize, type ModelWeights, modelFromConfig, StreamedWeights } from "../../src/models/index.js";
import { type ComputeType, Graph } from "../../src/tensor/index.js";
import { temporaryDirectory } from "../temporary.js";
import { streamOf } from "../tokens.js";

const [VOCAB, LENGTH] = [40, 300]; // a batch of two sequences has three ranges of rows
const directory = temporaryDirectory();
const backend = Backend.open({ device: "cpu", threads: 1 });
const model = modelFromConfig({
  model_type: "llama",
  vocab_size: VOCAB,
  hidden_size: 32,
  intermediate_size: 32,
  num_hidden_layers: 1,
  num_attention_heads: 2,
});
const weights = initialize(backend, model, 4);
afterAll(() => {
  weights.free();
  backend.free();
});
const ids = Array.from({ length: 6 * LENGTH + 1 }, (_, i) => (i * i + 3 * i) % VOCAB);
const sequences = new Sequences(streamOf(ids, directory), LENGTH);
const tokensOf = (numbers: readonly number[]) => sequences.batch(numbers).tokens;

const sampled = (options: { samples?: number; seed?: number; temperature?: number } = {}) =>
  sampledTargets({ samples: 12, seed: 5, temperature: 1, vocabSize: VOCAB, ...options });

/** The targets of batches of sequences, and how often the teacher was asked for. */
async function feed(
  targets: SparseTargets,
  batches: readonly (readonly number[])[],
  cacheDirectory?: string,
  computeType: ComputeType = "f32",
) {
  let asked = 0;
  const load = (): ModelWeights => {
    asked++;
    return weights;
  };
  const options = { targets, computeType, teacherId: "test", vocabSize: VOCAB, cacheDirectory };
  const teacher = new SparseTeacher(backend, load, sequences, options);
  const fed = new Map<number, { indices: Int32Array; values: Float32Array }>();
  for (const numbers of batches) {
    const g = new Graph(backend);
    const inputs = teacher.declareInputs(g, numbers.length * LENGTH);
    await teacher.feed(g, inputs, numbers.length * LENGTH, sequences.batch(numbers), numbers);
    const [indices, values] = [g.readInt32(inputs.indices), g.read(inputs.values)];
    const width = LENGTH * targets.slots;
    numbers.forEach((number, i) => {
      const range = [i * width, (i + 1) * width] as const;
      fed.set(number, {
        indices: indices.slice(...range).map((index) => index % VOCAB),
        values: values.slice(...range),
      });
    });
    g.free();
  }
  teacher.free();
  return { fed, asked };
}

describe("a teacher of whom samples are taken", () => {
  it("cannot be asked for samples of another vocabulary than its own", async () => {
    await expect(feed(sampledTargets({ samples: 3, seed: 1, temperature: 1, vocabSize: 39 }), [[0]])).rejects.toThrow(
      /targets of 39 tokens cannot be sampled from logits of 40/,
    );
  });

  it("gives the same bits computed anew, written to a cache and read from it", async () => {
    const cache = path.join(directory, "same");
    const batches = [
      [0, 3],
      [5, 2],
    ];
    const computed = await feed(sampled(), batches);
    const written = await feed(sampled(), batches, cache);
    const read = await feed(sampled(), batches, cache);
    expect(written.fed).toEqual(computed.fed);
    expect(read.fed).toEqual(computed.fed);
    expect([computed.asked, written.asked, read.asked]).toEqual([2, 2, 0]);
  });

  it("does not read what was computed in another type", async () => {
    const cache = path.join(directory, "types");
    await feed(sampled(), [[0, 1]], cache, "bf16");
    expect((await feed(sampled(), [[0, 1]], cache, "f32")).asked).toBe(1);
    expect((await feed(sampled(), [[0, 1]], cache, "bf16")).asked).toBe(0);
  });

  it("gives them whatever the order and the batches", async () => {
    const { fed } = await feed(sampled(), [
      [0, 1],
      [2, 3],
    ]);
    const { fed: other } = await feed(sampled(), [
      [3, 1],
      [0, 2],
    ]);
    for (const number of [0, 1, 2, 3]) expect(other.get(number)).toEqual(fed.get(number));
  });

  it("goes on where an earlier run was killed", async () => {
    const cache = path.join(directory, "killed");
    const whole = await feed(sampled(), [
      [0, 1],
      [2, 3],
      [4, 5],
    ]);
    await feed(sampled(), [[0, 1]], cache);
    const resumed = await feed(
      sampled(),
      [
        [0, 1],
        [1, 2],
        [3, 4],
        [5, 0],
      ],
      cache,
    );
    expect(resumed.asked).toBe(3);
    expect(new Map([...resumed.fed].sort(([a], [b]) => a - b))).toEqual(whole.fed);
    expect(
      (
        await feed(
          sampled(),
          [
            [4, 5],
            [2, 3],
            [0, 1],
          ],
          cache,
        )
      ).asked,
    ).toBe(0);
  });

  it("has an entry of its own for each number of samples, seed and temperature, and beside the most probable tokens", async () => {
    const cache = path.join(directory, "others");
    const kinds = [
      sampled(),
      sampled({ samples: 13 }),
      sampled({ seed: 6 }),
      sampled({ temperature: 2 }),
      topKTargets({ k: 12, temperature: 1 }),
      topKTargets({ k: 12, temperature: 2 }),
    ];
    for (const targets of kinds) expect((await feed(targets, [[0, 1]], cache)).asked).toBe(1);
    for (const targets of kinds) expect((await feed(targets, [[0, 1]], cache)).asked).toBe(0);
    expect(readdirSync(cache)).toHaveLength(kinds.length);
  });

  it("keeps as many bytes as distinct ids take, and says in the cache what they are", async () => {
    const cache = path.join(directory, "bytes");
    const { fed } = await feed(
      sampled(),
      [
        [0, 1],
        [2, 3],
      ],
      cache,
    );
    const distinct = [...fed.values()].flatMap(({ values }) => [...values]).filter((value) => value > 0).length;
    const entry = path.join(cache, readdirSync(cache)[0]!);
    expect(statSync(path.join(entry, "entries-1.bin")).size).toBe(2 * distinct); // 12 * 40 counts and ids: two bytes
    expect(JSON.parse(readFileSync(path.join(entry, "cache.json"), "utf8"))).toEqual({
      sequences: 6,
      sequenceLength: LENGTH,
      targets: ["sampled", 12, 1, 5],
    });
  });
});

describe("a teacher that does not fit in memory", () => {
  const kinds = [sampled(), topKTargets({ k: 5, temperature: 2 })];
  const options = { computeType: "f32", teacherId: "test", vocabSize: VOCAB } as const;
  const streamed = (statesBytes: number) =>
    new StreamedWeights({ model, source: weights.source() }, "f32", statesBytes);

  it.each(kinds)("fills a cache with the bits of one that does, whatever is there already", async (targets) => {
    const whole = await feed(targets, [[4, 1]], path.join(directory, `whole-${targets.slots}`));
    const rest = await feed(
      targets,
      [
        [0, 3],
        [5, 2],
      ],
      path.join(directory, `whole-${targets.slots}`),
    );
    const cacheDirectory = path.join(directory, `filled-${targets.slots}`);
    await feed(targets, [[1, 4]], cacheDirectory);
    for (const statesBytes of [0, 1e9]) {
      const teacher = new SparseTeacher(backend, () => weights, sequences, { ...options, targets, cacheDirectory });
      const done: number[] = [];
      await teacher.fillCache(streamed(statesBytes), tokensOf, [0, 1, 2, 3, 4, 5, 0, 3], {
        onProgress: (n) => void done.push(n),
      });
      if (statesBytes === 0) expect(done.at(-1)).toBe(6);
      else expect(done).toEqual([]); // nothing is missing any more
      teacher.free();
    }
    const { fed, asked } = await feed(
      targets,
      [
        [0, 3],
        [5, 2],
        [4, 1],
      ],
      cacheDirectory,
    );
    expect(asked).toBe(0);
    expect(fed).toEqual(new Map([...rest.fed, ...whole.fed]));
  });

  it("needs a cache, and is blamed where its outputs are not finite", async () => {
    const targets = sampled();
    const uncached = new SparseTeacher(backend, () => weights, sequences, { ...options, targets });
    await expect(uncached.fillCache(streamed(0), tokensOf, [0])).rejects.toThrow(/needs a cache/);
    const damaged = initialize(backend, model, 4);
    damaged.store.write(damaged.get("model.norm.weight"), new Float32Array(32).fill(3e38));
    const source = damaged.source();
    const cacheDirectory = path.join(directory, "damaged");
    const teacher = new SparseTeacher(backend, () => weights, sequences, { ...options, targets, cacheDirectory });
    await expect(teacher.fillCache(new StreamedWeights({ model, source }, "f32", 0), tokensOf, [0])).rejects.toThrow(
      /^the teacher gives outputs that are not finite/,
    );
    expect((await feed(targets, [[0]], cacheDirectory)).asked).toBe(1); // nothing of it was kept
    teacher.free();
    uncached.free();
    damaged.free();
  });
});
