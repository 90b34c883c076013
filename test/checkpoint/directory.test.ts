import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { readTensor, writeCheckpoint } from "../../src/checkpoint/index.js";
import { Tokenizer } from "../../src/data/index.js";
import { modelFromConfig, openCheckpoint } from "../../src/models/index.js";
import { checkTensors } from "../../src/models/weights.js";
import { temporaryDirectory } from "../temporary.js";

const fixtures = path.resolve(import.meta.dirname, "../fixtures/models");
const directory = temporaryDirectory();

function copyOf(name: string): string {
  const target = path.join(directory, `${name}-${Math.random().toString(36).slice(2)}`);
  cpSync(path.join(fixtures, name), target, { recursive: true });
  return target;
}

describe("a model directory", () => {
  it("is written sharded, and read back bit by bit", () => {
    const { config, source } = openCheckpoint(path.join(fixtures, "llama-3-bf16-sharded"));
    const target = path.join(directory, "sharded");
    writeCheckpoint(target, config, source, {
      shardBytes: 15_000,
      carryFrom: path.join(fixtures, "llama-3-bf16-sharded"),
    });
    expect(readdirSync(target).filter((name) => name.endsWith(".safetensors")).length).toBeGreaterThan(2);
    expect(existsSync(path.join(target, "generation_config.json"))).toBe(true);
    const again = openCheckpoint(target);
    expect(again.config).toEqual(config);
    expect([...again.source.tensors.keys()].sort()).toEqual([...source.tensors.keys()].sort());
    for (const name of source.tensors.keys())
      expect(Buffer.from(readTensor(again.source, name)).equals(readTensor(source, name))).toBe(true);
  });

  it("takes along what belongs to images, and names no Python files that it lacks", () => {
    const original = copyOf("llama-1");
    const names = ["preprocessor_config.json", "processor_config.json"];
    for (const name of names) writeFileSync(path.join(original, name), "{}");
    const { config, source } = openCheckpoint(original);
    const target = path.join(directory, "with processor");
    const auto_map = { AutoConfig: "configuration_llama.LlamaConfig" };
    writeCheckpoint(target, { ...config, auto_map }, source, { carryFrom: original });
    expect(readdirSync(target)).toEqual(expect.arrayContaining(names));
    expect(openCheckpoint(target).config).toEqual(config);
  });

  it("is converted to another type when asked, and says so in its configuration", () => {
    const { config, source } = openCheckpoint(path.join(fixtures, "llama-1"));
    const target = path.join(directory, "converted");
    writeCheckpoint(target, config, source, { dtype: "bf16" });
    const again = openCheckpoint(target);
    expect(again.config.dtype).toBe("bfloat16");
    const name = "model.layers.0.self_attn.q_proj.weight";
    const before = new Float32Array(readTensor(source, name).buffer);
    const after = new Uint16Array(readTensor(again.source, name).buffer);
    for (let i = 0; i < before.length; i++) {
      const bits = new Uint32Array(before.buffer, i * 4, 1)[0]!;
      const rounded = (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16; // to nearest, ties to even
      expect(after[i]).toBe(rounded);
    }
  });

  it("of Gemma in f16 says that it is computed in bf16, whose range it needs", () => {
    const architectures = path.resolve(import.meta.dirname, "../fixtures/architectures");
    for (const [name, stated] of [
      ["gemma3_text", "bfloat16"],
      ["qwen3", "float16"],
    ] as const) {
      const { config, source } = openCheckpoint(path.join(architectures, name));
      const target = path.join(directory, `${name} in f16`);
      writeCheckpoint(target, config, source, { dtype: "f16" });
      const again = openCheckpoint(target);
      expect(again.config.dtype ?? again.config.torch_dtype).toBe(stated);
      expect([...again.source.tensors.values()].every(({ dtype }) => dtype === "f16")).toBe(true);
    }
  });

  it.each([
    ["no configuration", (d: string) => rmSync(path.join(d, "config.json")), /has no config.json/],
    [
      "a configuration that is not JSON",
      (d: string) => writeFileSync(path.join(d, "config.json"), "{"),
      /not valid JSON/,
    ],
    [
      "a configuration that is a list",
      (d: string) => writeFileSync(path.join(d, "config.json"), "[]"),
      /not a JSON object/,
    ],
    ["a missing shard", (d: string) => rmSync(path.join(d, "model-00002-of-00003.safetensors")), /which is missing/],
    [
      "an index that points elsewhere",
      (d: string) => writeFileSync(path.join(d, "model.safetensors.index.json"), '{"weight_map":{"x":"../../secret"}}'),
      /not the name of a file beside it/,
    ],
    [
      "an index that lies",
      (d: string) =>
        writeFileSync(
          path.join(d, "model.safetensors.index.json"),
          '{"weight_map":{"x":"model-00001-of-00003.safetensors"}}',
        ),
      /is not in model-00001/,
    ],
  ])("with %s is refused", (_, damage, message) => {
    const copy = copyOf("llama-3-bf16-sharded");
    damage(copy);
    expect(() => openCheckpoint(copy)).toThrow(message);
  });

  it("is refused where its configuration nests too deep to be written again", () => {
    const target = copyOf("llama-1");
    const file = path.join(target, "config.json");
    const [open, close] = ["[".repeat(200_000), "]".repeat(200_000)];
    writeFileSync(file, readFileSync(file, "utf8").replace("{", `{"deep": ${open}${close},`));
    expect(() => openCheckpoint(target)).toThrow(/config\.json nests more than 200 objects and lists/);
  });

  it.skipIf(process.platform === "win32").each([
    ["a directory", (file: string) => mkdirSync(file)],
    ["a named pipe", (file: string) => execFileSync("mkfifo", [file])],
  ])("is refused where a file is %s", async (_, make) => {
    const target = copyOf("llama-1");
    make(path.join(target, "tokenizer.json"));
    await expect(Tokenizer.load(target)).rejects.toThrow(/tokenizer\.json is not a regular file/);
    const { config, source } = openCheckpoint(target);
    const copy = path.join(target, "copy");
    expect(() => writeCheckpoint(copy, config, source, { carryFrom: target })).toThrow(
      /tokenizer\.json is not a regular file/,
    );
    rmSync(path.join(target, "config.json"));
    make(path.join(target, "config.json"));
    expect(() => openCheckpoint(target)).toThrow(/config\.json is not a regular file/);
  });

  it("may have a directory of licenses, and links to nothing are named", () => {
    const target = copyOf("llama-1");
    mkdirSync(path.join(target, "licenses"));
    const { config, source } = openCheckpoint(target);
    const copy = path.join(target, "copy");
    writeCheckpoint(copy, config, source, { carryFrom: target });
    expect(openCheckpoint(copy).config).toMatchObject({ model_type: "llama" });
    symlinkSync("tokenizer.json", path.join(target, "tokenizer.json"));
    expect(() => writeCheckpoint(path.join(target, "other"), config, source, { carryFrom: target })).toThrow(
      /tokenizer\.json is not a regular file/,
    );
  });

  it("that lacks tensors, or has them in other shapes, is refused by name", () => {
    const copy = copyOf("llama-1");
    const config = JSON.parse(readFileSync(path.join(copy, "config.json"), "utf8"));
    const { source } = openCheckpoint(copy);
    expect(() => checkTensors(modelFromConfig({ ...config, num_hidden_layers: 3 }), source)).toThrow(
      /lacks 9 of 30 tensors.*model.layers.2/,
    );
    expect(() => checkTensors(modelFromConfig({ ...config, intermediate_size: 40 }), source)).toThrow(
      /gate_proj.weight has the shape \[48, 32\], by config.json it is \[40, 32\]/,
    );
  });
});
