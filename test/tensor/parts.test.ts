import { describe, expect, it } from "vitest";
import { Graph, gradients, ops, type Tensor, TensorStore } from "../../src/tensor/index.js";
import { testBackends } from "../devices.js";
import { openBackend } from "./backend.js";

const LAYERS = 5;

describe.each(testBackends)("gradients on %s", (_name, options) => {
  const { backend, freeLater } = openBackend({ ...options, threads: 1 });

  /** A chain of matrices, the first of which is used at the end, too: its gradient is complete last. */
  function chain() {
    const store = new TensorStore(backend, LAYERS + 1);
    const weights = Array.from({ length: LAYERS }, (_, i) => store.add(`w${i}`, [8, 8], "f32", { trainable: true }));
    store.allocate();
    weights.forEach((weight, i) => {
      store.write(
        weight,
        Float32Array.from({ length: 64 }, (_, k) => Math.sin(i * 64 + k) / 3),
      );
    });
    const g = new Graph(backend);
    freeLater(g, store);
    const x = g.input("x", "f32", [4, 8]);
    let y: Tensor = x;
    for (const weight of [...weights, weights[0]!]) y = ops.silu(g, ops.linear(g, y, weight));
    const loss = g.output(ops.sum(g, ops.square(g, y)));
    return { g, x, weights, loss };
  }

  it("are announced as soon as they are complete, and have the values that they have in the end", async () => {
    const { g, x, weights, loss } = chain();
    const announced: [Tensor, Tensor][] = [];
    const all = gradients(g, loss, weights, (target, gradient) => {
      announced.push([target, gradient]);
    });
    expect(announced.map(([{ name }]) => name)).toEqual(["w4", "w3", "w2", "w1", "w0"]);
    for (const tensor of all) g.output(tensor);
    g.write(
      x,
      Float32Array.from({ length: 32 }, (_, i) => Math.cos(i)),
    );
    await g.run();
    for (const [target, gradient] of announced) expect(g.read(gradient)).toEqual(g.read(all[weights.indexOf(target)]!));
  });

  it("are the same where the graph runs in parts, each of which completes some of them", async () => {
    const { g, x, weights, loss } = chain();
    const order: Tensor[] = [];
    const all = gradients(g, loss, weights, (_target, gradient) => {
      order.push(g.output(gradient));
    });
    g.write(
      x,
      Float32Array.from({ length: 32 }, (_, i) => Math.cos(i)),
    );
    await g.run();
    const expected = all.map((tensor) => g.read(tensor));
    const parts = g.parts(order, 3);
    expect(parts.length).toBeGreaterThan(1);
    expect(parts.flatMap(({ known }) => known)).toEqual(order);
    g.write(x, new Float32Array(32));
    await g.run();
    expect(g.read(all[0]!)).not.toEqual(expected[0]);
    g.write(
      x,
      Float32Array.from({ length: 32 }, (_, i) => Math.cos(i)),
    );
    for (const part of parts) await part.run();
    expect(all.map((tensor) => g.read(tensor))).toEqual(expected);
  });
});
