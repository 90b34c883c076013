import { afterAll, describe, expect, it } from "vitest";
import { Backend } from "../../src/ggml/index.js";
import { ShapeError } from "../../src/system/errors.js";
import { Graph, gradients, ops, type Tensor, TensorStore } from "../../src/tensor/index.js";
import { testBackends } from "../devices.js";

describe.each(testBackends)("tensors that do not fit, on %s", (_, options) => {
  const backend = Backend.open({ ...options, threads: 1 });
  const g = new Graph(backend);
  afterAll(() => {
    g.free();
    backend.free();
  });
  const x = g.input("x", "f32", [3, 4]);
  const y = g.input("y", "f32", [2, 4]);
  const ids = g.input("ids", "i32", [3]);
  const vector = g.input("vector", "f32", [4]);
  const fourIds = g.input("fourIds", "i32", [4]);
  const half = g.input("half", "bf16", [3, 4]);

  it.each<[string, () => Tensor, RegExp]>([
    ["shapes in a sum", () => ops.add(g, x, y), /y f32 \[2, 4\] does not broadcast to x f32 \[3, 4\]/],
    ["types in a sum", () => ops.add(g, x, half), /add: half bf16 \[3, 4\] must be f32/],
    ["types in a product", () => ops.mul(g, x, ids), /mul: ids i32 \[3\] must be f32/],
    [
      "a matrix product's summed axis",
      () => ops.matmul(g, x, ops.reshape(g, y, { to: [4, 2] })),
      /x f32 \[3, 4\] times the transpose of/,
    ],
    ["a product of vectors", () => ops.matmul(g, vector, vector), /vector f32 \[4\] times the transpose of/],
    [
      "a product by a matrix of another height",
      () => ops.linear(g, x, y, { transposed: true }),
      /x f32 \[3, 4\] times y f32 \[2, 4\]: the inner axes must agree/,
    ],
    [
      "products of other rows, added to a sum",
      () => ops.addProducts(g, ops.reshape(g, y, { to: [4, 2] }), x, y),
      /the transpose of x f32 \[3, 4\] times y f32 \[2, 4\] cannot be added/,
    ],
    [
      "products added to a sum of another shape",
      () => ops.addProducts(g, y, x, x),
      /cannot be added to y f32 \[2, 4\]/,
    ],
    [
      "targets of other rows",
      () => ops.crossEntropy(g, y, ids),
      /ids i32 \[3\] does not name a target for each row of y/,
    ],
    [
      "targets that are no list",
      () => ops.crossEntropy(g, x, ops.reshape(g, ids, { to: [3, 1] })),
      /does not name a target for each row of x/,
    ],
    ["targets of logits without rows", () => ops.crossEntropy(g, vector, fourIds), /for each row of vector f32 \[4\]/],
    ["a product with integers", () => ops.matmul(g, x, ops.reshape(g, ids, { to: [1, 3] })), /the last axes/],
    ["a shape of another size", () => ops.reshape(g, x, { to: [5] }), /x f32 \[3, 4\] cannot be reshaped to \[5\]/],
    [
      "a malformed order",
      () => ops.permute(g, x, { order: [0, 0] }),
      /x f32 \[3, 4\]: \[0, 0\] is not an order of its axes/,
    ],
    ["ids that are not integers", () => ops.embedding(g, x, ops.reshape(g, y, { to: [8] })), /must be i32/],
    ["a gate of another shape", () => ops.swiglu(g, x, y), /x f32 \[3, 4\] gates y f32 \[2, 4\]/],
    ["a softmax of integers", () => ops.softmax(g, ids, { scale: 1 }), /softmax: ids i32 \[3\] must be f32/],
    ["more of the largest than there are", () => ops.topKIndices(g, x, { k: 5 }), /the 5 largest of each row of x/],
    ["a loss that is not a scalar", () => gradients(g, x, [x])[0]!, /x f32 \[3, 4\] is not a scalar/],
    [
      "a target the loss does not depend on",
      () => gradients(g, ops.sum(g, x), [y])[0]!,
      /does not depend on y f32 \[2, 4\]/,
    ],
  ])("%s: an error names them, before anything native is called", (_what, build, message) => {
    expect(build).toThrow(ShapeError);
    expect(build).toThrow(message);
  });

  it("a store refuses shapes, names and data that cannot be", () => {
    const store = new TensorStore(backend, 2);
    expect(() => store.add("a", [0], "f32")).toThrow(/a: \[0\] is not a shape/);
    expect(() => store.add("a", [1, 2, 3, 4, 5], "f32")).toThrow(/one to four positive sizes/);
    expect(() => store.add("a", [2 ** 30, 2 ** 30], "f32")).toThrow(/too large/);
    const a = store.add("a", [2], "f32");
    expect(() => store.add("a", [2], "f32")).toThrow(/declared twice/);
    store.allocate();
    expect(() => store.write(a, Float32Array.of(1))).toThrow(/a f32 \[2\] takes 8 bytes, not 4/);
    expect(() => store.get("b")).toThrow(/has no tensor b/);
    store.free();
  });
});
