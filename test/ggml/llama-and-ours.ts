// A prompt in llama.cpp, a graph of ours, and a prompt again, all on one thread: see shared-threads.test.ts.
import { Backend } from "../../src/ggml/index.js";
import { generate } from "../../src/jobs/index.js";
import { Graph, ops, TensorStore } from "../../src/tensor/index.js";

const [model = ""] = process.argv.slice(2);
const backend = Backend.open({ device: "cpu", threads: 1 });
const store = new TensorStore(backend, 2);
const [x, weight] = [store.add("x", [64, 64], "f32"), store.add("weight", [64, 64], "f32")];
store.allocate();
for (const tensor of store) store.write(tensor, new Float32Array(64 * 64).fill(0.5));
const g = new Graph(backend, { computeType: "bf16" });
const product = g.output(ops.linear(g, x, weight));
for (let turn = 0; turn < 2; turn++) {
  const sampling = { maxTokens: 8, temperature: 0 };
  const prompt = "Mira went to the market and bought";
  const { text } = await generate({ model, prompt, sampling, device: "cpu", threads: 1 });
  await g.run();
  console.log(JSON.stringify({ text, product: g.read(product)[0] }));
}
