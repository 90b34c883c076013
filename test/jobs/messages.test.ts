import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { bench, type CompressJob, compress, exportModel, inspect, quantize } from "../../src/index.js";
import { coppice } from "../cli/command-line.js";
import { writeTokenizer } from "../llama-cpp.js";
import { temporaryDirectory } from "../temporary.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");
let count = 0;

/** A copy of the teacher with another config.json. */
function changed(change: (config: Record<string, unknown>) => unknown): string {
  const copy = path.join(directory, `model-${count++}`);
  cpSync(teacher, copy, { recursive: true });
  const file = path.join(copy, "config.json");
  const result = change(JSON.parse(readFileSync(file, "utf8")));
  writeFileSync(file, result instanceof Uint8Array ? result : JSON.stringify(result));
  return copy;
}

describe("a config.json", () => {
  it.each<[string, (config: Record<string, unknown>) => unknown, RegExp]>([
    ["a field is missing", ({ hidden_size: _, ...rest }) => rest, /config.json: has no hidden_size/],
    ["a field is of another kind", (c) => ({ ...c, hidden_size: "wide" }), /hidden_size is "wide", not a number/],
    [
      "a field is out of range",
      (c) => ({ ...c, num_hidden_layers: -1 }),
      /num_hidden_layers is -1; it must be more than 0/,
    ],
  ])("where %s: says it as a person would", async (_, change, message) => {
    await expect(inspect(changed(change))).rejects.toThrow(message);
    await expect(inspect(changed(change))).rejects.not.toThrow(/expected|undefined/);
  });

  it.each<[string, (text: string) => Uint8Array]>([
    ["with a byte-order mark", (text) => Buffer.from(`\uFEFF${text}`)],
    ["in UTF-16, as PowerShell writes", (text) => Buffer.from(`\uFEFF${text}`, "utf16le")],
    ["in UTF-16, the other way round", (text) => Buffer.from(`\uFEFF${text}`, "utf16le").swap16()],
  ])("%s is read", async (_, encode) => {
    const model = changed((config) => encode(JSON.stringify(config)));
    expect((await inspect(model)).architecture).toBe("llama");
  });
});

describe("a token number beyond the vocabulary", () => {
  it("is refused before a file is made that nothing could run", async () => {
    const model = changed((config) => ({ ...config, eos_token_id: 99_999 }));
    writeFileSync(path.join(model, "tokenizer_config.json"), "{}"); // nothing else says what ends a text
    const out = path.join(directory, "beyond");
    const message = /the eos token has the id 99999, outside the vocabulary of 512 tokens: correct eos_token_id/;
    await expect(quantize({ model, types: ["q8_0"], out, device: "cpu" })).rejects.toThrow(message);
    await expect(exportModel({ model, out: `${out}.gguf`, device: "cpu" })).rejects.toThrow(message);
    expect(existsSync(out) ? readdirSync(out) : []).toEqual([]);
    expect(existsSync(`${out}.gguf`)).toBe(false);
  });
});

describe("a model that llama.cpp cannot compute", () => {
  const architectures = path.resolve(import.meta.dirname, "../fixtures/architectures");
  const nemotron = path.join(architectures, "nemotron"); // 4 heads of 12, hidden 32
  const possible = /requires heads as wide as the model.*It can be pruned, distilled and measured/;

  it("is inspected as what it is", async () => {
    expect(await inspect(nemotron)).toMatchObject({ known: true, refused: expect.stringMatching(/heads as wide/) });
    const { stdout } = await coppice("inspect", nemotron);
    expect(stdout).toMatch(/can be +│ +pruned, distilled, measured │/);
    expect(stdout).toMatch(possible);
    expect((await inspect(teacher)).refused).toBeUndefined();
  });

  it("is not exported or quantized, and the message says what is possible", async () => {
    const out = path.join(directory, "refused.gguf");
    await expect(exportModel({ model: nemotron, out })).rejects.toThrow(possible);
    await expect(quantize({ model: nemotron, types: ["q8_0"], out })).rejects.toThrow(possible);
    expect(existsSync(out)).toBe(false);
  });

  const compressing = (model: string, name: string, more: Partial<CompressJob> = {}) => {
    const text = path.join(directory, "text.txt");
    writeFileSync(text, "<1><2>".repeat(200));
    const settings = { tokens: 256, sequenceLength: 16, batchSize: 2 };
    const job = {
      data: [text],
      validation: [text],
      field: "text",
      target: "hidden=24",
      calibrationSamples: 2,
      settings,
    };
    return compress({ ...job, model, gguf: ["q8_0"], out: path.join(directory, name), device: "cpu", ...more });
  };

  it("is not compressed to GGUF: that is known before anything is measured", async () => {
    await expect(compressing(nemotron, "early")).rejects.toThrow(possible);
    expect(existsSync(path.join(directory, "early"))).toBe(false);
  });

  it("is not evaluated on texts that it cannot generate: that is known before anything is measured, too", async () => {
    const compressed = compressing(nemotron, "generating", { gguf: [], evaluate: { tasks: ["piqa", "gsm8k"] } });
    await expect(compressed).rejects.toThrow(/heads as wide as the model.*generates the answers of gsm8k/);
    expect(existsSync(path.join(directory, "generating"))).toBe(false);
  });

  it("without certain layers, is cut by others", async () => {
    const smollm = path.join(directory, "smollm3");
    cpSync(path.join(architectures, "smollm3"), smollm, { recursive: true });
    writeTokenizer(smollm, 96);
    const config = JSON.parse(readFileSync(path.join(smollm, "config.json"), "utf8"));
    // as in llama.cpp every fourth layer has no positions: only the last can go
    writeFileSync(path.join(smollm, "config.json"), JSON.stringify({ ...config, no_rope_layers: [1, 1, 1, 0] }));
    for (const gguf of [[], ["q8_0" as const]]) {
      const target = { target: "layers=3", start: "minitron" as const, gguf };
      const { keptLayers } = await compressing(smollm, `layers ${gguf.length}`, target);
      if (gguf.length > 0) expect(keptLayers).toEqual([0, 1, 2]);
      else expect(keptLayers).not.toEqual([0, 1, 2]);
    }
  });

  it("after the cut that is asked for, is not cut", async () => {
    const model = path.join(directory, "starcoder2"); // heads as wide as the model: a narrower model's are not
    cpSync(path.join(architectures, "starcoder2"), model, { recursive: true });
    writeTokenizer(model, 96);
    for (const more of [{}, { gguf: [], evaluate: { tasks: ["gsm8k"] } }])
      await expect(compressing(model, "late", more)).rejects.toThrow(/heads as wide as the model.*--axes ffn/);
    expect(existsSync(path.join(directory, "late"))).toBe(false);
  });
});

describe("an option that would change nothing", () => {
  it.each([
    [{ work: "calibrate", profile: true }, /--profile changes nothing of --work calibrate/],
    [{ work: "forward", recompute: true }, /--recompute changes nothing of --work forward/],
    [{ work: "logits", optimizerState: "8bit" }, /--optimizer-state changes nothing/],
    [{ work: "forward", freeGradients: true }, /--free-gradients changes nothing/],
  ] as const)("of bench %j is refused", async (options, message) => {
    await expect(bench({ model: "hidden=32,ffn=32,layers=1,heads=2,vocab=64", ...options })).rejects.toThrow(message);
  });

  it.each([
    [{ preTokenizer: "gpt-2" }, /--pre-tokenizer is for GGUF files/],
    [{ overwrite: true }, /--overwrite is for GGUF files: --restart/],
  ])("of export to a directory %j is refused", async (options, message) => {
    await expect(exportModel({ model: teacher, out: path.join(directory, "copy"), ...options })).rejects.toThrow(
      message,
    );
  });
});
