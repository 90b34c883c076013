import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import { openGguf, readTensor } from "../../src/checkpoint/index.js";
import { Backend } from "../../src/ggml/index.js";
import type { GenerateOutcome, QuantizeOutcome } from "../../src/index.js";
import { loadWeights, modelFromConfig, openCheckpoint } from "../../src/models/index.js";
import { temporaryDirectory } from "../temporary.js";
import { coppice, json as jsonOf } from "./command-line.js";

const root = path.resolve(import.meta.dirname, "../..");
const teacher = path.join(root, "examples/tiny-teacher");
const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");
process.env.HF_HUB_OFFLINE = "1";
const main = path.join(root, "bin/coppice.cjs");
const data = path.join(directory, "stories.txt");
writeFileSync(data, corpus(5, 200));
const at = (...names: string[]) => path.join(directory, ...names);

const run = (...args: readonly string[]) => coppice(...args, "--device", "cpu");
const json = <T>(...args: readonly string[]) => jsonOf<T>(...args, "--device", "cpu");

describe("coppice export", () => {
  it("writes GGUF, and back a directory of the same weights", async () => {
    await json("export", teacher, "--out", at("teacher.gguf"));
    await json("export", at("teacher.gguf"), "--out", at("back"));
    const [before, after] = [openCheckpoint(teacher), openCheckpoint(at("back"))];
    for (const [name, { shape }] of before.source.tensors)
      if (shape.length > 1)
        expect(Buffer.compare(readTensor(after.source, name), readTensor(before.source, name))).toBe(0);
    expect(existsSync(at("back", "tokenizer.json"))).toBe(true);
    const lossOf = async (model: string) =>
      (await json<{ loss: number }>("perplexity", model, "--data", data, "--sequence-length", "64")).loss;
    expect(await lossOf(at("back"))).toBe(await lossOf(teacher));
  });

  it("splits large models into files that read as one", async () => {
    await json("export", teacher, "--out", at("split", "m.gguf"), "--shard-bytes", "600KB");
    const files = readdirSync(at("split"));
    expect(files.length).toBeGreaterThan(1);
    const [whole, split] = [openGguf(at("teacher.gguf")), openGguf(at("split", files[0]!))];
    expect([...split.tensors.keys()].sort()).toEqual([...whole.tensors.keys()].sort());
    for (const name of whole.tensors.keys())
      expect(Buffer.compare(readTensor(split, name), readTensor(whole, name))).toBe(0);
    const outcome = await json<GenerateOutcome>(
      "generate",
      at("split", files[0]!),
      "--prompt",
      "One",
      "--max-tokens",
      "4",
      "--threads",
      "1",
    );
    expect(outcome.tokens).toBe(4);
  });
});

describe("coppice quantize", () => {
  const out = at("quantized");
  let outcome: QuantizeOutcome;

  it("makes several kinds and one to a size, and reports what each costs", async () => {
    const types = ["--type", "q8_0,q4_0", "--size", "600KB", "--candidates", "q8_0,q5_0,q4_0"];
    const calibration = ["--data", data, "--sequence-length", "64", "--samples", "16", "--cost-samples", "4"];
    outcome = await json<QuantizeOutcome>(
      "quantize",
      teacher,
      ...types,
      ...calibration,
      "--report",
      "--out",
      out,
      "--threads",
      "1",
    );
    const [q8, q4, mix] = outcome.files as [
      QuantizeOutcome["files"][0],
      QuantizeOutcome["files"][0],
      QuantizeOutcome["files"][0],
    ];
    expect(mix.fileBytes).toBeLessThanOrEqual(600_000);
    expect(mix.fileBytes).toBeGreaterThan(550_000);
    expect(statSync(q8.files[0]!).size).toBe(q8.fileBytes);
    expect(q8.bitsPerWeight).toBeCloseTo(8.5, 1);
    expect(q8.report!.divergence).toBeLessThan(mix.report!.divergence);
    expect(mix.report!.divergence).toBeLessThan(q4.report!.divergence);
    expect(q8.report!.loss).toBeCloseTo(outcome.original!.loss, 3);
    for (const { report } of outcome.files) {
      expect(report!.promptTokensPerSecond).toBeGreaterThan(0);
      expect(report!.generationTokensPerSecond).toBeGreaterThan(0);
    }
  });

  it("makes a file to a size from a quantized one, by costs of its own for each way to measure importances", async () => {
    const [file = ""] = outcome.files[0]!.files;
    const costs = path.join(at("cache"), "type-costs");
    const mixOf = async (samples: string, place: string) => {
      const measuring = [
        "--data",
        data,
        "--sequence-length",
        "64",
        "--samples",
        samples,
        "--cost-samples",
        "4",
        "--probe",
      ];
      const size = ["--size", "600KB", "--candidates", "q8_0,q5_0,q4_0"];
      await json("quantize", file, ...size, ...measuring, "--threads", "1", "--out", at(place));
      return readdirSync(costs).length;
    };
    const known = readdirSync(costs).length;
    expect(await mixOf("4", "mix-4")).toBe(known + 1);
    expect(await mixOf("16", "mix-16")).toBe(known + 2);
    expect(await mixOf("16", "mix-again")).toBe(known + 2);
  });

  it("makes models that every command takes", async () => {
    const [file = ""] = outcome.files[1]!.files;
    const backend = Backend.open({ device: "cpu" });
    const { config, source } = openCheckpoint(file);
    const options = { dtype: "f32", keepsQuantized: true, trainable: false } as const; // as they are deployed
    const weights = loadWeights(backend, modelFromConfig(config), source, options);
    expect(weights.store.byteLength).toBeLessThan(1.1 * outcome.files[1]!.bytes);
    weights.free();
    backend.free();
    const perplexity = await json<{ loss: number }>("perplexity", file, "--data", data, "--sequence-length", "64");
    expect(perplexity.loss).toBeCloseTo(outcome.original!.loss, 1);
    const plan = ["--target", "0.8x", "--data", data, "--samples", "16", "--candidates", "2"];
    await json("prune", file, ...plan, "--out", at("pruned"));
    const training = ["--data", data, "--tokens", "6K", "--sequence-length", "64", "--batch-size", "8"];
    const distilled = await json<{ student: { loss: number }; before: { loss: number } }>(
      ...(["distill", at("pruned"), "--teacher", file, ...training, "--out", at("student")] as const),
    );
    expect(distilled.student.loss).toBeLessThan(distilled.before.loss - 0.01);
  });

  it("makes models that are not advised to be quantized again", async () => {
    const [file = ""] = outcome.files[1]!.files;
    const { status, stderr } = await run(
      "compress",
      file,
      "--target",
      "phone-8gb",
      "--data",
      data,
      "--out",
      at("none"),
    );
    expect({ status, stderr }).toEqual({
      status: 2,
      stderr: expect.stringMatching(/fits phone-8gb as it is, quantized already: there is nothing to cut\n$/),
    });
  });

  it("says what is missing", async () => {
    const refused = (...args: string[]) => run("quantize", teacher, "--out", at("x"), ...args);
    expect(await refused()).toMatchObject({ status: 2, stderr: expect.stringMatching(/--type or --size/) });
    expect(await refused("--type", "q9")).toMatchObject({ status: 2, stderr: expect.stringMatching(/q4_k_m/) });
    expect(await refused("--size", "1MB")).toMatchObject({ status: 2, stderr: expect.stringMatching(/--data/) });
    const file = at("teacher.gguf");
    const onto = await run("quantize", file, "--type", "q8_0", "--out", file);
    expect(onto).toMatchObject({ status: 2, stderr: expect.stringMatching(/is the model itself/) });
  });
});

describe("coppice generate and chat", () => {
  it("continue a text the same way each time, from a directory or a file", async () => {
    const generation = ["--prompt", "One evening,", "--temperature", "0", "--max-tokens", "20", "--threads", "1"];
    const a = await json<GenerateOutcome>("generate", teacher, ...generation);
    const b = await json<GenerateOutcome>("generate", at("teacher.gguf"), ...generation);
    expect(a.text).toBe(b.text);
    expect(a.tokens).toBe(20);
    const { stdout, stderr } = await run("generate", teacher, ...generation);
    expect(stdout).toContain(`One evening,${a.text}`);
    expect(stderr).toMatch(/20 tokens/);
  });

  it("refuse a prompt that does not fit", async () => {
    const { status, stderr } = await run("generate", teacher, "--prompt", "kite ".repeat(400), "--threads", "1");
    expect({ status, stderr }).toEqual({
      status: 2,
      stderr: expect.stringMatching(/the prompt has \d+ tokens, the context 512/),
    });
  });

  it("with a draft write the same, and say what it guessed", async () => {
    const generation = ["--prompt", "One evening,", "--temperature", "0", "--max-tokens", "40", "--threads", "1"];
    const plain = await json<GenerateOutcome>("generate", at("teacher.gguf"), ...generation);
    const drafted = await json<GenerateOutcome>(
      "generate",
      at("teacher.gguf"),
      ...generation,
      "--draft",
      at("quantized", "tiny-teacher-q8_0.gguf"),
    );
    expect(drafted.text).toBe(plain.text);
    expect(drafted.draft!.accepted).toBeGreaterThan(0);
    expect(drafted.withoutDraft!.speedUp).toBeGreaterThan(0);
    const draft = ["--draft", at("quantized", "tiny-teacher-q8_0.gguf")];
    const { stderr } = await coppice("generate", at("teacher.gguf"), "--prompt", "One", "--seed", "1", ...draft);
    expect(stderr).toContain("a text with a seed is written without guesses");
  });

  it("hold a conversation, line by line", async () => {
    const { stdout, status } = spawnSync(
      process.execPath,
      [main, "chat", teacher, "--max-tokens", "8", "--threads", "1", "--json", "--seed", "1", "--device", "cpu"],
      { input: "Hello\n/reset\nGood day\n/exit\nlost\n", encoding: "utf8" },
    );
    expect(status).toBe(0);
    const turns = JSON.parse(stdout) as { user: string; model: string }[];
    expect(turns.map(({ user }) => user)).toEqual(["Hello", "Good day"]);
    expect(turns.every(({ model }) => model.length > 0)).toBe(true);
  });

  it("refuse a damaged file with a reason and exit code 1, whatever is damaged", async () => {
    const good = readFileSync(at("teacher.gguf"));
    const damaged = at("damaged.gguf");
    const tokens = good.indexOf("<|begin|>");
    const changes: [string, (bytes: Buffer) => void][] = [
      ["a count", (bytes) => void bytes.writeBigUInt64LE(1n << 40n, 8)],
      ["a length", (bytes) => void bytes.writeBigUInt64LE(1n << 50n, tokens - 8)],
      ["the architecture", (bytes) => void bytes.write("zzzzz", bytes.indexOf("llama"))],
      ["sizes", (bytes) => void bytes.writeUInt32LE(77, bytes.indexOf("llama.embedding_length") + 22 + 4)],
      ["weights", (bytes) => void bytes.fill(0xff, bytes.length - 4096)],
    ];
    for (const [what, change] of changes) {
      const bytes = Buffer.from(good);
      change(bytes);
      writeFileSync(damaged, bytes);
      const { status, stderr } = await run("generate", damaged, "--prompt", "a", "--max-tokens", "2");
      expect({ what, status }).toEqual({ what, status: 1 });
      expect(stderr, what).toMatch(/coppice: .*damaged/);
    }
  });
});
