import { cpSync, utimesSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { type GgufValue, gguf, openGguf, writeGguf } from "../../src/checkpoint/gguf.js";
import { readTensor } from "../../src/checkpoint/index.js";
import { Tokenizer } from "../../src/data/index.js";
import { Engine, LlamaCppModel, loadModel, openRunnable } from "../../src/generate/index.js";
import { OwnTokenizer } from "../../src/generate/own-tokenizer.js";
import { tryInLlamaCpp } from "../../src/generate/trial.js";
import { openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { ANY_NAMES, type AnyName, type AnyOptions, writeAnyGguf } from "../any-gguf.js";
import { writeTokenizer } from "../llama-cpp.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();
const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
let count = 0;
const any = (name: AnyName, options?: AnyOptions) =>
  writeAnyGguf(path.join(root, `${name}-${count++}.gguf`), name, options);

/** A test model of a known architecture as GGUF. */
async function known(name: string): Promise<string> {
  const directory = path.join(root, name);
  cpSync(path.resolve(import.meta.dirname, "../fixtures/architectures", name), directory, { recursive: true });
  writeTokenizer(directory, openCheckpoint(directory).model.vocabSize);
  const file = path.join(root, `${name}.gguf`);
  await exportGguf(file, openCheckpoint(directory), { kind: "f32" });
  return file;
}

/** The same file with other metadata. */
async function changed(file: string, changes: Readonly<Record<string, GgufValue>>): Promise<string> {
  const opened = openGguf(file);
  const tensors = [...opened.tensors].map(([name, { dtype, shape }]) => ({
    name,
    dtype,
    shape,
    chunks: () => [readTensor(opened, name)],
  }));
  const copy = path.join(root, `changed-${count++}.gguf`);
  await writeGguf(copy, new Map([...opened.metadata, ...Object.entries(changes)]), tensors);
  return copy;
}

describe("a file of an architecture that is known, too,", () => {
  it("of Phi-3 has the window that it states, and none where it states 0 or nothing", async () => {
    const file = await known("phi3");
    for (const [value, window] of [
      [8, 8],
      [0, null],
    ] as const) {
      const stated = await changed(file, { "phi3.attention.sliding_window": gguf.uint32(value) });
      expect(openCheckpoint(stated).config.sliding_window).toBe(window);
    }
  });

  it("of Llama with biases of queries, keys and values alone is refused: its rows would be read in another order", async () => {
    const file = path.join(root, "teacher.gguf");
    await exportGguf(file, openCheckpoint(teacher), { kind: "f32" });
    const { tensors } = openGguf(file);
    const bias = (name: string) => ({
      ...tensors.get(`blk.0.${name}.weight`)!,
      shape: [tensors.get(`blk.0.${name}.weight`)!.shape[0]!],
    });
    const added = ["attn_q", "attn_k", "attn_v"].flatMap((name) =>
      [0, 1].map((layer) => [`blk.${layer}.${name}.bias`, bias(name)] as const),
    );
    const copy = path.join(root, "biases.gguf");
    const opened = openGguf(file);
    const all = [
      ...[...opened.tensors].map(([name, { dtype, shape }]) => ({
        name,
        dtype,
        shape,
        chunks: () => [readTensor(opened, name)],
      })),
      ...added.map(([name, { shape }]) => ({
        name,
        dtype: "f32" as const,
        shape,
        chunks: () => [new Uint8Array(4 * shape[0]!)],
      })),
    ];
    await writeGguf(copy, opened.metadata, all);
    expect(() => openCheckpoint(copy)).toThrow(/biases of queries, keys and values alone are not supported/);
  });
});

describe("a file of an architecture that only llama.cpp knows", () => {
  it.each(ANY_NAMES)("%s passes, and is tried once", async (name) => {
    const file = await any(name);
    const expected = { architecture: name, file, layers: 2, hidden: 64, learnedPositions: undefined };
    expect(await openRunnable(file)).toMatchObject(expected);
    const first = tryInLlamaCpp(file, [file]);
    await first;
    expect(tryInLlamaCpp(file, [file])).toBe(first);
  });

  it("is tried again when it changes", async () => {
    const file = await any("falcon");
    const first = tryInLlamaCpp(file, [file]);
    await first;
    utimesSync(file, 1, 1);
    expect(tryInLlamaCpp(file, [file])).not.toBe(first);
    await tryInLlamaCpp(file, [file]);
  });

  it.each<[string, AnyName, AnyOptions, RegExp]>([
    [
      "an assertion while loading",
      "jamba",
      { keys: { "ssm.inner_size": gguf.uint32(64) } },
      /GGML_ASSERT\(2 \* n_embd == d_inner\)/,
    ],
    [
      "more experts used than there are",
      "dbrx",
      { keys: { expert_used_count: gguf.uint32(9) } },
      /GGML_ASSERT\(n_expert_used/,
    ],
    ["an architecture that there is not", "falcon", { says: "nonsense" }, /unknown model architecture: 'nonsense'/],
    ["a tensor that is missing", "falcon", { keys: { block_count: gguf.uint32(3) } }, /missing tensor 'blk\.2\./],
    ["a key that is missing", "mamba", { keys: { "ssm.conv_kernel": undefined } }, /ssm\.conv_kernel/],
  ])("with %s is refused in llama.cpp's words", async (_, name, options, message) => {
    const file = await any(name, options);
    await expect(openRunnable(file)).rejects.toThrow(message);
    await expect(openRunnable(file)).rejects.toThrow(`${file}: llama.cpp cannot run it`);
    await expect(openRunnable(file)).rejects.toThrow(expect.objectContaining({ name: "FormatError" }));
  });

  it.each<[string, AnyOptions, RegExp]>([
    [
      "layers beyond reason",
      { keys: { block_count: gguf.uint32(2 ** 31) } },
      /2147483648 is not a valid number of layers/,
    ],
    [
      "lists for other layers",
      { keys: { "attention.head_count": gguf.numbers("uint32", [4, 4, 4]) } },
      /3 values for 2 layers/,
    ],
    ["no width", { keys: { embedding_length: undefined } }, /embedding_length is missing/],
    [
      "a token beyond its vocabulary",
      { metadata: { "tokenizer.ggml.eos_token_id": gguf.uint32(9999) } },
      /eos token has the number 9999/,
    ],
  ])("with %s is refused before llama.cpp sees it", async (_, options, message) => {
    await expect(openRunnable(await any("falcon", options))).rejects.toThrow(message);
  });
});

describe("a file of a known architecture", () => {
  it("that says what llama.cpp ends the process over is refused", async () => {
    const file = await known("gemma3");
    await expect(openRunnable(file)).resolves.toMatchObject({ architecture: "gemma3" });
    const { layers } = await openRunnable(file);
    const broken = await changed(file, {
      "gemma3.attention.sliding_window": gguf.uint32(16),
      "gemma3.attention.sliding_window_pattern": gguf.numbers(
        "uint32",
        Array.from({ length: layers }, () => 0),
      ),
    });
    await expect(openRunnable(broken)).rejects.toThrow(/llama\.cpp cannot run it \(.*GGML_ASSERT/);
  });

  it("whose weights do not fit it is refused for that reason, and llama.cpp's", async () => {
    const file = await changed(await known("llama"), { "llama.embedding_length": gguf.uint32(48) });
    await expect(openRunnable(file)).rejects.toThrow(/has the shape.*; llama\.cpp cannot run it/);
  });

  it("with learnt positions gets no longer context than those", async () => {
    const file = await known("gpt2");
    const { learnedPositions: positions = 0 } = await openRunnable(file);
    expect(positions).toBe(64);
    await expect(Engine.open(file, { device: "cpu", contextSize: positions + 1 })).rejects.toThrow(
      /has learnt 64 positions/,
    );
    const engine = await Engine.open(file, { device: "cpu", threads: 1 });
    const { tokens } = await engine.complete("token5", { temperature: 0, maxTokens: 200 });
    expect(tokens).toBeGreaterThan(0); // past the last position the first tokens are forgotten
    await engine.dispose();
    await expect(LlamaCppModel.open(file, undefined, { device: "cpu", maxLength: 65 })).rejects.toThrow(
      /learnt 64 positions/,
    );
  });
});

describe("llama.cpp's own tokenizer", () => {
  it("gives the ids that the model's tokenizer gives, and the texts back", async () => {
    const file = path.join(root, "teacher.gguf");
    await exportGguf(file, openCheckpoint(teacher), { kind: "f32" });
    const model = await loadModel(file, { device: "cpu" });
    const own = new OwnTokenizer(model);
    const reference = await Tokenizer.load(teacher);
    const texts = ["Once upon a time", "  two spaces, and 1234!\n", "même — 東京 🙂", ""];
    for (const special of [true, false])
      expect(await own.encode(texts, special)).toEqual(await reference.encode(texts, special));
    for (const ids of await own.encode(texts, false)) expect(await own.decode(ids)).toBe(await reference.decode(ids));
    expect(own.bos).toEqual(reference.bos);
    expect(own.eos).toEqual(reference.eos);
    await model.dispose();
  });
});
