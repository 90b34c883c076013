import { statSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import { renderCompression } from "../../src/cli/render.js";
import { quantizableDivisors } from "../../src/devices/index.js";
import { compress, measurePerplexity, quantize } from "../../src/index.js";
import { bestFit } from "../../src/jobs/device-plan.js";
import { candidatesFor } from "../../src/jobs/target.js";
import { modelFromConfig } from "../../src/models/index.js";
import { temporaryDirectory } from "../temporary.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher"); // 128 wide
const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");
const data = [path.join(directory, "data.txt")];
writeFileSync(data[0]!, corpus(5, 120));
const common = { device: "cpu" } as const;
const at = (name: string) => path.join(directory, name);

describe("quantizing", () => {
  it("says which tensors take other types, and what that makes of the size", async () => {
    const { files } = await quantize({ ...common, model: teacher, types: ["q4_k_m"], out: at("k.gguf") });
    const [{ notes, types, bytes, bitsPerWeight }] = files as [(typeof files)[0]];
    expect(types.q4_k ?? 0).toBe(0); // no row fills a block of 256
    const [note = ""] = notes.filter((text) => text.includes("do not fill the blocks of q4_k_m"));
    const [, count, all, listed = "", bits] = /^(\d+) of (\d+) tensors .*\((.*)\): ([\d.]+) bits/.exec(note) ?? [];
    const counted = Object.fromEntries(listed.split(", ").map((text) => text.split(" ").reverse()));
    for (const [dtype, number] of Object.entries(counted)) expect(types[dtype]).toBe(Number(number));
    expect(Number(count)).toBe(Object.values(counted).reduce((sum: number, number) => sum + Number(number), 0));
    expect(Number(all)).toBe(Object.values(types).reduce((a, b) => a + b, 0));
    expect(Number(bits)).toBeCloseTo(bitsPerWeight, 0);
    expect(bytes).toBeGreaterThan(0);
    const whole = await quantize({ ...common, model: teacher, types: ["q8_0"], out: at("q8.gguf") });
    expect(whole.files[0]?.notes.join()).not.toMatch(/do not fill/);
  });

  it("says where a quantized model grows", async () => {
    await quantize({ ...common, model: teacher, types: ["q4_1"], out: at("q4_1.gguf") });
    const { files } = await quantize({ ...common, model: at("q4_1.gguf"), types: ["q4_k_m"], out: at("grown.gguf") });
    expect(statSync(at("grown.gguf")).size).toBeGreaterThan(statSync(at("q4_1.gguf")).size);
    expect(files[0]?.notes.join()).toMatch(/larger than the model that it was made from, .*\(.*q4_1.*\): 1\.\d+ times/);
    const smaller = await quantize({ ...common, model: at("q8.gguf"), types: ["q4_0"], out: at("smaller.gguf") });
    expect(smaller.files[0]?.notes.join()).not.toMatch(/larger/);
  });
});

describe("compressing a quantized teacher", () => {
  it("compares sizes in the same types, and measures what is delivered", async () => {
    const settings = { tokens: 512, sequenceLength: 32, batchSize: 4 };
    const job = { ...common, data, target: "hidden=96,ffn=256", calibrationSamples: 8, refitSamples: 4, settings };
    const outcome = await compress({ ...job, model: at("q4_1.gguf"), gguf: ["q8_0", "q4_0"], out: at("run") });
    const { bytesByKind, gguf, student } = outcome;
    expect(bytesByKind.student!.q8_0).toBe(gguf!.files[0]!.bytes);
    expect(bytesByKind.student!.q4_0).toBe(gguf!.files[1]!.bytes);
    expect(bytesByKind.teacher!.q8_0).toBeGreaterThan(bytesByKind.student!.q8_0!);
    for (const { files, measured } of gguf!.files) {
      // the last 2 % of the text, as the run validates
      expect(measured.tokens).toBe(student.tokens);
      expect(measured.loss).toBeGreaterThan(student.loss - 0.05);
      const again = await measurePerplexity({ ...common, model: files[0]!, data, sequenceLength: 32 });
      expect(Math.abs(again.loss - measured.loss)).toBeLessThan(0.5);
    }
    const shown = renderCompression(outcome);
    expect(shown).toMatch(/│ +parameters │ +as stored │ +as q8_0 │ +as q4_0 │ +loss │/);
    expect(shown).toMatch(/student, q4_0 +│/);
    const left = ((100 * student.parameters) / outcome.teacher.parameters).toFixed(1);
    expect(shown).toContain(`cut: hidden 128 to 96, ffn 384 to 256; ${left} % of the parameters are left`);
  });

  it("without wanted files compares them in 16 bits", async () => {
    const settings = { tokens: 256, sequenceLength: 32, batchSize: 4 };
    const job = { ...common, data, target: "hidden=96,ffn=256", calibrationSamples: 8, refitSamples: 4, settings };
    const { bytesByKind, teacher: before } = await compress({ ...job, model: at("q4_1.gguf"), out: at("plain") });
    expect(before.bytes).toBeLessThan(bytesByKind.teacher!.f16!);
    expect(bytesByKind.teacher!.f16).toBeGreaterThan(bytesByKind.student!.f16!);
    const plain = await compress({ ...job, model: teacher, out: at("plain-16") });
    expect(plain.bytesByKind).toEqual({ teacher: {}, pruned: {}, student: {} });
  });
});

describe("widths of a model that is to be quantized", () => {
  const sized = (hidden: number, ffn: number) =>
    modelFromConfig({
      model_type: "llama",
      vocab_size: 64,
      hidden_size: hidden,
      intermediate_size: ffn,
      num_hidden_layers: 2,
      num_attention_heads: 8,
    });
  it("keep to the blocks of the kinds that are wanted", () => {
    expect(quantizableDivisors(sized(512, 1408), ["q4_k_m"])).toEqual({ hidden: 256, ffn: 256 });
    expect(quantizableDivisors(sized(512, 1408), ["iq4_xs", "q8_0"])).toEqual({ hidden: 256, ffn: 256 });
    expect(quantizableDivisors(sized(512, 1408), ["q8_0", "iq4_nl"])).toEqual({ hidden: 32, ffn: 32 });
    expect(quantizableDivisors(sized(128, 384), ["q4_k_m"])).toEqual({ hidden: 32, ffn: 256 });
    expect(quantizableDivisors(sized(4096, 11008))).toEqual({ hidden: 256, ffn: 256 });
  });

  it("are only those that a model can be cut on", () => {
    const config = { model_type: "gpt2", vocab_size: 64, n_embd: 64, n_layer: 2, n_head: 4, n_positions: 32 };
    const model = modelFromConfig(config);
    expect(quantizableDivisors(model, ["q8_0"])).toEqual({ ffn: 32 });
    expect(
      candidatesFor(model, { target: "0.8x", space: { divisors: quantizableDivisors(model) } }).length,
    ).toBeGreaterThan(0);
  });

  it("and sizes for a device keep to what fits it, in the kind that is wanted", () => {
    const model = modelFromConfig({
      model_type: "llama",
      vocab_size: 32000,
      hidden_size: 4096,
      intermediate_size: 11008,
      num_hidden_layers: 32,
      num_attention_heads: 32,
    });
    for (const gguf of [undefined, ["q8_0"] as const, ["q4_k_m"] as const]) {
      const { sizes, parameters, kind } = bestFit(model, "phone-8gb", { kinds: gguf });
      if (gguf !== undefined) expect(kind).toBe(gguf[0]);
      const candidates = candidatesFor(model, { target: "phone-8gb", gguf });
      expect(candidates.map((candidate) => candidate.parameters)).toContain(parameters);
      for (const candidate of candidates) {
        expect(candidate.parameters).toBeLessThanOrEqual(parameters);
        for (const axis of ["hidden", "ffn"]) expect(Number(candidate.sizes[axis] ?? sizes[axis]) % 256).toBe(0);
      }
    }
  });
});
