// Our side of bench/step-parts.ts: for each line of a kind of work and its sizes the least seconds that it takes, f32 in and out and
// computed in bf16, conversion included.
import { createInterface } from "node:readline";
import { Backend } from "../dist/ggml/index.js";
import { Graph, gradients, ops, TensorStore } from "../dist/tensor/index.js";

const backend = Backend.open({ device: "cpu", threads: Number(process.argv[2]) });

/** A linear layer: x [n, k], w [m, k]. */
function matmul(g, store, [n, k, m]) {
  const inputs = [
    store.add("x", [n, k], "f32", { trainable: true }),
    store.add("w", [m, k], "f32", { trainable: true }),
  ];
  return { inputs, result: () => ops.linear(g, ...inputs), shape: [n, m], counts: ["matmul"] };
}

/** Causal attention with grouped queries. */
function attention(g, store, [batch, length, heads, kvHeads, dim]) {
  const inputs = [heads, kvHeads, kvHeads].map((n, i) =>
    store.add(`${i}`, [batch, length, n, dim], "f32", { trainable: true }),
  );
  const result = () => ops.attention(g, ...inputs, { scale: 1 / Math.sqrt(dim) });
  return { inputs, result, shape: [batch * length, heads * dim], counts: ["attention", "attentionBack"] };
}

/** The cross-entropy of an output head: hidden states [n, k], vocabulary m. */
function head(g, store, [n, k, m]) {
  const inputs = [
    store.add("x", [n, k], "f32", { trainable: true }),
    store.add("w", [m, k], "f32", { trainable: true }),
  ];
  const ids = store.add("ids", [n], "i32");
  const term = { weight: 1, of: (logits, range) => ops.crossEntropy(g, logits, ops.rowsOf(g, ids, range)) };
  const result = () => ops.headLoss(g, inputs[0], m, (rows) => ops.linear(g, rows, inputs[1]), [term]).loss;
  return { inputs, result, ids: { tensor: ids, rows: n, vocab: m } };
}

const KINDS = { matmul, attention, head };

/** @returns seconds of the profile's entries that count */
function workOf(kind, gradient, sizes) {
  const store = new TensorStore(backend, 8);
  const g = new Graph(backend, { computeType: "bf16" });
  const { inputs, result, shape, counts, ids } = KINDS[kind](g, store, sizes);
  const dy = shape && store.add("dy", shape, "f32");
  store.allocate();
  for (const tensor of store) {
    if (tensor === ids?.tensor) continue;
    const length = tensor.shape.reduce((a, b) => a * b);
    store.write(
      tensor,
      Float32Array.from({ length }, () => Math.random() - 0.5),
    );
  }
  if (ids !== undefined) {
    const random = Int32Array.from({ length: ids.rows }, () => Math.floor(Math.random() * ids.vocab));
    store.write(ids.tensor, ops.headIndices(random, ids.rows, ids.vocab));
  }
  if (gradient) {
    const value = result();
    const loss = dy === undefined ? value : ops.sum(g, ops.mul(g, value, dy));
    for (const each of gradients(g, loss, inputs)) g.output(each);
    g.output(loss);
  } else g.output(g.withoutGradient(result));
  g.compile();
  return () =>
    g
      .profile()
      .filter(({ op }) => counts === undefined || counts.includes(op))
      .reduce((sum, { seconds }) => sum + seconds, 0);
}

const known = new Map();
console.log("ready");
for await (const line of createInterface({ input: process.stdin })) {
  const [kind, pass, ...sizes] = line.split(" ");
  if (!known.has(line)) known.set(line, workOf(kind, pass === "gradients", sizes.map(Number)));
  const times = [];
  // the best counts: waking threads up takes longer than a small product
  while (times.length < 2 || (times.length < 10 && times.reduce((a, b) => a + b) < 0.2)) times.push(known.get(line)());
  console.log(Math.min(...times));
}
