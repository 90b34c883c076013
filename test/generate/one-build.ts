// Computes by ggml and by llama.cpp in one process, in the order that is asked for: see start-llama.test.ts.
import { readFileSync } from "node:fs";
import path from "node:path";
import { Backend, loadFunctions, preferDevice } from "../../src/ggml/index.js";
import { generate } from "../../src/jobs/index.js";

const [model = "", order] = process.argv.slice(2);
const ours = () => Backend.open({ device: order === "any device after llama.cpp" ? "auto" : "cpu" }).free();
if (order === "the processor preferred") preferDevice("cpu");
if (order !== "any device after llama.cpp") {
  loadFunctions();
  ours();
}
await generate({ model, prompt: "Mira went", sampling: { maxTokens: 4 }, device: "cpu", threads: 1 });
ours();
const files = readFileSync("/proc/self/maps", "utf8").match(/\/\S*lib(ggml|llama)\S*/g) ?? [];
console.log(JSON.stringify([...new Set(files.map((file) => path.dirname(file)))]));
process.exit(0);
