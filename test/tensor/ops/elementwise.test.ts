import { afterAll, describe, expect, it } from "vitest";
import { Backend } from "../../../src/ggml/index.js";
import { ShapeError } from "../../../src/system/errors.js";
import { Random } from "../../../src/system/random.js";
import { Graph, gradients, ops, type Shape, TensorStore } from "../../../src/tensor/index.js";
import { testBackends } from "../../devices.js";
import { backends, furthest, normal } from "./compute.js";

const { each, free } = backends();
afterAll(free);

const SHAPE = [2, 3, 4, 5];
/** The shape with one axis of another size. */
const withAxis = (axis: number, size: number): Shape => SHAPE.map((each, i) => (i === axis ? size : each));

describe.each(each)("on %s", (_, compute) => {
  it.each([0, 1, 2, 3])("sums over axis %i of four, and repeats along it", async (axis) => {
    const x = normal(new Random(axis), SHAPE);
    const narrow = normal(new Random(9), withAxis(axis, 1));
    const [sums, repeated] = await compute([x, narrow], (g, [a, b]) => [
      ops.sumTo(g, a!, b!),
      ops.broadcastTo(g, b!, a!),
    ]);
    const stride = SHAPE.slice(axis + 1).reduce((a, b) => a * b, 1);
    const size = SHAPE[axis] ?? 1;
    const placeOf = (i: number) => Math.floor(i / (stride * size)) * stride + (i % stride);
    const expected = new Float64Array(narrow.data.length);
    for (const [i, value] of x.data.entries()) expected[placeOf(i)]! += value;
    expect(furthest(sums!, expected)).toBeLessThan(1e-5);
    expect(
      furthest(
        repeated!,
        Float64Array.from(x.data, (_value, i) => narrow.data[placeOf(i)]!),
      ),
    ).toBe(0);
  });
});

describe.each(testBackends)("on %s", (_, options) => {
  const backend = Backend.open({ ...options, threads: 1 });
  const g = new Graph(backend);
  afterAll(() => {
    g.free();
    backend.free();
  });

  it.each([0, 1, 2, 3])("refuses tensors that differ on axis %i of four, naming both", (axis) => {
    const x = g.input(`x${axis}`, "f32", SHAPE);
    const y = g.input(`y${axis}`, "f32", withAxis(axis, 7));
    for (const op of [ops.add, ops.sub, ops.mul, ops.div, ops.sumTo])
      expect(() => op(g, x, y)).toThrow(
        new ShapeError(`y${axis} f32 [${y.shape.join(", ")}] does not broadcast to x${axis} f32 [2, 3, 4, 5]`),
      );
    expect(() => ops.broadcastTo(g, y, x)).toThrow(/does not broadcast to/);
  });

  it("refuses dot products of other rows, and what does not fit where it is assigned to", () => {
    const x = g.input("rows", "f32", [3, 4]);
    for (const other of [
      g.input("fewer", "f32", [2, 4]),
      g.input("longer", "f32", [3, 5]),
      g.input("row", "f32", [12]),
    ])
      expect(() => ops.dotLast(g, x, other)).toThrow(/are not rows of the same length/);
    const vector = g.input("vector", "f32", [4]);
    expect(() => ops.dotLast(g, vector, vector)).toThrow(/are not rows of the same length/);
    for (const value of [g.input("smaller", "f32", [3, 3]), g.input("whole", "i32", [3, 4])])
      expect(() => ops.assign(g, value, x)).toThrow(/cannot be assigned to rows f32 \[3, 4\]/);
  });

  it("assigns as many elements in another shape, and takes shapes of tensors of any type", async () => {
    const store = new TensorStore(backend, 2);
    const [target, ids] = [store.add("target", [3, 4], "f32"), store.add("ids", [4], "i32")];
    store.allocate();
    const graph = new Graph(backend);
    const numbers = Float32Array.from({ length: 12 }, (_value, i) => i);
    const value = graph.constant("numbers", "f32", [2, 6], numbers);
    const fours = graph.constant("fours", "i32", [4], Int32Array.of(4, 4, 4, 4));
    graph.effect(ops.assign(graph, value, target));
    const assigned = ops.assign(graph, fours, ids);
    graph.effect(assigned);
    expect(assigned).toMatchObject({ shape: [4], dtype: "i32" });
    const rows = graph.constant("rows", "f32", [3, 4], numbers);
    const summed = graph.output(ops.sumTo(graph, rows, ids));
    const repeated = graph.output(
      ops.broadcastTo(graph, graph.constant("half", "f32", [1], Float32Array.of(0.5)), ids),
    );
    await graph.run();
    expect(store.read(target)).toEqual(numbers);
    expect([...graph.read(summed)]).toEqual([12, 15, 18, 21]);
    expect([...graph.read(repeated)]).toEqual([0.5, 0.5, 0.5, 0.5]);
    graph.free();
    store.free();
  });

  it("sums the gradient of one number as exactly as a sum", async () => {
    // a running sum in f32 would be off by 0.6 %: a tenth has no exact f32, and small terms drown in a large sum
    const count = 1 << 20;
    const x = g.constant("many", "f32", [count], new Float32Array(count).fill(0.1));
    const one = { ...g.constant("one", "f32", [1], Float32Array.of(1)), requiresGrad: true };
    const [gradient] = gradients(g, ops.sum(g, ops.mul(g, x, one)), [one]);
    const read = g.output(gradient!);
    await g.run();
    expect(Math.abs(g.read(read)[0]! / (count * 0.1) - 1)).toBeLessThan(1e-5);
  });
});
