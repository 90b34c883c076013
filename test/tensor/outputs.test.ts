import { describe, expect, it } from "vitest";
import { Graph, gradients, ops, recomputed, TensorStore } from "../../src/tensor/index.js";
import { testBackends } from "../devices.js";
import { openBackend } from "./backend.js";

const ROWS = 64;

describe.each(testBackends)("outputs on %s", (_, options) => {
  const { backend, freeLater } = openBackend(options);

  function setUp(recompute = false) {
    const store = new TensorStore(backend, 1);
    const weight = store.add("weight", [ROWS, ROWS], "f32", { trainable: true });
    store.allocate().write(
      weight,
      Float32Array.from({ length: ROWS ** 2 }, (_unused, i) => ((i * 37) % 101) / 50 - 1),
    );
    const g = new Graph(backend, { recompute });
    freeLater(g, store);
    const x = g.input("x", "f32", [ROWS, ROWS]);
    const data = Float32Array.from({ length: ROWS ** 2 }, (_unused, i) => ((i * 53) % 97) / 50 - 1);
    return { g, weight, x, data };
  }

  it("that are views of what is read further keep their values", async () => {
    const { g, x, data } = setUp();
    const doubled = ops.scale(g, x, { factor: 2 });
    const view = g.output(ops.reshape(g, doubled, { to: [ROWS * ROWS] }));
    let y = doubled;
    for (let i = 0; i < 6; i++) y = ops.matmul(g, ops.silu(g, y), x); // which take memory that is free
    g.output(ops.sum(g, y));
    g.write(x, data);
    await g.run();
    expect(g.read(view)).toEqual(data.map((value) => 2 * value));
  });

  it("that a loss has read keep their values, or are refused when it is too late", async () => {
    const { g, weight, x, data } = setUp();
    const targets = g.input("targets", "i32", [ROWS]);
    const logits = g.output(ops.matmul(g, x, weight));
    const loss = g.output(ops.crossEntropy(g, logits, targets));
    const [gradient] = gradients(g, loss, [weight]);
    g.output(gradient!);
    const other = setUp();
    const expected = other.g.output(ops.matmul(other.g, other.x, other.weight));
    for (const each of [{ g, x }, other]) each.g.write(each.x, data);
    g.write(
      targets,
      Int32Array.from({ length: ROWS }, (_unused, i) => i),
    );
    await g.run();
    await other.g.run();
    expect(g.read(logits)).toEqual(other.g.read(expected));
    if (backend.kernels === undefined) return; // without them the gradient takes memory of its own
    const late = setUp();
    const ids = late.g.input("targets", "i32", [ROWS]);
    const lost = ops.matmul(late.g, late.x, late.weight);
    gradients(late.g, ops.crossEntropy(late.g, lost, ids), [late.weight]);
    expect(() => late.g.output(lost)).toThrow(/must become an output before a gradient takes its memory/);
  });

  it("within what is computed again cannot be part of a loss", () => {
    for (const recompute of [false, true]) {
      const { g, weight, x } = setUp(recompute);
      let inner = x;
      const y = recomputed(g, x, (input) => {
        const product = ops.matmul(g, input, weight);
        inner = product;
        return ops.silu(g, product);
      });
      const loss = ops.add(g, ops.sum(g, ops.square(g, y)), ops.sum(g, ops.square(g, inner)));
      const differentiate = () => gradients(g, loss, [weight]);
      if (recompute) expect(differentiate).toThrow(/within what is computed again for gradients/);
      else expect(differentiate).not.toThrow();
    }
  });
});
