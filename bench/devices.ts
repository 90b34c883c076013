/**
 * How far predictions for a device are from what happens on this machine: what llama.cpp allocates for a model, a context and a
 * type, and how fast it writes with half of the context filled.
 *
 *   npx tsx bench/devices.ts [--threads 1]
 */
import { existsSync } from "node:fs";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { Token } from "node-llama-cpp";
import { table } from "../src/cli/table.js";
import { measureThisMachine, predictMemory, predictSpeed } from "../src/devices/index.js";
import { fastestThreads, loadModel } from "../src/generate/index.js";
import { quantize } from "../src/jobs/index.js";
import type { FileKind } from "../src/quantize/index.js";
import { median } from "../src/system/statistics.js";
import { type LlamaSizes, randomLlama } from "./random-checkpoint.js";

const { values } = parseArgs({ options: { threads: { type: "string" }, rounds: { type: "string", default: "15" } } });
const results = path.resolve(import.meta.dirname, "results");
const MODELS: Readonly<Record<string, LlamaSizes>> = {
  "30m": { vocab: 32000, hidden: 384, ffn: 1024, layers: 8, heads: 6, kvHeads: 6, headDim: 64 },
  "100m": { vocab: 32000, hidden: 768, ffn: 2048, layers: 11, heads: 12, kvHeads: 4, headDim: 64 },
  "500m": { vocab: 32000, hidden: 1536, ffn: 4096, layers: 16, heads: 24, kvHeads: 8, headDim: 64 },
};
const KINDS: readonly FileKind[] = ["f16", "q8_0", "q4_k_m"];
const CONTEXTS = [512, 2048];
/** Tokens that are written before those that count. */
const [WARM_UP, WRITTEN] = [8, 48];
const SETTLE_MILLISECONDS = 300;

const rows: string[][] = [];
const errors: { memory: number[]; speed: number[] } = { memory: [], speed: [] };
for (const [name, sizes] of Object.entries(MODELS)) {
  const directory = path.join(results, `random-${name}`);
  const architecture = randomLlama(directory, sizes);
  for (const kind of KINDS) {
    const file = `${directory}.${kind}.gguf`;
    if (!existsSync(file)) await quantize({ model: directory, types: [kind], out: file });
    const model = await loadModel(file, { device: "cpu" });
    const threads = values.threads === undefined ? ((await fastestThreads(model)) ?? 2) : Number(values.threads);
    for (const contextSize of CONTEXTS) {
      const context = await model.createContext({ contextSize, threads, flashAttention: true });
      const allocated = model.size + context.memoryUsage.ram;
      const sequence = context.getSequence();
      await sequence.evaluateWithoutGeneratingNewTokens(
        Array.from({ length: contextSize / 2 - 1 }, (_, i) => ((i * 7) % 30000) as Token),
      );
      const predict = async () => {
        const device = await measureThisMachine({ device: "cpu", threads });
        return predictSpeed(architecture, kind, device, contextSize).tokensPerSecond;
      };
      const [speeds, predictions]: [number[], number[]] = [[], []];
      let before = await predict();
      for (let round = 0; round < Number(values.rounds); round++) {
        // what the measurement left (memory given back, caches, threads that slept) is no part of writing
        await wait(SETTLE_MILLISECONDS);
        let written = 0;
        let began = 0;
        for await (const _ of sequence.evaluate([5 as Token], { temperature: 0 })) {
          if (++written === WARM_UP) began = performance.now();
          if (written >= WARM_UP + WRITTEN) break;
        }
        speeds.push((1000 * WRITTEN) / (performance.now() - began));
        // the machine as it is now, before and after: others may use it too
        const after = await predict();
        predictions.push((before + after) / 2);
        before = after;
        await sequence.eraseContextTokenRanges([{ start: contextSize / 2 - 1, end: sequence.nextTokenIndex }]);
      }
      const error = median(predictions.map((predicted, i) => predicted / (speeds[i] ?? Number.NaN) - 1));
      const memory = predictMemory(architecture, kind, contextSize).totalBytes;
      errors.memory.push(memory / allocated - 1);
      errors.speed.push(error);
      const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
      rows.push([
        name,
        kind,
        `${contextSize}`,
        `${threads}`,
        ...[memory / 2 ** 20, allocated / 2 ** 20].map((mib) => mib.toFixed(1)),
        percent(memory / allocated - 1),
        median(predictions).toFixed(1),
        median(speeds).toFixed(1),
        percent(error),
      ]);
      await context.dispose();
    }
    await model.dispose();
  }
}
console.log(
  table(
    [
      "model",
      "type",
      "context",
      "threads",
      "MiB predicted",
      "allocated",
      "off",
      "tokens/s predicted",
      "measured",
      "off",
    ],
    rows,
  ),
);
const worst = (list: readonly number[]) => Math.max(...list.map(Math.abs));
console.log(
  `largest error: memory ${(100 * worst(errors.memory)).toFixed(1)} %, speed ${(100 * worst(errors.speed)).toFixed(1)} %`,
);
process.exit(0);
