import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { FLOAT8, type Float8 } from "../../src/checkpoint/float8.js";
import { openSafetensors, readTensor } from "../../src/checkpoint/index.js";
import { Backend, toFloat32 } from "../../src/ggml/index.js";
import { loadFunctions } from "../../src/ggml/library.js";
import { openModel } from "../../src/jobs/open-model.js";
import { loadWeights, modelFromConfig, openCheckpoint, writeModel } from "../../src/models/index.js";
import { temporaryDirectory } from "../temporary.js";

const fixtures = path.resolve(import.meta.dirname, "../fixtures");
const root = temporaryDirectory();
const backend = Backend.open({ device: "cpu" });
afterAll(() => backend.free());

const values = (source: Parameters<typeof readTensor>[0], name: string): Float32Array =>
  toFloat32(loadFunctions(), readTensor(source, name), source.tensors.get(name)!.dtype).slice();

/** A fixture with another configuration, or with other types in its header. */
function changed(
  name: string,
  form: string,
  quantization: Record<string, unknown> | undefined,
  header: (text: string) => string = (text) => text,
): string {
  const directory = path.join(root, name);
  cpSync(path.join(fixtures, "quantized", form), directory, { recursive: true });
  const file = path.join(directory, "config.json");
  const { quantization_config: _, ...config } = JSON.parse(readFileSync(file, "utf8"));
  writeFileSync(
    file,
    JSON.stringify(quantization === undefined ? config : { ...config, quantization_config: quantization }),
  );
  const weights = path.join(directory, "model.safetensors");
  const bytes = readFileSync(weights);
  const length = Number(bytes.readBigUInt64LE(0));
  const text = Buffer.from(header(bytes.toString("utf8", 8, 8 + length)));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(weights, Buffer.concat([size, text, bytes.subarray(8 + length)]));
  return directory;
}

describe("8-bit floats", () => {
  it("have the values that ml_dtypes gives their codes", () => {
    const codes = JSON.parse(readFileSync(path.join(fixtures, "quantized/codes.json"), "utf8"));
    const number = { null: Number.NaN, inf: Number.POSITIVE_INFINITY, "-inf": Number.NEGATIVE_INFINITY };
    for (const [name, listed] of Object.entries(codes) as [Float8, (number | keyof typeof number | null)[]][])
      expect([...FLOAT8[name]]).toEqual(
        listed.map((value) => (typeof value === "number" ? value : number[value ?? "null"])),
      );
  });
});

describe("a checkpoint that another tool has quantized", () => {
  it.each([
    ["fp8-block", "bf16", /14 matrices are quantized \(FP8\): they are read as bf16/],
    ["fp8-tensor", "bf16", /FP8/],
    ["float-quantized", "bf16", /compressed-tensors, float-quantized/],
    ["int-quantized", "f16", /compressed-tensors, int-quantized.*read as f16/],
    ["pack-quantized", "f16", /compressed-tensors, pack-quantized/],
    ["plain", "bf16", /6 matrices are quantized \(F8_E5M2\)/],
  ])("is read as the numbers that it means: %s", (form, dtype, note) => {
    const directory = path.join(fixtures, "quantized", form);
    const { config, source, notes, bytes } = openCheckpoint(directory);
    const expected = openSafetensors(path.join(directory, "expected.safetensors"));
    expect(expected.tensors.size).toBe(2);
    for (const name of expected.tensors.keys()) expect(values(source, name)).toEqual(values(expected, name));
    expect(source.tensors.get("model.layers.0.mlp.up_proj.weight")?.dtype).toBe(dtype);
    expect(notes).toEqual([expect.stringMatching(note)]);
    expect(config).not.toHaveProperty("quantization_config");
    const stored = readFileSync(path.join(directory, "model.safetensors"));
    expect(bytes).toBe(stored.length - 8 - Number(stored.readBigUInt64LE(0)));
    const model = modelFromConfig(config);
    loadWeights(backend, model, source, { dtype: "bf16", trainable: false }).free();
    const out = path.join(root, `${form}-written`);
    mkdirSync(out);
    writeModel(out, { model, source });
    expect(JSON.parse(readFileSync(path.join(out, "config.json"), "utf8"))).not.toHaveProperty("quantization_config");
    expect(values(openCheckpoint(out).source, "model.norm.weight")).toEqual(values(source, "model.norm.weight"));
  });

  it("is said to be one by every command that opens it", async () => {
    const notes: string[] = [];
    await openModel(path.join(fixtures, "quantized/fp8-block"), { onNote: (note) => notes.push(note) });
    expect(notes).toEqual([expect.stringMatching(/fp8-block: 14 matrices are quantized \(FP8\)/)]);
  });

  it("is close to the model that it was made from", () => {
    const original = openCheckpoint(path.join(fixtures, "models/llama-1")).source;
    for (const [form, most] of [
      ["fp8-block", 0.04],
      ["int-quantized", 0.01],
      ["pack-quantized", 0.12],
    ] as const) {
      const { source } = openCheckpoint(path.join(fixtures, "quantized", form));
      for (const name of original.tensors.keys()) {
        const [own, theirs] = [values(source, name), values(original, name)];
        const norm = (of: Float32Array) => Math.hypot(...of);
        expect(norm(own.map((value, i) => value - theirs[i]!)) / norm(theirs), `${form} ${name}`).toBeLessThan(most);
      }
    }
  });

  it.each<[string, string, Record<string, unknown> | undefined, (text: string) => string, RegExp]>([
    [
      "gptq",
      "pack-quantized",
      { quant_method: "gptq", bits: 4 },
      (t) => t,
      /is quantized by GPTQ to 4 bits, which is not supported.*GGUF.*dequantize/,
    ],
    ["awq", "pack-quantized", { quant_method: "awq", bits: 4 }, (t) => t, /by AWQ to 4 bits/],
    [
      "bnb",
      "pack-quantized",
      { quant_method: "bitsandbytes", load_in_4bit: true },
      (t) => t,
      /by bitsandbytes to 4 bits/,
    ],
    ["unheard", "pack-quantized", { quant_method: "new_thing" }, (t) => t, /by the method "new_thing"/],
    ["awq by its tensors", "pack-quantized", undefined, (t) => t.replaceAll("weight_packed", "qweight"), /by AWQ/],
    [
      "marlin",
      "pack-quantized",
      { quant_method: "compressed-tensors", format: "marlin-24" },
      (t) => t,
      /compressed-tensors \(marlin-24\)/,
    ],
    ["nvfp4", "fp8-tensor", { quant_method: "modelopt", quant_algo: "NVFP4" }, (t) => t, /ModelOpt to NVFP4/],
    [
      "no scales",
      "fp8-block",
      { quant_method: "fp8" },
      (t) => t.replaceAll("weight_scale_inv", "weight_scales_in"),
      /there is no .*weight_scale/,
    ],
    [
      "blocks that do not fit",
      "fp8-block",
      { quant_method: "fp8", weight_block_size: [128, 128] },
      (t) => t,
      /but \[32, 48\] has \[1, 1\] blocks of \[128, 128\]/,
    ],
    [
      "blocks of no size",
      "fp8-block",
      { quant_method: "fp8" },
      (t) => t,
      /is \[2, 3\], and nothing says how that scales \[32, 48\]/,
    ],
    [
      "no shape",
      "pack-quantized",
      JSON.parse(readFileSync(path.join(fixtures, "quantized/pack-quantized/config.json"), "utf8")).quantization_config,
      (t) => t.replaceAll("weight_shape", "weight_shapo"),
      /does not state its size/,
    ],
  ])("is refused by name: %s", (name, form, quantization, header, message) => {
    expect(() => openCheckpoint(changed(name, form, quantization, header))).toThrow(message);
  });

  it("is read as it is where only its configuration speaks of quantization", () => {
    const directory = path.join(root, "spoken");
    cpSync(path.join(fixtures, "models/llama-1"), directory, { recursive: true });
    const file = path.join(directory, "config.json");
    const config = JSON.parse(readFileSync(file, "utf8"));
    writeFileSync(
      file,
      JSON.stringify({ ...config, quantization_config: { quant_method: "bitsandbytes", load_in_4bit: true } }),
    );
    const { notes, config: read } = openCheckpoint(directory);
    expect(notes).toEqual([expect.stringMatching(/weights are not quantized/)]);
    expect(read).not.toHaveProperty("quantization_config");
  });

  it("names a NaN in it", () => {
    const directory = changed("nan", "fp8-block", { quant_method: "fp8", weight_block_size: [24, 20] });
    const file = path.join(directory, "model.safetensors");
    const bytes = readFileSync(file);
    const length = Number(bytes.readBigUInt64LE(0));
    const { data_offsets } = JSON.parse(bytes.toString("utf8", 8, 8 + length))["model.layers.0.mlp.up_proj.weight"];
    bytes[8 + length + data_offsets[0] + 33] = 0x7f;
    writeFileSync(file, bytes);
    expect(() => readTensor(openCheckpoint(directory).source, "model.layers.0.mlp.up_proj.weight")).toThrow(
      /up_proj\.weight holds NaN at row 1, column 1/,
    );
  });
});
