import path from "node:path";
import type { LlamaModel } from "node-llama-cpp";
import { afterAll, describe, expect, it } from "vitest";
import { readTensor, type TensorSource, tensorInfo } from "../../src/checkpoint/index.js";
import { Tokenizer } from "../../src/data/index.js";
import { Engine, type SamplingOptions } from "../../src/generate/index.js";
import { fromFloat32, loadFunctions, toFloat32 } from "../../src/ggml/index.js";
import { openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { Random } from "../../src/system/random.js";
import { greedyTokens, loadInLlamaCpp } from "../llama-cpp.js";
import { hasSharedData, stories260K } from "../shared-data.js";
import { temporaryDirectory } from "../temporary.js";
import { clearTokens } from "./clear-tokens.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const directory = temporaryDirectory();

const MODELS: readonly (readonly [name: string, model: string, special: string])[] = [
  ["a byte-level tokenizer", teacher, "<|begin|>Tom had a kite.<|end|><|begin|>One"],
  ...(hasSharedData ? ([["a SentencePiece tokenizer", stories260K, "<s>Tom had a kite.</s><s>One"]] as const) : []),
];

describe.each(MODELS)("an engine with %s", (name, model, special) => {
  const file = path.join(directory, `${name}.gguf`);
  const engine = exportGguf(file, openCheckpoint(model), { kind: "f32" }).then(() =>
    Engine.open(file, { device: "cpu" }),
  );
  afterAll(async () => (await engine).dispose());
  const sampling = { temperature: 0, maxTokens: 12 };

  /** The text of the most probable tokens after a prompt, as far as they are clearly so. */
  const clearText = async (reference: LlamaModel, tokenizer: Tokenizer, ids: readonly number[]): Promise<string> => {
    const written = await greedyTokens(reference, ids, sampling.maxTokens);
    const clear = written.slice(0, await clearTokens(reference, ids, written));
    const text = await tokenizer.decode([...ids, ...clear]);
    return text.slice((await tokenizer.decode([...ids])).length).replace(/\ufffd+$/, "");
  };

  it("continues a text with the likeliest tokens, and with the space before the first", async () => {
    const tokenizer = await Tokenizer.load(model);
    await engine; // its file is written by then
    const reference = await loadInLlamaCpp(file);
    for (const prompt of ["Once upon", "One day, Tom", "She was"]) {
      const [ids = []] = await tokenizer.encode([prompt], true);
      const shown: string[] = [];
      const { text } = await (await engine).complete(prompt, { ...sampling, onText: (part) => shown.push(part) });
      const clear = await clearText(reference, tokenizer, ids);
      expect(text.slice(0, clear.length)).toBe(clear);
      expect(shown.join("")).toBe(text);
    }
    await reference.dispose();
  });

  it("reads special tokens that are written out as such, unless that is turned off", async () => {
    const tokenizer = await Tokenizer.load(model);
    await engine; // its file is written by then
    const reference = await loadInLlamaCpp(file);
    const [ids = []] = await tokenizer.encode([special], false);
    const clear = await clearText(reference, tokenizer, ids);
    expect(clear).not.toBe("");
    expect((await (await engine).complete(special, sampling)).text.slice(0, clear.length)).toBe(clear);
    const plain = await (await engine).complete(special, { ...sampling, parseSpecial: false });
    expect(plain.text.slice(0, clear.length)).not.toBe(clear);
    await reference.dispose();
  });
});

describe("an engine with a draft model that guesses wrong", () => {
  const [file, draft] = [path.join(directory, "drafted.gguf"), path.join(directory, "draft.gguf")];
  const prompts = ["Once upon a time", "Mara found a", "It was"];

  /** The teacher with noise on a matrix. */
  const noisy = (source: TensorSource): TensorSource => {
    const name = "model.layers.0.mlp.down_proj.weight";
    const { dtype, shape } = tensorInfo(source, name);
    const [f, random] = [loadFunctions(), new Random(3)];
    const values = toFloat32(f, readTensor(source, name), dtype);
    const deviation = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
    const changed = values.map((value) => value + 3 * deviation * random.normal());
    const bytes = fromFloat32(f, changed, "f32");
    const width = bytes.byteLength / shape[0]!;
    return {
      tensors: new Map([...source.tensors, [name, { dtype: "f32", shape }]]),
      readRows: (other, from, to) =>
        other === name ? bytes.subarray(from * width, to * width) : source.readRows(other, from, to),
      releaseRows: () => {},
    };
  };

  it("writes texts with a seed as without it", async () => {
    const checkpoint = openCheckpoint(teacher);
    await exportGguf(file, checkpoint, { kind: "f32" });
    await exportGguf(draft, { ...checkpoint, source: noisy(checkpoint.source) }, { kind: "f32" });
    const alone = await Engine.open(file, { device: "cpu", threads: 1 });
    const drafted = await Engine.open(file, { device: "cpu", threads: 1, draft });
    const drawn: SamplingOptions = { temperature: 1, seed: 5, maxTokens: 64 };
    const guesses = { guessed: 0, accepted: 0 };
    for (const prompt of prompts) {
      const { draft: greedy } = await drafted.complete(prompt, { temperature: 0, maxTokens: 64 });
      guesses.guessed += greedy!.guessed;
      guesses.accepted += greedy!.accepted;
      const { text } = await drafted.complete(prompt, drawn);
      expect(text).toBe((await alone.complete(prompt, drawn)).text);
    }
    expect(guesses.accepted).toBeGreaterThan(0);
    expect(guesses.guessed).toBeGreaterThan(guesses.accepted);
    const [chat, draftedChat] = [alone.chat(), drafted.chat()];
    for (const prompt of prompts)
      expect((await draftedChat.say(prompt, drawn)).text).toBe((await chat.say(prompt, drawn)).text);
    await alone.dispose();
    await drafted.dispose();
  });
});

it("notes a context that is longer than the texts that the model was trained on", async () => {
  const file = path.join(directory, "context.gguf");
  await exportGguf(file, openCheckpoint(teacher), { kind: "q8_0" });
  const notesOf = async (contextSize: number) => {
    const notes: string[] = [];
    const engine = await Engine.open(file, { device: "cpu", contextSize, onNote: (note) => notes.push(note) });
    await engine.dispose();
    return notes;
  };
  expect(await notesOf(512)).toEqual([]);
  expect(await notesOf(768)).toEqual([expect.stringMatching(/trained on texts of 512 tokens: in a context of 768/)]);
});
