// Our side of bench/matmul.ts: for each line "n k m" the least seconds that a linear layer's product and the two of its gradient
// take, f32 in and out and computed in bf16, conversion included.
import { createInterface } from "node:readline";
import { Backend } from "../dist/ggml/index.js";
import { Graph, gradients, ops, TensorStore } from "../dist/tensor/index.js";

const backend = Backend.open({ device: "cpu", threads: Number(process.argv[2]) });
const known = new Map();

function graphOf(n, k, m) {
  const store = new TensorStore(backend, 3);
  const x = store.add("x", [n, k], "f32", { trainable: true });
  const w = store.add("w", [m, k], "f32", { trainable: true });
  const dy = store.add("dy", [n, m], "f32");
  store.allocate();
  for (const tensor of store)
    store.write(
      tensor,
      Float32Array.from({ length: tensor.shape[0] * tensor.shape[1] }, () => Math.random() - 0.5),
    );
  const g = new Graph(backend, { computeType: "bf16" });
  const loss = ops.sum(g, ops.mul(g, ops.linear(g, x, w), dy));
  for (const gradient of gradients(g, loss, [x, w])) g.output(gradient);
  g.output(loss);
  g.compile();
  return g;
}

console.log("ready");
for await (const line of createInterface({ input: process.stdin })) {
  if (!known.has(line)) known.set(line, graphOf(...line.split(" ").map(Number)));
  const times = [];
  // the best counts: waking threads up takes longer than a small product
  while (times.length < 2 || (times.length < 10 && times.reduce((a, b) => a + b) < 0.2))
    times.push(
      known
        .get(line)
        .profile()
        .find(({ op }) => op === "matmul").seconds,
    );
  console.log(Math.min(...times));
}
