// One kind of work of ours, a line of seconds for each line "step" on standard input: what bench/training.ts and
// bench/calibration.ts ask in turn with others. Runs the built library, as users do.
import { createInterface } from "node:readline";
import { Backend } from "../dist/ggml/index.js";
import { prepareBench } from "../dist/jobs/bench.js";

const job = JSON.parse(process.argv[2]);
const backend = Backend.open({ device: "cpu", threads: job.threads, kernels: job.kernels });
const prepared = await prepareBench(backend, job);
await prepared.step();
await prepared.step();
console.log("ready");
for await (const line of createInterface({ input: process.stdin })) {
  if (line === "step") console.log(await prepared.step());
  if (line === "tokens") console.log(prepared.tokens);
  if (line === "memory") console.log(process.resourceUsage().maxRSS * 1024);
}
prepared.free();
backend.free();
