import { afterAll, describe, expect, it } from "vitest";
import { crossEntropyObjective, defaultTrainOptions, fittingMicroBatch } from "../../src/distill/index.js";
import { activationBytes, TrainingStep } from "../../src/distill/training-step.js";
import { Backend } from "../../src/ggml/index.js";
import { initialize, modelFromConfig } from "../../src/models/index.js";

const model = modelFromConfig({
  model_type: "llama",
  vocab_size: 64,
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 3,
  num_attention_heads: 2,
});
const backend = Backend.open({ device: "cpu", threads: 1 });
const student = initialize(backend, model, 1);
afterAll(() => {
  student.free();
  backend.free();
});
const options = defaultTrainOptions(32, 1e5, 64, 24);
const inputs = (changes: Partial<typeof options> = {}) => ({
  backend,
  student,
  objective: crossEntropyObjective,
  options: { ...options, ...changes },
});

describe("the memory of a micro-batch", () => {
  it("is foreseen as it is taken", () => {
    for (const microBatchSize of [1, 4, 12])
      for (const recompute of [false, true]) {
        const foreseen = activationBytes(inputs({ microBatchSize, recompute }));
        const step = new TrainingStep(inputs({ microBatchSize, recompute }));
        const taken = step.graphs[0]!.scratchBytes;
        step.free();
        expect(foreseen / taken).toBeGreaterThan(0.85);
        expect(foreseen / taken).toBeLessThan(1.15);
      }
  });

  it("is that of what gradients need: norms and gated activations are computed again", () => {
    const [hidden, ffn, tokens] = [64, 256, 64 * 4];
    const bytesOf = (layers: number): number => {
      const deeper = modelFromConfig({
        model_type: "llama",
        vocab_size: 64,
        hidden_size: hidden,
        intermediate_size: ffn,
        num_hidden_layers: layers,
        num_attention_heads: 2,
      });
      const weights = initialize(backend, deeper, 1);
      try {
        return activationBytes({ ...inputs({ microBatchSize: 4 }), student: weights });
      } finally {
        weights.free();
      }
    };
    const perToken = (bytesOf(10) - bytesOf(6)) / 4 / tokens / Float32Array.BYTES_PER_ELEMENT;
    // the stream before and after attention; queries, keys, values and what comes of them; gate and up
    const needed = 6 * hidden + 2 * ffn;
    expect(perToken).toBeGreaterThan(0.9 * needed);
    if (backend.kernels !== undefined) expect(perToken).toBeLessThan(1.1 * needed); // not 8 * hidden + 3 * ffn
  });

  it("is less where activations are computed again", () => {
    expect(activationBytes(inputs({ recompute: true }))).toBeLessThan(0.8 * activationBytes(inputs()));
  });

  it("decides how many sequences are computed at once: the most that divide the batch", () => {
    const bytes = (microBatchSize: number) => activationBytes(inputs({ microBatchSize }));
    const fixed = 1e6;
    const sizes = [24, 12, 8, 6, 4, 3, 2, 1];
    for (const [i, size] of sizes.entries()) {
      expect(fittingMicroBatch(inputs(), { available: fixed + bytes(size), fixed })).toBe(size);
      if (size > 1)
        expect(fittingMicroBatch(inputs(), { available: fixed + bytes(size) - 1, fixed })).toBe(sizes[i + 1]);
    }
    expect(fittingMicroBatch(inputs({ microBatchSize: 6 }), { available: 1e12, fixed })).toBe(6);
  });

  it("is refused with figures and advice where one sequence does not fit", () => {
    expect(() => fittingMicroBatch(inputs(), { available: 1e6, fixed: 1e6 })).toThrow(
      /one sequence of 64 tokens takes .* KiB in training beside .*: --recompute, a shorter --sequence-length/,
    );
    expect(() => fittingMicroBatch(inputs({ freeGradients: true }), { available: 3e6, fixed: 1e6 })).toThrow(
      /a batch of 24 sequences takes .* with --free-gradients a batch must fit, so --batch-size \d+/,
    );
  });
});
