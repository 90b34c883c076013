import { afterAll, describe, expect, it } from "vitest";
import { DIVERGENCES, type Divergence, sampledCrossEntropy, topKDivergence } from "../../src/distill/index.js";
import { Backend } from "../../src/ggml/index.js";
import { Random } from "../../src/system/random.js";
import { Graph, gradients, ops, type Tensor, TensorStore } from "../../src/tensor/index.js";
import { testBackends } from "../devices.js";

const [ROWS, VOCAB, K] = [3, 7, 3];

/** The definitions, in double precision. */
const softmax = (row: number[], temperature: number): number[] => {
  const top = Math.max(...row);
  const powers = row.map((value) => Math.exp((value - top) / temperature));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / total);
};
const kl = (p: number[], q: number[]): number =>
  p.reduce((sum, value, i) => sum + (value > 0 ? value * Math.log(value / q[i]!) : 0), 0);
const grouped = (p: number[], largest: number[]): number[] => [
  ...largest.map((i) => p[i]!),
  p.reduce((sum, value, i) => sum + (largest.includes(i) ? 0 : value), 0),
];
const REFERENCE: Record<Divergence, (p: number[], q: number[], largest: number[]) => number> = {
  "forward-kl": (p, q) => kl(p, q),
  "reverse-kl": (p, q) => kl(q, p),
  "jensen-shannon": (p, q) => {
    const m = p.map((value, i) => (value + q[i]!) / 2);
    return (kl(p, m) + kl(q, m)) / 2;
  },
  "top-k": (p, q, largest) => kl(grouped(p, largest), grouped(q, largest)),
};

const random = new Random(11);
const draw = () => Array.from({ length: ROWS }, () => Array.from({ length: VOCAB }, () => 2 * random.normal()));
const teacherRows = draw();
const studentRows = draw();
const largestOf = (row: number[]) => [...row.keys()].sort((a, b) => row[b]! - row[a]!).slice(0, K);

function reference(kind: Divergence, student: number[][], temperature: number): number {
  const losses = student.map((row, i) => {
    const p = softmax(teacherRows[i]!, temperature);
    return REFERENCE[kind](p, softmax(row, temperature), largestOf(teacherRows[i]!));
  });
  return temperature ** 2 * losses.reduce((a, b) => a + b, 0);
}

describe.each(testBackends)("divergences on %s", (_, options) => {
  const backend = Backend.open({ ...options, threads: 2 });
  const finished: { free(): void }[] = [];
  afterAll(() => {
    for (const item of finished) item.free();
    backend.free();
  });

  it.each(DIVERGENCES.flatMap((kind) => [1, 2].map((temperature) => [kind, temperature] as const)))(
    "%s at temperature %d is its definition, and so is its gradient",
    async (kind, temperature) => {
      const store = new TensorStore(backend, 1);
      const student = store.add("student", [ROWS, VOCAB], "f32", { trainable: true });
      store.allocate();
      store.write(student, Float32Array.from(studentRows.flat()));
      const g = new Graph(backend);
      finished.push(g, store);
      const teacher = g.constant("teacher", "f32", [ROWS, VOCAB], Float32Array.from(teacherRows.flat()));
      const loss = g.output(build(g, kind, student, teacher, temperature));
      const [gradient] = gradients(g, loss, [student]).map((tensor) => g.output(tensor));
      await g.run();
      expect(g.read(loss)[0]).toBeCloseTo(reference(kind, studentRows, temperature), 4);
      const analytic = g.read(gradient!);
      for (let i = 0; i < ROWS * VOCAB; i++) {
        const moved = (step: number) =>
          studentRows.map((row, r) => row.map((value, c) => (r * VOCAB + c === i ? value + step : value)));
        const numeric = (reference(kind, moved(1e-4), temperature) - reference(kind, moved(-1e-4), temperature)) / 2e-4;
        expect(analytic[i]).toBeCloseTo(numeric, 4);
      }
    },
  );

  it("top-k is finite, and the whole divergence, where the k tokens have all of the probability", async () => {
    const g = new Graph(backend);
    finished.push(g);
    const [teacher, student] = [teacherRows[0]!, studentRows[0]!];
    const logs = softmax(teacher, 1).map(Math.log);
    const targets = {
      slots: VOCAB,
      indices: g.constant("indices", "i32", [VOCAB], Int32Array.from(logs.keys())),
      values: g.constant("logs", "f32", [VOCAB], Float32Array.from(logs)),
    };
    const logits = g.constant("student", "f32", [1, VOCAB], Float32Array.from(student));
    const loss = g.output(topKDivergence(g, logits, targets, 1));
    await g.run();
    expect(g.read(loss)[0]).toBeCloseTo(kl(softmax(teacher, 1), softmax(student, 1)), 4);
  });

  it.each([1, 2])("sampled cross-entropy at temperature %d is its definition, and so is its gradient", async (T) => {
    const store = new TensorStore(backend, 1);
    const student = store.add("student", [ROWS, VOCAB], "f32", { trainable: true });
    store.allocate();
    store.write(student, Float32Array.from(studentRows.flat()));
    const g = new Graph(backend);
    finished.push(g, store);
    const ids = [1, 4, 0, 6, 0, 0, 2, 3, 5]; // the second row has one id, and two slots that are not used
    const weights = [0.25, 0.5, 0.25, 1, 0, 0, 0.75, 0.125, 0.125];
    const targets = {
      slots: K,
      indices: g.constant(
        "indices",
        "i32",
        [ROWS * K],
        Int32Array.from(ids, (id, i) => Math.floor(i / K) * VOCAB + id),
      ),
      values: g.constant("weights", "f32", [ROWS * K], Float32Array.from(weights)),
    };
    const loss = g.output(sampledCrossEntropy(g, student, targets, T));
    const [gradient] = gradients(g, loss, [student]).map((tensor) => g.output(tensor));
    await g.run();
    const q = studentRows.map((row) => softmax(row, T));
    const share = (row: number, id: number) =>
      weights.reduce((sum, weight, i) => sum + (Math.floor(i / K) === row && ids[i] === id ? weight : 0), 0);
    const expected = q.flatMap((row, r) => row.map((value, id) => -(T ** 2) * share(r, id) * Math.log(value)));
    expect(g.read(loss)[0]).toBeCloseTo(
      expected.reduce((a, b) => a + b, 0),
      4,
    );
    const derivative = q.flatMap((row, r) => row.map((value, id) => T * (value - share(r, id))));
    for (const [i, value] of g.read(gradient!).entries()) expect(value).toBeCloseTo(derivative[i]!, 4);
  });

  function build(g: Graph, kind: Divergence, student: Tensor, teacher: Tensor, temperature: number): Tensor {
    if (kind !== "top-k") return ops.divergence(g, student, teacher, { kind, temperature });
    const largest = teacherRows.map(largestOf);
    const indices = largest.flatMap((row, r) => row.map((i) => r * VOCAB + i));
    const logs = largest.flatMap((row, r) => row.map((i) => Math.log(softmax(teacherRows[r]!, temperature)[i]!)));
    return topKDivergence(
      g,
      student,
      {
        slots: K,
        indices: g.constant("indices", "i32", [ROWS * K], Int32Array.from(indices)),
        values: g.constant("logs", "f32", [ROWS * K], Float32Array.from(logs)),
      },
      temperature,
    );
  }
});
