import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { readTensor, writeCheckpoint } from "../../src/checkpoint/index.js";
import { Sequences, Tokenizer } from "../../src/data/index.js";
import {
  DISTILLATION_DEFAULTS,
  defaultTrainOptions,
  distillationObjective,
  SparseTeacher,
  sampledTargets,
  topKTargets,
  train,
} from "../../src/distill/index.js";
import { EngineLikelihoods, perplexity } from "../../src/evaluate/index.js";
import { Backend } from "../../src/ggml/index.js";
import { loadWeights, modelFromConfig, openCheckpoint, openWeights } from "../../src/models/index.js";
import { calibrate } from "../../src/prune/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { temporaryDirectory } from "../temporary.js";
import { streamOf } from "../tokens.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const root = temporaryDirectory();

const MATRIX = "model.layers.2.mlp.up_proj.weight";

/** The tiny teacher in f32, with some elements of a tensor changed where they lie in the file. */
function damaged(name: string, tensor: string, changes: Readonly<Record<number, number>>): string {
  const directory = path.join(root, name);
  const { config, source } = openCheckpoint(teacher);
  writeCheckpoint(directory, config, source, { dtype: "f32", carryFrom: teacher });
  const file = path.join(directory, "model.safetensors");
  const bytes = readFileSync(file);
  const header = Number(bytes.readBigUInt64LE(0));
  const { data_offsets } = JSON.parse(bytes.toString("utf8", 8, 8 + header))[tensor];
  for (const [element, value] of Object.entries(changes))
    bytes.writeFloatLE(value, 8 + header + data_offsets[0] + 4 * Number(element));
  writeFileSync(file, bytes);
  return directory;
}
const width = openCheckpoint(teacher).source.tensors.get(MATRIX)?.shape[1] ?? 0;
const load = (backend: Backend, directory: string) => {
  const { config, source } = openCheckpoint(directory);
  return loadWeights(backend, modelFromConfig(config), source, { dtype: "f32", trainable: false });
};

describe("a weight that is no number", () => {
  const backend = Backend.open({ device: "cpu" });
  afterAll(() => backend.free());
  const directory = damaged("nan", MATRIX, { [3 * width + 5]: Number.NaN });
  const where = /model\.layers\.2\.mlp\.up_proj\.weight holds NaN at row 3, column 5/;

  it("is named when weights are loaded, copied or converted", async () => {
    const { config, source } = openCheckpoint(directory);
    expect(() => load(backend, directory)).toThrow(where);
    expect(() => readTensor(source, MATRIX)).toThrow(where);
    for (const dtype of ["f32", "bf16"] as const)
      expect(() => writeCheckpoint(path.join(root, "copy"), config, source, { dtype })).toThrow(where);
    for (const kind of ["f32", "f16", "q8_0"] as const)
      await expect(exportGguf(path.join(root, "copy.gguf"), openCheckpoint(directory), { kind })).rejects.toThrow(
        /blk\.2\.ffn_up\.weight holds NaN/,
      );
  });

  it("is named when it is infinite", () => {
    expect(() => load(backend, damaged("infinite", MATRIX, { 0: -Infinity }))).toThrow(
      /holds -Infinity at row 0, column 0/,
    );
  });

  it("is named in a quantized file", async () => {
    const file = path.join(root, "scale.gguf");
    await exportGguf(file, openCheckpoint(teacher), { kind: "q8_0" });
    const { source } = openCheckpoint(file);
    const row = Buffer.from(source.readRows(MATRIX, 0, 1)); // its first block begins with an f16 scale
    const bytes = readFileSync(file);
    bytes.writeUInt16LE(0x7e00, bytes.indexOf(row));
    const changed = path.join(root, "changed.gguf");
    writeFileSync(changed, bytes);
    expect(() => load(backend, changed)).toThrow(/model\.layers\.2\.mlp\.up_proj\.weight holds NaN or infinite values/);
  });
});

describe("a weight beyond what f16 holds", () => {
  const directory = damaged("large", MATRIX, { 7: 1e5, 8: -65_504 });

  it("keeps its tensor in f32 in a directory, with a note", () => {
    const { config, source } = openCheckpoint(directory);
    const notes: string[] = [];
    const out = path.join(root, "halves");
    writeCheckpoint(out, config, source, { dtype: "f16", onNote: (note) => notes.push(note) });
    const written = openCheckpoint(out).source;
    expect(notes).toEqual([expect.stringMatching(/up_proj\.weight has values beyond 65504.*stored as f32/)]);
    const types = [...written.tensors].map(([name, { dtype }]) => [name === MATRIX, dtype].join());
    expect(new Set(types)).toEqual(new Set(["true,f32", "false,f16"]));
    expect(Buffer.compare(readTensor(written, MATRIX), readTensor(source, MATRIX))).toBe(0);
  });

  it("is refused in a GGUF file of f16, and written in others", async () => {
    const file = path.join(root, "large.gguf");
    await expect(exportGguf(file, openCheckpoint(directory), { kind: "f16" })).rejects.toThrow(
      /ffn_up\.weight has values up to 1\.000e\+5, which f16 cannot hold/,
    );
    await exportGguf(file, openCheckpoint(directory), { kind: "bf16" });
    const huge = damaged("huge", MATRIX, { 0: 1e9 });
    await expect(exportGguf(file, openCheckpoint(huge), { kind: "q8_0" })).rejects.toThrow(/which q8_0 cannot hold/);
  });
});

describe.each(["auto", "none"] as const)("a model whose numbers overflow, with kernels %s,", (kernels) => {
  const backend = Backend.open({ device: "cpu", kernels });
  // finite weights, but the products of what layer 1 normalizes are beyond f32
  const gains = Object.fromEntries(Array.from({ length: 64 }, (_, i) => [i, 3e38]));
  const directory = damaged(`overflow-${kernels}`, "model.layers.1.input_layernorm.weight", gains);
  const weights = load(backend, directory);
  afterAll(() => {
    weights.free();
    backend.free();
  });
  const first = /gives outputs that are not finite.*first after layers\.1/;
  const ids = Array.from({ length: 400 }, (_, i) => (i * 37) % 500);
  const stream = streamOf(ids, root);
  const sequences = new Sequences(stream, 32);

  it("is named by its first layer, whatever is measured", async () => {
    await expect(perplexity(backend, weights, stream, { sequenceLength: 32 })).rejects.toThrow(first);
    const likelihoods = new EngineLikelihoods(backend, weights, await Tokenizer.load(teacher));
    const asked = likelihoods.logLikelihoods(
      [{ kind: "log-likelihood", context: "One day", continuation: " she" }],
      () => {},
    );
    await expect(asked).rejects.toThrow(first);
    await expect(
      calibrate(backend, weights, sequences, { samples: 4, batchSize: 2, computeType: "f32" }),
    ).rejects.toThrow(first);
    const streamed = openWeights(backend, openCheckpoint(directory), { dtype: "f32", memoryBytes: 1e4 });
    await expect(perplexity(backend, streamed, stream, { sequenceLength: 32 })).rejects.toThrow(first);
  });

  it("is blamed as a teacher, not the learning rate", async () => {
    const student = (() => {
      const { config, source } = openCheckpoint(teacher);
      return loadWeights(backend, modelFromConfig(config), source, { dtype: "f32", trainable: true });
    })();
    const options = { ...defaultTrainOptions(128, 32 * 8, 32, 4), computeType: "f32" as const };
    const { vocabSize } = weights.model;
    const [topK, sampled] = [
      topKTargets({ k: 4, temperature: 1 }),
      sampledTargets({ samples: 4, temperature: 1, seed: 0, vocabSize }),
    ].map(
      (targets) =>
        new SparseTeacher(backend, () => weights, sequences, {
          targets,
          computeType: "f32",
          teacherId: "overflow",
          vocabSize,
        }),
    );
    for (const objective of [
      distillationObjective({ kind: "online", weights }, DISTILLATION_DEFAULTS),
      distillationObjective({ kind: "sparse", source: topK! }, { ...DISTILLATION_DEFAULTS, divergence: "top-k" }),
      distillationObjective({ kind: "sparse", source: sampled! }, DISTILLATION_DEFAULTS),
    ])
      await expect(train({ backend, student, objective, sequences, options })).rejects.toThrow(
        /the teacher gives outputs/,
      );
    topK!.free();
    sampled!.free();
    student.free();
  });
});
