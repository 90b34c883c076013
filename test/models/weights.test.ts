import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Backend, type FloatDType, toFloat32 } from "../../src/ggml/index.js";
import {
  bytesOnDevice,
  type Checkpoint,
  loadWeights,
  ModelWeights,
  openCheckpoint,
  openWeights,
  typesOn,
} from "../../src/models/index.js";
import { readMatrix } from "../../src/prune/matrices.js";
import { exportGguf } from "../../src/quantize/index.js";
import { readTensorBytes } from "../../src/tensor/tensor.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();
const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const NAME = "model.layers.0.mlp.down_proj.weight";
const withKernels = Backend.open({ device: "cpu", threads: 1 });
const without = Backend.open({ device: "cpu", threads: 1, kernels: "none" });
afterAll(() => {
  for (const backend of [withKernels, without]) backend.free();
});

let quantized: Checkpoint;
beforeAll(async () => {
  const file = path.join(root, "teacher.gguf");
  await exportGguf(file, openCheckpoint(teacher), { kind: "q8_0" });
  quantized = openCheckpoint(file);
});

function loaded(backend: Backend, dtype: FloatDType, keepsQuantized?: boolean) {
  const { model, source } = quantized;
  const weights = loadWeights(backend, model, source, { dtype, keepsQuantized, trainable: false });
  try {
    const { functions } = backend;
    const tensor = weights.get(NAME);
    return {
      dtype: tensor.dtype,
      values: toFloat32(functions, readTensorBytes(functions, tensor), tensor.dtype).slice(),
    };
  } finally {
    weights.free();
  }
}

describe("quantized weights that are read", () => {
  it.each([
    ["bf16", "bf16", 2 ** -8],
    ["f32", "f16", 2 ** -11],
  ] as const)("are expanded for products in %s, to %s", (dtype, expanded, precision) => {
    const { data } = readMatrix(quantized.source, NAME);
    const { dtype: type, values } = loaded(withKernels, dtype);
    expect(type).toBe(expanded);
    values.forEach((value, i) => {
      expect(Math.abs(value - data[i]!)).toBeLessThanOrEqual(precision * Math.abs(data[i]!) + 1e-7);
    });
  });

  it("stay as they are without our kernels, and where that is asked for", () => {
    expect(loaded(without, "bf16").dtype).toBe("q8_0");
    expect(loaded(withKernels, "bf16", true).dtype).toBe("q8_0");
  });

  it("are streamed where plain floats do not fit in memory", () => {
    const { model, source } = quantized;
    const plain = bytesOnDevice(model, source, typesOn(withKernels, "bf16"));
    expect(plain).toBeGreaterThan(1.7 * bytesOnDevice(model, source, typesOn(without, "bf16")));
    const isWhole = (memoryBytes: number) => {
      const weights = openWeights(withKernels, quantized, { dtype: "bf16", memoryBytes });
      weights.free();
      return weights instanceof ModelWeights;
    };
    expect([1.3 * plain, plain].map(isWhole)).toEqual([true, false]); // weights take four fifths of the memory
  });
});
