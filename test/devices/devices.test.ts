import path from "node:path";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { DEVICES, deviceProfile, fitDevice, predictMemory, predictSpeed } from "../../src/devices/index.js";
import { predictLoss, storedTensors } from "../../src/devices/predict.js";
import { loadModel } from "../../src/generate/index.js";
import { quantize } from "../../src/jobs/index.js";
import { modelFromConfig } from "../../src/models/index.js";
import type { FileKind } from "../../src/quantize/index.js";
import { temporaryDirectory } from "../temporary.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const tiny = modelFromConfig(readJsonObject(path.join(teacher, "config.json")));
/** Mistral NeMo 12B. */
const nemo = modelFromConfig({
  model_type: "mistral",
  hidden_size: 5120,
  intermediate_size: 14336,
  num_hidden_layers: 40,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  head_dim: 128,
  vocab_size: 131072,
  max_position_embeddings: 131072,
  rms_norm_eps: 1e-5,
  rope_theta: 1e6,
  tie_word_embeddings: false,
  architectures: ["MistralForCausalLM"],
});

describe("what a model takes", () => {
  const kinds: readonly FileKind[] = ["f16", "q8_0", "q4_k_m"];
  const directory = temporaryDirectory();
  const files = new Map<string, { path: string; bytes: number }>();
  beforeAll(async () => {
    const outcome = await quantize({ model: teacher, types: kinds, out: directory, device: "cpu" });
    for (const [i, file] of outcome.files.entries())
      files.set(kinds[i] ?? "", { path: file.files[0] ?? "", bytes: file.bytes });
  });

  it.each(kinds)("is what llama.cpp allocates for %s, within 5 %", async (kind) => {
    const file = files.get(kind);
    expect(storedTensors(tiny, kind).reduce((sum, { bytes }) => sum + bytes, 0)).toBe(file?.bytes);
    const model = await loadModel(file?.path ?? "", { device: "cpu" });
    for (const contextSize of [128, 512]) {
      const context = await model.createContext({
        contextSize,
        threads: 1,
        flashAttention: true,
        batchSize: Math.min(512, contextSize),
      });
      const allocated = model.size + context.memoryUsage.ram;
      expect(predictMemory(tiny, kind, contextSize).totalBytes / allocated).toBeGreaterThan(0.95);
      expect(predictMemory(tiny, kind, contextSize).totalBytes / allocated).toBeLessThan(1.05);
      await context.dispose();
    }
    await model.dispose();
  });

  it("of Mistral NeMo 12B is what its files are known to have", () => {
    // sizes of the published files, in GB: Q8_0 13.02, Q4_K_M 7.48
    expect(predictMemory(nemo, "q8_0", 2048).weightBytes / 1e9).toBeCloseTo(13.02, 1);
    expect(predictMemory(nemo, "q4_k_m", 2048).weightBytes / 1e9).toBeCloseTo(7.48, 1);
    // 2 (keys, values) x 40 layers x 8 heads x 128 x 2 bytes
    expect(predictMemory(nemo, "q8_0", 1024).cacheBytes).toBe(1024 * 2 * 40 * 8 * 128 * 2);
  });
});

describe("the cache", () => {
  const withWindow = (model_type: string, more = {}) =>
    modelFromConfig({ ...nemo.config, model_type, sliding_window: 512, ...more });

  it("has windows only where llama.cpp computes them", () => {
    const whole = predictMemory(nemo, "q8_0", 4096).cacheBytes;
    expect(predictMemory(withWindow("mistral"), "q8_0", 4096).cacheBytes).toBe(whole); // its files have none
    const gemma = withWindow("gemma2", { query_pre_attn_scalar: 128, tie_word_embeddings: true });
    // every other layer has a window's 512 positions and a batch's
    expect(predictMemory(gemma, "q8_0", 4096).cacheBytes).toBe((whole * (4096 + 1024)) / 2 / 4096);
  });
});

describe("the loss of a kind of file", () => {
  it("lies between those of the kinds next in size, also where none is published", () => {
    const lossOf = (kind: FileKind) => predictLoss(nemo, nemo, kind);
    expect(lossOf("q3_k_s")).toBeGreaterThan(lossOf("q3_k_m"));
    expect(lossOf("q3_k_s")).toBeLessThan(lossOf("q2_k"));
    expect(lossOf("iq1_s")).toBeGreaterThan(lossOf("q2_k"));
    expect(lossOf("q4_0")).toBeGreaterThan(lossOf("q5_k_m"));
  });
});

describe("how fast a device generates", () => {
  it("is bound by reading weights where memory is slow, by computing where it is fast", () => {
    const measured = (compute: number, rowSeconds = 0) => ({
      computeOf: { q8_0: compute },
      rowSeconds,
      attentionCompute: compute,
      startSeconds: 0,
    });
    const device = deviceProfile("laptop-16gb");
    const slow = predictSpeed(nemo, "q8_0", { ...device, bandwidth: 10e9, measured: measured(1e15) }, 16);
    expect(slow.boundBy).toBe("bandwidth");
    const read = predictMemory(nemo, "q8_0", 16).weightBytes * (1 - 1 / 18.2); // all but the embedding: 131072 x 5120 of 12.2 G
    expect(slow.tokensPerSecond * (read / 10e9)).toBeCloseTo(1, 1);
    const fast = predictSpeed(nemo, "q8_0", { ...device, bandwidth: 1e15, measured: measured(1e11) }, 16);
    expect(fast.boundBy).toBe("compute");
    expect(fast.tokensPerSecond * ((2 * (12.25e9 - 0.67e9)) / 1e11)).toBeCloseTo(1, 1);
    // each row takes its time: those of 40 layers (q, k, v, o, gate, up, down) and of the logits, norms aside
    const rows = 40 * (4096 + 2 * 1024 + 5120 + 2 * 14336 + 5120) + 131072;
    const many = predictSpeed(nemo, "q8_0", { ...device, bandwidth: 1e15, measured: measured(1e15, 1e-6) }, 16);
    expect((many.tokensPerSecond * rows) / 1e6).toBeCloseTo(1, 1);
  });
});

describe("a fit", () => {
  it("offers what fits, and nothing on its front is beaten", () => {
    fc.assert(
      fc.property(fc.constantFrom(...DEVICES), fc.integer({ min: 64, max: 8192 }), (device, contextLength) => {
        const { candidates, best } = fitDevice(nemo, device, { contextLength });
        for (const { fits, memory } of candidates) expect(fits).toBe(memory.totalBytes <= device.usableBytes);
        const front = candidates.filter(({ onFront }) => onFront);
        for (const a of front)
          for (const b of candidates)
            expect(
              b.memory.totalBytes < a.memory.totalBytes &&
                b.tokensPerSecond > a.tokensPerSecond &&
                b.expectedLoss < a.expectedLoss,
            ).toBe(false);
        expect(best === undefined).toBe(!candidates.some(({ fits }) => fits));
        if (best !== undefined) expect(best.fits).toBe(true);
      }),
      { numRuns: 6 },
    );
  });

  it("does not offer the uncut model in a file that is larger than its own", () => {
    const device = deviceProfile("h100-80gb");
    const uncut = (storedBytes: number | undefined) =>
      fitDevice(nemo, device, { contextLength: 2048, storedBytes }).candidates.filter(({ share }) => share === 1);
    const all = uncut(undefined);
    const sizes = all.map(({ memory }) => memory.weightBytes).sort((a, b) => a - b);
    const middle = sizes[sizes.length >> 1] ?? 0;
    expect(uncut(middle).map(({ kind }) => kind)).toEqual(
      all.filter(({ memory }) => memory.weightBytes <= middle).map(({ kind }) => kind),
    );
    expect(uncut(middle).length).toBeLessThan(all.length);
  });

  it("of a model of 12 B cuts and quantizes more for a smaller device", () => {
    const of = (id: string) => fitDevice(nemo, deviceProfile(id)).best;
    expect(of("h100-80gb")?.share).toBe(1);
    const [phone, laptop] = [of("phone-12gb"), of("laptop-16gb")];
    expect(phone?.memory.totalBytes).toBeLessThan(laptop?.memory.totalBytes ?? 0);
    expect(phone?.expectedLoss).toBeGreaterThan(laptop?.expectedLoss ?? 0);
    expect(of("phone-4gb")).toBeUndefined();
  });
});
