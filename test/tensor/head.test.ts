import { describe, expect, it } from "vitest";
import { Random } from "../../src/system/random.js";
import { Graph, gradients, ops, recomputed, type Tensor, TensorStore } from "../../src/tensor/index.js";
import { testBackends } from "../devices.js";
import { openBackend } from "./backend.js";

const [ROWS, WIDTH, VOCAB] = [700, 8, 40]; // more rows than are computed at a time

describe("the rows of a head that are computed at a time", () => {
  it.each([
    [1, 40],
    [256, 40],
    [257, 40],
    [700, 131_072],
    [700, 300_000],
    [1000, 2_000_000],
  ])("of %i rows, %i logits each, are all of them once, in ranges about as long", (rows, vocab) => {
    const ranges = [...ops.rowRanges(rows, vocab)];
    expect(ranges.map(({ from }) => from)).toEqual([0, ...ranges.slice(0, -1).map(({ to }) => to)]);
    expect(ranges.at(-1)?.to).toBe(rows);
    const lengths = ranges.map(({ from, to }) => to - from);
    expect(Math.max(...lengths)).toBe(lengths[0]);
    expect(Math.min(...lengths)).toBeGreaterThan(0);
    // as long as 128 MiB of logits allow, but 64 at least, and 256 at most, which are as fast as more
    const most = Math.min(256, Math.max(64, 2 ** 25 / vocab));
    expect(lengths[0]).toBeLessThanOrEqual(most);
    expect(ranges.length).toBe(Math.ceil(rows / Math.floor(most)));
  });

  it("have indices of their own logits, for several targets a row", () => {
    const ids = Int32Array.from({ length: 2 * ROWS }, (_unused, i) => (i * 11) % VOCAB);
    const indices = ops.headIndices(ids, ROWS, VOCAB);
    for (const { from, to } of ops.rowRanges(ROWS, VOCAB))
      for (let row = from; row < to; row++)
        for (const which of [0, 1]) expect(indices[2 * row + which]).toBe((row - from) * VOCAB + ids[2 * row + which]!);
  });
});

describe.each(testBackends)("on %s", (_, options) => {
  const { backend, freeLater } = openBackend({ ...options, threads: 2 });

  const random = new Random(3);
  const draw = (count: number) => Float32Array.from({ length: count }, () => random.normal());
  const [hiddenValues, headValues] = [draw(ROWS * WIDTH), draw(VOCAB * WIDTH)];
  const ids = Int32Array.from({ length: ROWS }, (_unused, row) => (row * 7) % VOCAB);

  function setUp() {
    const store = new TensorStore(backend, 2);
    const hidden = store.add("hidden", [ROWS, WIDTH], "f32", { trainable: true });
    const head = store.add("head", [VOCAB, WIDTH], "f32", { trainable: true });
    store.allocate();
    store.write(hidden, hiddenValues);
    store.write(head, headValues);
    const g = new Graph(backend);
    freeLater(g, store);
    return { g, hidden, head };
  }

  it("a head's loss computed some rows at a time is the loss by its definition, and so are its gradients", async () => {
    const { g, hidden, head } = setUp();
    const indices = g.constant("targets", "i32", [ROWS], ops.headIndices(ids, ROWS, VOCAB));
    const { loss, terms } = ops.headLoss(g, hidden, VOCAB, (rows) => ops.linear(g, rows, head), [
      { weight: 0.5, of: (logits, range) => ops.crossEntropy(g, logits, ops.rowsOf(g, indices, range)) },
    ]);
    // used twice more, and scaled: what is handed back must add up
    const total = ops.add(g, ops.scale(g, loss, { factor: 3 }), ops.sum(g, ops.mul(g, hidden, hidden)));
    const derived = gradients(g, total, [hidden, head]).map((gradient) => g.output(gradient));
    g.output(loss);
    g.output(terms[0] as Tensor);
    await g.run();

    let expected = 0;
    const [dHidden, dHead] = [new Float64Array(ROWS * WIDTH), new Float64Array(VOCAB * WIDTH)];
    for (let row = 0; row < ROWS; row++) {
      const x = hiddenValues.subarray(row * WIDTH, (row + 1) * WIDTH);
      const logits = Array.from({ length: VOCAB }, (_unused, v) =>
        x.reduce((sum, value, i) => sum + value * headValues[v * WIDTH + i]!, 0),
      );
      const top = Math.max(...logits);
      const total = logits.reduce((sum, value) => sum + Math.exp(value - top), 0);
      expected += top + Math.log(total) - logits[ids[row]!]!;
      for (let i = 0; i < WIDTH; i++) dHidden[row * WIDTH + i]! += 2 * x[i]!;
      logits.forEach((value, v) => {
        const slope = 1.5 * (Math.exp(value - top) / total - (v === ids[row] ? 1 : 0));
        for (let i = 0; i < WIDTH; i++) {
          dHidden[row * WIDTH + i]! += slope * headValues[v * WIDTH + i]!;
          dHead[v * WIDTH + i]! += slope * x[i]!;
        }
      });
    }
    expect(g.read(loss)[0]! / (0.5 * expected)).toBeCloseTo(1, 5);
    expect(g.read(terms[0] as Tensor)[0]! / expected).toBeCloseTo(1, 5);
    g.read(derived[0]!).forEach((value, i) => {
      expect(Math.abs(value - dHidden[i]!)).toBeLessThan(1e-3);
    });
    g.read(derived[1]!).forEach((value, i) => {
      expect(Math.abs(value - dHead[i]!)).toBeLessThan(2e-2);
    });
  });

  it("rows mapped some at a time come out in their order", async () => {
    const { g, hidden, head } = setUp();
    const all = g.output(ops.linear(g, hidden, head));
    const parts = g.output(ops.mapHeadRows(g, hidden, VOCAB, (rows) => ops.linear(g, rows, head)));
    await g.run();
    expect(Buffer.from(g.read(parts).buffer).equals(Buffer.from(g.read(all).buffer))).toBe(true);
  });

  it("what is computed again gives the same gradients in less memory", async () => {
    const run = async (recompute: boolean) => {
      const { hidden, head } = setUp();
      const g = new Graph(backend, { recompute });
      freeLater(g);
      let x = hidden;
      for (let layer = 0; layer < 6; layer++)
        x = recomputed(g, x, (input) => {
          const wide = ops.linear(g, input, head);
          const narrow = ops.matmul(
            g,
            ops.silu(g, wide),
            ops.reshape(g, ops.permute(g, head, { order: [1, 0] }), { to: [WIDTH, VOCAB] }),
          );
          return ops.add(g, input, ops.scale(g, narrow, { factor: 0.01 }));
        });
      const loss = g.output(ops.sum(g, ops.square(g, x)));
      const derived = gradients(g, loss, [hidden, head]).map((gradient) => g.output(gradient));
      await g.run();
      return { bytes: g.scratchBytes, values: derived.map((gradient) => g.read(gradient)) };
    };
    const [kept, again] = [await run(false), await run(true)];
    // the same but for the order in which a weight used in several layers collects its terms
    again.values.forEach((values, which) => {
      const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      values.forEach((value, i) => {
        expect(Math.abs(value - kept.values[which]![i]!)).toBeLessThan(1e-6 * largest);
      });
    });
    expect(again.bytes).toBeLessThan(0.7 * kept.bytes);
  });
});
