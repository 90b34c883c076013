/**
 * What cutting in rounds is worth, and which learning rate suits a refitted start: compresses a model with different numbers of rounds or
 * rates at equal tokens, and measures each student on text that chose nothing.
 *
 *     npm run claims -- rounds --target 0.5x --rounds 1,2,3
 *     npm run claims -- rounds --target 0.75x --rates 0.25,0.5,1
 */
import { rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { defaultTrainOptions } from "../../src/distill/index.js";
import { compress, measurePerplexity, openModel } from "../../src/index.js";
import { sizeOf } from "../../src/models/index.js";
import { mean, spread } from "./spread.js";
import { STORIES } from "./stories.js";

const SEQUENCE_LENGTH = 256;
const { values } = parseArgs({
  options: {
    model: { type: "string", default: STORIES.model },
    data: { type: "string", default: STORIES.data },
    test: { type: "string", default: STORIES.validation },
    target: { type: "string", default: "0.5x" },
    rounds: { type: "string", default: "1" },
    /** Shares of the default learning rate of a plain cut. */
    rates: { type: "string", default: "0.5" },
    seeds: { type: "string", default: "0,1,2" },
    tokens: { type: "string", default: "100000" },
    "batch-size": { type: "string", default: "4" },
    candidates: { type: "string", default: "1" },
    "refit-samples": { type: "string", default: "96" },
    "max-width-cut": { type: "string" },
    "cross-entropy-weight": { type: "string", default: "0" },
    threads: { type: "string", default: "1" },
  },
});
const numbers = (text: string): number[] => text.split(",").map(Number);
const out = path.join(tmpdir(), `coppice-rounds-${process.pid}`);
const common = { device: "cpu", threads: Number(values.threads) } as const;

const { model } = await openModel(values.model);
const tokens = Number(values.tokens);
const batchSize = Number(values["batch-size"]);
const { learningRate: plainRate } = defaultTrainOptions(
  sizeOf("hidden", model.sizes),
  tokens,
  SEQUENCE_LENGTH,
  batchSize,
);

async function lossOf(rounds: number, rate: number, seed: number) {
  const maxWidthCut = values["max-width-cut"];
  const { student, plan, seconds } = await compress({
    ...common,
    model: values.model,
    data: [values.data],
    target: values.target,
    space: maxWidthCut === undefined ? {} : { maxWidthCut: Number(maxWidthCut) },
    maxCandidates: Number(values.candidates),
    calibrationSamples: 64,
    refitSamples: Number(values["refit-samples"]),
    settings: { tokens, seed, learningRate: rate * plainRate, sequenceLength: SEQUENCE_LENGTH, batchSize },
    distillation: { crossEntropyWeight: Number(values["cross-entropy-weight"]) },
    rounds,
    out,
    restart: true,
  });
  const { loss } = await measurePerplexity({ ...common, model: out, data: [values.test] });
  const sizes = Object.entries(plan).map(([axis, { to }]) => `${axis} ${to}`);
  console.error(
    `rounds ${rounds}, rate ${rate}, seed ${seed}: ${loss.toFixed(4)} (${student.parameters}; ${sizes.join(", ")}; ${seconds.toFixed(0)} s)`,
  );
  return loss;
}

const teacher = await measurePerplexity({ ...common, model: values.model, data: [values.test] });
console.log(
  `${values.target}, ${tokens} tokens, teacher ${teacher.loss.toFixed(4)}\n\n| rounds | rate | loss, mean | spread |\n| --- | --- | --- | --- |`,
);
const cases = numbers(values.rounds).flatMap((rounds) =>
  numbers(values.rates).map((rate) => ({ rounds, rate, losses: [] as number[] })),
);
for (const seed of numbers(values.seeds))
  for (const { rounds, rate, losses } of cases) losses.push(await lossOf(rounds, rate, seed));
for (const { rounds, rate, losses } of cases) {
  console.log(`| ${rounds} | ${rate} | ${mean(losses).toFixed(4)} | ${spread(losses).toFixed(4)} |`);
}
rmSync(out, { recursive: true, force: true });
