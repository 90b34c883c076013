import path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { TensorInfo, TensorSource } from "../../src/checkpoint/index.js";
import { readTensor } from "../../src/checkpoint/index.js";
import { rowBytes, tensorInfo } from "../../src/checkpoint/tensor-source.js";
import { countParameters, dimensionsOf, modelFromConfig, shapeOf, writeModel } from "../../src/models/index.js";
import { type KeptIndices, keptIndices, planWithLayers, prune, type Scores } from "../../src/prune/index.js";
import { highest } from "../../src/prune/plan.js";
import { Random } from "../../src/system/random.js";
import { temporaryDirectory } from "../temporary.js";

const config = {
  model_type: "llama",
  vocab_size: 11,
  hidden_size: 12,
  intermediate_size: 10,
  num_hidden_layers: 4,
  num_attention_heads: 6,
  num_key_value_heads: 3,
  head_dim: 2,
  attention_bias: true,
  mlp_bias: true,
};
const model = modelFromConfig(config);

/** A source in which each element's value identifies its tensor and its position. */
function countingSource(elementBytes: 2 | 4): TensorSource {
  const tensors = new Map<string, TensorInfo>();
  for (const spec of model.parameters)
    tensors.set(spec.name, { dtype: elementBytes === 2 ? "bf16" : "f32", shape: shapeOf(spec, model.sizes) });
  const names = [...tensors.keys()];
  return {
    tensors,
    readRows: (name, from, to) => {
      const info = tensorInfo({ tensors }, name);
      const width = rowBytes(info) / elementBytes;
      const values = Array.from({ length: (to - from) * width }, (_, i) =>
        elementAt(names.indexOf(name), from * width + i),
      );
      return new Uint8Array((elementBytes === 2 ? Uint16Array.from(values) : Uint32Array.from(values)).buffer);
    },
    releaseRows: () => {},
  };
}
const elementAt = (tensor: number, index: number) => (tensor * 251 + index * 7) % 65_521;

const randomScores = (seed: number): Scores => {
  const random = new Random(seed);
  return new Map(
    Object.entries(model.sizes).map(([name, size]) => [
      name,
      Float32Array.from({ length: size }, () => random.uniform()),
    ]),
  );
};

describe("surgery", () => {
  it("keeps exactly the named elements of every parameter, for any plan", () => {
    const plans = fc.record({
      perHead: fc.integer({ min: 1, max: 2 }),
      ffn: fc.integer({ min: 1, max: 10 }),
      kvHeads: fc.integer({ min: 1, max: 3 }),
      perGroup: fc.integer({ min: 1, max: 2 }),
      layers: fc.subarray([0, 1, 2, 3], { minLength: 1 }),
      seed: fc.nat(1000),
      elementBytes: fc.constantFrom<2 | 4>(2, 4),
    });
    fc.assert(
      fc.property(plans, ({ perHead, ffn, kvHeads, perGroup, layers, seed, elementBytes }) => {
        const hidden = perHead * kvHeads * perGroup; // transformers rejects other widths of models with biases
        const plan = planWithLayers(model, { hidden, ffn, kvHeads, heads: kvHeads * perGroup }, layers);
        const source = countingSource(elementBytes);
        const kept: KeptIndices = keptIndices(model, plan, randomScores(seed));
        const pruned = prune({ model, source }, plan, kept);
        const originals = [...source.tensors.keys()];
        let elements = 0;
        for (const [name, { shape }] of pruned.source.tensors) {
          const originalName = name.replace(/layers\.(\d+)/, (_, layer) => `layers.${layers[Number(layer)]}`);
          const spec = model.parameters.find((parameter) => parameter.name === originalName)!;
          const bytes = readTensor(pruned.source, name);
          const values = elementBytes === 2 ? new Uint16Array(bytes.buffer) : new Uint32Array(bytes.buffer);
          // an independent reading of "keep these": walk every kept combination of the axes' factors
          const axes = spec.axes.map((axis) => {
            let indices = [0];
            for (const factor of dimensionsOf(axis)) {
              const size = model.sizes[factor]!;
              const stays = [...(kept.get(factor) ?? Array.from({ length: size }, (_, i) => i))];
              indices = indices.flatMap((outer) => stays.map((inner) => outer * size + inner));
            }
            return indices;
          });
          const [rows, columns = [0]] = axes as [number[], number[]?];
          const width = spec.axes.length > 1 ? source.tensors.get(originalName)!.shape[1]! : 1;
          const expected = rows.flatMap((row) =>
            columns.map((column) => elementAt(originals.indexOf(originalName), row * width + column)),
          );
          expect([...values]).toEqual(expected);
          expect(shape.reduce((a, b) => a * b, 1)).toBe(expected.length);
          elements += expected.length;
        }
        expect(countParameters(pruned.model.parameters, pruned.model.sizes)).toBe(elements);
      }),
      { numRuns: 80 },
    );
  });

  it("takes the highest scores in their original order, the first of equal ones", () => {
    expect([...highest(Float32Array.of(3, 1, 3, 2, 3), 2)]).toEqual([0, 2]);
    expect([...highest(Float32Array.of(1, 5, 4), 2)]).toEqual([1, 2]);
  });

  it("keeps as many heads in every kept group", () => {
    const plan = planWithLayers(model, { heads: 2, kvHeads: 2 }, [0, 1, 2, 3]);
    const kept = keptIndices(model, plan, randomScores(4));
    const groups = [...kept.get("layers.0.kvHeads")!];
    expect([...kept.get("layers.0.heads")!].map((head) => Math.floor(head / 2))).toEqual(groups);
  });

  it("cuts layers to different sizes and writes a configuration that says so", () => {
    const sizes = { ...model.sizes, "layers.1.ffn": 4 };
    const plan = { sizes, keptLayers: [0, 1, 2, 3] };
    const pruned = prune({ model, source: countingSource(4) }, plan, keptIndices(model, plan, randomScores(1)));
    expect(pruned.model.config.intermediate_size).toEqual([10, 4, 10, 10]);
    expect(pruned.source.tensors.get("model.layers.1.mlp.down_proj.weight")!.shape).toEqual([12, 4]);
    expect(modelFromConfig(pruned.model.config).sizes).toEqual(sizes);
    const notes: string[] = [];
    const onNote = (note: string) => notes.push(note);
    writeModel(path.join(temporaryDirectory(), "cut"), pruned, { onNote });
    expect(notes).toEqual([expect.stringMatching(/its layers differ in ffn: .*transformers does not/)]);
    writeModel(path.join(temporaryDirectory(), "whole"), { model, source: countingSource(4) }, { onNote });
    expect(notes.length).toBe(1);
  });

  it.each([
    [{ hidden: 13 }, /hidden=13: the model has 12/],
    [{ ffn: 0 }, /ffn=0/],
    [{ heads: 5, kvHeads: 2 }, /heads=5 cannot be shared by kvHeads=2/],
    [{ heads: 3, kvHeads: 1 }, /at most 2 times/],
  ])("refuses %o", (wanted, message) => {
    expect(() => planWithLayers(model, wanted, [0, 1, 2, 3])).toThrow(message);
  });
});
