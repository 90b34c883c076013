import path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Engine, loadModel, tokenize } from "../../src/generate/index.js";
import { partsOf } from "../../src/generate/tokenize.js";
import { openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();
const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");

describe("the parts of a text", () => {
  it("add up to it, have no long runs, and are the whole where it has none", () => {
    const runs = fc.array(
      fc.tuple(fc.constantFrom("a", "字", "😀", " ", "\n", "-", "a,", "7"), fc.integer({ min: 1, max: 7000 })),
      { maxLength: 6 },
    );
    fc.assert(
      fc.property(runs, (all) => {
        const text = all.map(([character, count]) => character.repeat(count)).join("");
        const parts = partsOf(text);
        expect(parts.join("")).toBe(text);
        const long = /\S{2049,}|\s{2049,}/u;
        expect(parts.some((part) => long.test(part))).toBe(false);
        if (!long.test(text)) expect(parts).toEqual([text]);
      }),
    );
  });

  it("do not begin or end within what may be a special token", () => {
    for (const tag of ["<|im_start|>", "[TOOL_CALLS]", "<｜Assistant｜>", "<end_of_turn>"])
      for (let before = 2030; before <= 2048; before++) {
        const parts = partsOf(`${"好".repeat(before)}${tag}${"好".repeat(3000)}`);
        expect(parts.filter((part) => part.includes(tag)).length, `${tag} after ${before}`).toBe(1);
      }
  });

  it("end where words do, if they can", () => {
    const parts = partsOf("word,".repeat(1000));
    expect(parts.length).toBe(3);
    expect(parts.slice(1).every((part) => part.startsWith(",word"))).toBe(true);
  });
});

it("texts of one word that never ends do not end the process, with a pre-tokenizer that llama.cpp has no code for", async () => {
  const file = path.join(root, "tekken.gguf");
  await exportGguf(file, openCheckpoint(teacher), { kind: "f32", preTokenizer: "tekken" });
  const model = await loadModel(file, { device: "cpu" });
  try {
    expect(model.fileInfo.metadata.tokenizer.ggml).toMatchObject({ pre: "tekken" });
    for (const character of ["a", " ", "=", "字"]) {
      const text = character.repeat(60_000);
      expect(model.detokenize(tokenize(model, text)).length).toBeGreaterThan(59_000);
    }
    const text = "Mira had 12 kites, and a red one.";
    expect(tokenize(model, text)).toEqual(model.tokenize(text));
  } finally {
    await model.dispose();
  }
  const engine = await Engine.open(file, { device: "cpu", threads: 1 });
  try {
    const chat = engine.chat();
    await expect(chat.say("a".repeat(60_000))).rejects.toThrow(/cannot read so long a word/);
    expect((await chat.say("Mira had", { maxTokens: 4 })).tokens).toBeGreaterThan(0);
  } finally {
    await engine.dispose();
  }
});
