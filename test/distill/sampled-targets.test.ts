import { afterAll, describe, expect, it } from "vitest";
import { sampledCrossEntropy, sampledTargets, topKDivergence, topKTargets } from "../../src/distill/index.js";
import type { SparseTargets } from "../../src/distill/sparse-targets.js";
import { Backend } from "../../src/ggml/index.js";
import { Random } from "../../src/system/random.js";
import { Graph, gradients, ops, TensorStore } from "../../src/tensor/index.js";

const backend = Backend.open({ device: "cpu", threads: 1 });
afterAll(() => backend.free());

const [ROWS, VOCAB] = [3, 70]; // more ids than are summed at a time
const random = new Random(21);
const draw = () => Float32Array.from({ length: ROWS * VOCAB }, () => 2 * random.normal());
const teacherLogits = draw();
const studentLogits = draw();

const softmax = (logits: Float32Array, temperature = 1): number[] => {
  const powers = [...logits].map((value) => Math.exp(value / temperature));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / total);
};
const row = <T extends Float32Array | Int32Array>(values: T, index: number, width: number) =>
  values.subarray(index * width, (index + 1) * width) as T;
const positionsOf = (sequence: number) => Array.from({ length: ROWS }, (_, offset) => ({ sequence, offset }));

/** What `targets` keeps of the teacher's distributions at the positions of some sequences. */
async function targetsOf(targets: SparseTargets, sequences: readonly number[], logits = teacherLogits) {
  const g = new Graph(backend);
  const read = targets.declare(g, g.constant("teacher", "f32", [ROWS, VOCAB], logits));
  await g.run();
  const results = sequences.map((sequence) => {
    const { ids, values } = read(positionsOf(sequence));
    return { ids: ids.slice(), values: values.slice() };
  });
  g.free();
  return results;
}

const sampled = (samples: number, seed = 1, temperature = 1) =>
  sampledTargets({ samples, temperature, seed, vocabSize: VOCAB });
const SEQUENCES = Array.from({ length: 1000 }, (_, i) => i);

describe("samples of a teacher's distributions", () => {
  it.each([
    [1, 1],
    [12, 1],
    [50, 1],
    [50, 2],
  ])("%d a position at temperature %d occur as often as they are probable", async (samples, temperature) => {
    const drawn = await targetsOf(sampled(samples, 1, temperature), SEQUENCES);
    for (let r = 0; r < ROWS; r++) {
      const counts = new Float64Array(VOCAB);
      for (const { ids, values } of drawn)
        row(ids, r, ids.length / ROWS).forEach((id, slot) => {
          counts[id]! += Math.round(samples * row(values, r, ids.length / ROWS)[slot]!);
        });
      const total = samples * SEQUENCES.length;
      expect(counts.reduce((a, b) => a + b, 0)).toBe(total);
      const p = softmax(row(teacherLogits, r, VOCAB), temperature);
      const chiSquared = p.reduce((sum, share, id) => sum + (counts[id]! - share * total) ** 2 / (share * total), 0);
      expect(chiSquared).toBeLessThan(125); // with 69 degrees of freedom, fewer than one in 10,000 are larger
    }
  });

  it("vary between seeds, sequences and positions, and depend on nothing else", async () => {
    const [first, second] = await targetsOf(sampled(50), [7, 8]);
    const [again] = await targetsOf(sampled(50), [7]);
    const [reseeded] = await targetsOf(sampled(50, 2), [7]);
    expect(again).toEqual(first);
    expect(second).not.toEqual(first);
    expect(reseeded).not.toEqual(first);
    const [alike] = await targetsOf(sampled(50), [7], new Float32Array(ROWS * VOCAB));
    expect(row(alike!.ids, 0, VOCAB)).not.toEqual(row(alike!.ids, 1, VOCAB));
  });

  it("are distinct ids in ascending order, with shares that sum to 1", async () => {
    for (const { ids, values } of await targetsOf(sampled(5), SEQUENCES.slice(0, 50)))
      for (let r = 0; r < ROWS; r++) {
        const shares = row(values, r, 5).filter((value) => value > 0);
        const used = row(ids, r, 5).slice(0, shares.length);
        expect([...used]).toEqual([...new Set(used)].sort((a, b) => a - b));
        expect(shares.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 6);
      }
  });

  it("are not finite where the logits are not", async () => {
    const [damaged] = await targetsOf(sampled(5), [0], teacherLogits.with(VOCAB + 3, Number.NaN));
    expect(row(damaged!.values, 0, 5).every(Number.isFinite)).toBe(true);
    expect(row(damaged!.values, 1, 5).some(Number.isFinite)).toBe(false);
  });
});

describe("the loss on samples", () => {
  /** The gradients by the student's logits for the targets of each sequence. */
  async function gradientsFor(targets: SparseTargets, sequences: readonly number[]): Promise<Float32Array[]> {
    const { slots } = targets;
    const store = new TensorStore(backend, 1);
    const student = store.add("student", [ROWS, VOCAB], "f32", { trainable: true });
    store.allocate();
    store.write(student, studentLogits);
    const g = new Graph(backend);
    const indices = g.input("indices", "i32", [ROWS * slots]);
    const values = g.input("values", "f32", [ROWS * slots]);
    const loss = targets.loss(g, student, { indices, values, slots });
    const [gradient] = gradients(g, loss, [student]).map((tensor) => g.output(tensor));
    const results: Float32Array[] = [];
    for (const drawn of await targetsOf(targets, sequences)) {
      g.write(indices, ops.headIndices(drawn.ids, ROWS, VOCAB));
      g.write(values, drawn.values);
      await g.run();
      results.push(g.read(gradient!).slice());
    }
    g.free();
    store.free();
    return results;
  }

  /** The gradient of T² KL(p ‖ q): T (q - p). */
  const exact = (temperature: number) =>
    Array.from({ length: ROWS }, (_, r) => {
      const p = softmax(row(teacherLogits, r, VOCAB), temperature);
      const q = softmax(row(studentLogits, r, VOCAB), temperature);
      return q.map((value, id) => temperature * (value - p[id]!));
    }).flat();

  it.each([1, 2])("has the gradient of the whole forward KL divergence as its mean, at temperature %d", async (T) => {
    const [samples, count] = [12, 500];
    const found = await gradientsFor(sampled(samples, 3, T), SEQUENCES.slice(0, count));
    const p = Array.from({ length: ROWS }, (_, r) => softmax(row(teacherLogits, r, VOCAB), T)).flat();
    const off = exact(T).map((expected, i) => {
      const mean = found.reduce((sum, gradient) => sum + gradient[i]!, 0) / count;
      const standardError = T * Math.sqrt((p[i]! * (1 - p[i]!)) / samples / count);
      return Math.abs(mean - expected) / (standardError + 1e-6);
    });
    expect(Math.max(...off)).toBeLessThan(4.5);
    expect(off.filter((value) => value < 1).length / off.length).toBeGreaterThan(0.5); // 68 % are
  });

  it("which that on the most probable tokens has not", async () => {
    const [gradient] = await gradientsFor(topKTargets({ k: 12, temperature: 1 }), [0]);
    const worst = Math.max(...exact(1).map((value, i) => Math.abs(value - gradient![i]!)));
    expect(worst).toBeGreaterThan(1e-3);
    const [all] = await gradientsFor(topKTargets({ k: VOCAB, temperature: 1 }), [0]);
    exact(1).forEach((value, i) => void expect(all![i]).toBeCloseTo(value, 5));
  });

  it("differs from the divergence by the teacher's entropy", async () => {
    const g = new Graph(backend);
    const indices = ops.headIndices(
      Int32Array.from({ length: ROWS * VOCAB }, (_, i) => i % VOCAB),
      ROWS,
      VOCAB,
    );
    const p = Array.from({ length: ROWS }, (_, r) => softmax(row(teacherLogits, r, VOCAB))).flat();
    const entropy = p.reduce((sum, value) => sum - value * Math.log(value), 0);
    const student = g.constant("student", "f32", [ROWS, VOCAB], studentLogits);
    const ids = g.constant("indices", "i32", [ROWS * VOCAB], indices);
    const targets = (name: string, values: number[]) => ({
      slots: VOCAB,
      indices: ids,
      values: g.constant(name, "f32", [ROWS * VOCAB], Float32Array.from(values)),
    });
    const crossEntropy = g.output(sampledCrossEntropy(g, student, targets("weights", p), 1));
    const logs = p.map(Math.log);
    const divergence = g.output(topKDivergence(g, student, targets("logs", logs), 1));
    await g.run();
    expect(g.read(crossEntropy)[0]! - entropy).toBeCloseTo(g.read(divergence)[0]!, 4);
    g.free();
  });
});

describe("stored samples", () => {
  it("are read as they were, in two or three bytes an id", async () => {
    for (const [samples, vocabSize, bytes] of [
      [50, 512, 2],
      [50, 49152, 3],
      [64, 262144, 3],
      [12, VOCAB, 2],
      [3, VOCAB, 1],
    ] as const) {
      const targets = sampledTargets({ samples, temperature: 1, seed: 0, vocabSize });
      const slots = Math.min(samples, vocabSize);
      const ids = new Int32Array(2 * slots);
      const values = new Float32Array(2 * slots);
      ids.set([0, vocabSize - 1], 0); // every sample but one is the last token
      values.set([1 / samples, (samples - 1) / samples], 0);
      ids.set([vocabSize - 2], slots);
      values.set([1], slots);
      const entry = targets.encode({ ids, values });
      expect(entry.byteLength).toBe(3 * bytes);
      expect(targets.decode(entry, 2)).toEqual({ ids, values });
    }
  });

  it("are read as they were drawn, bit for bit", async () => {
    for (const samples of [1, 7, 12, 50, 300]) {
      const targets = sampled(samples);
      for (const drawn of await targetsOf(targets, [0, 1, 2]))
        expect(targets.decode(targets.encode(drawn), ROWS)).toEqual(drawn);
    }
  });
});
