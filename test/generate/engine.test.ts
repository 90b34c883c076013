import path from "node:path";
import type { LlamaModel } from "node-llama-cpp";
import { afterAll, describe, expect, it } from "vitest";
import { Tokenizer } from "../../src/data/index.js";
import { Engine } from "../../src/generate/index.js";
import { openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
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
