import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { exportModel, inspect, quantize } from "../../src/index.js";
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
