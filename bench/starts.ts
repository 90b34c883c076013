/**
 * What starts are worth: Minitron's plain cut, neurons chosen by optimal brain surgeon, and the refit with and without a rotated stream,
 * each before and after distillation on several numbers of tokens. Every start gets its own best learning rate, found on the first seed;
 * seeds change the order of the data and the part of it that is calibrated on. Validation text chooses nothing.
 *
 *     npx tsx bench/starts.ts [--model DIR|FILE] [--data FILE] [--validation FILE] [--sizes "ffn=112;hidden=56,ffn=136"] [--starts REGEX]
 *         [--tokens 0,30000,100000] [--seeds 3] [--samples 192] [--rates 0.25,0.5,1] [--sequence-length 256] [--threads N]
 */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { openCorpus, Sequences, Tokenizer, type TokenStream } from "../src/data/index.js";
import { DISTILLATION_DEFAULTS, defaultTrainOptions, distillationObjective, train } from "../src/distill/index.js";
import { DivergenceMeter } from "../src/evaluate/divergence.js";
import { perplexity } from "../src/evaluate/index.js";
import { passageOf } from "../src/evaluate/residual-stream.js";
import { Backend } from "../src/ggml/index.js";
import { countParameters, loadWeights, type ModelWeights, openCheckpoint } from "../src/models/index.js";
import {
  calibrate,
  keptIndices,
  type PrunedModel,
  parseSizes,
  planFor,
  prune,
  surgeonScores,
} from "../src/prune/index.js";
import { cutAndRefit } from "../src/refit/index.js";
import { writeJson } from "../src/system/files.js";
import { PeakMemory } from "../src/system/memory.js";

const shared = path.resolve(import.meta.dirname, "../../shared/data");
const { values } = parseArgs({
  options: {
    model: { type: "string", default: path.join(shared, "models/stories260K") },
    data: { type: "string", default: path.join(shared, "corpora/stories260K-sampled-train.jsonl.gz") },
    validation: { type: "string", default: path.join(shared, "corpora/tinystories-excerpt.txt.gz") },
    "validation-sequences": { type: "string", default: "128" },
    sizes: { type: "string", default: "ffn=112;hidden=56,ffn=136" },
    starts: { type: "string", default: "" },
    tokens: { type: "string", default: "0,30000,100000" },
    seeds: { type: "string", default: "3" },
    samples: { type: "string", default: "192" },
    rates: { type: "string", default: "0.25,0.5,1" },
    "sequence-length": { type: "string", default: "256" },
    threads: { type: "string", default: String(availableParallelism()) },
    out: { type: "string", default: path.resolve(import.meta.dirname, "results") },
  },
});
const SEEDS = Number(values.seeds);
const LENGTH = Number(values["sequence-length"]);
const SAMPLES = Number(values.samples);
const BUDGETS = values.tokens.split(",").map(Number);
/** Shares of the default learning rate. */
const RATES = values.rates.split(",").map(Number);
/** Tokens of a training step, and of a batch of forward passes. */
const BATCH_TOKENS = 4096;

const backend = Backend.open({ device: "auto", threads: Number(values.threads) });
const original = openCheckpoint(values.model);
const { model } = original;
const tokenizer = await Tokenizer.load(original.directory);
const { train: data } = await openCorpus([values.data], tokenizer);
const { train: validation } = await openCorpus([values.validation], tokenizer);
const maxSequences = Number(values["validation-sequences"]);
const teacher = loadWeights(backend, model, original.source, { dtype: "f32", trainable: false });
const batchSize = Math.max(1, Math.floor(BATCH_TOKENS / LENGTH));
const meter = await DivergenceMeter.prepare(backend, teacher, new Sequences(validation, LENGTH), {
  samples: maxSequences,
  batchSize: Math.max(1, Math.floor(batchSize / 2)),
  computeType: "f32",
});

interface Quality {
  readonly loss: number;
  readonly divergence: number;
}

async function qualityOf(weights: ModelWeights): Promise<Quality> {
  const { loss } = await perplexity(backend, weights, validation, {
    sequenceLength: LENGTH,
    maxSequences,
    computeType: "f32",
  });
  const measurement = meter.of(weights);
  try {
    return { loss, divergence: await measurement.measure() };
  } finally {
    measurement.free();
  }
}

async function timed<T>(work: () => Promise<T>): Promise<{ value: T; seconds: number; peakBytes: number }> {
  const memory = new PeakMemory();
  const started = performance.now();
  const value = await work();
  return { value, seconds: (performance.now() - started) / 1000, peakBytes: memory.stop() };
}

/** The part of the data that a seed calibrates on. */
function calibrationData(seed: number): TokenStream {
  const share = Math.floor(data.length / SEEDS);
  const wanted = Math.min(share, SAMPLES * LENGTH + 1);
  return data.part(seed * share, seed * share + wanted);
}

/** What is measured once a seed, and how long each took. */
async function statisticsOf(seed: number) {
  const sequences = new Sequences(calibrationData(seed), LENGTH);
  const options = { samples: SAMPLES, batchSize: Math.max(1, Math.floor(batchSize / 2)), computeType: "f32" } as const;
  const passage = passageOf(backend, sequences, model.vocabSize, { ...options, memoryBytes: 4e9 });
  const calibration = await timed(() => calibrate(backend, teacher, sequences, options));
  const surgeon = await timed(() => surgeonScores(passage, original));
  return { passage, calibration, surgeon };
}
const statistics: Awaited<ReturnType<typeof statisticsOf>>[] = [];
for (let seed = 0; seed < SEEDS; seed++) statistics.push(await statisticsOf(seed));

interface Start {
  readonly name: string;
  readonly cut: (seed: number, sizes: string) => Promise<PrunedModel>;
}

const planOf = (sizes: string) => planFor(model, parseSizes(sizes), []);
const scoresOf = (seed: number, surgeon: boolean) => {
  const { calibration, surgeon: found } = statistics[seed] as (typeof statistics)[number];
  return surgeon ? new Map([...calibration.value, ...found.value.scores]) : calibration.value;
};
const plainCut = (surgeon: boolean) => async (seed: number, sizes: string) =>
  prune(original, planOf(sizes), keptIndices(model, planOf(sizes), scoresOf(seed, surgeon)));
const folders: string[] = [];
const refitTimes: number[] = [];
const refitted = (rotated: boolean) => async (seed: number, sizes: string) => {
  const directory = mkdtempSync(path.join(tmpdir(), "coppice-starts-"));
  folders.push(directory);
  const { passage, surgeon } = statistics[seed] as (typeof statistics)[number];
  const { value, seconds } = await timed(() =>
    cutAndRefit({
      passage,
      original,
      plan: planOf(sizes),
      kept: keptIndices(model, planOf(sizes), scoresOf(seed, true)),
      streamMoments: rotated ? surgeon.value.streamMoments : undefined,
      place: (name) => path.join(directory, name),
    }),
  );
  refitTimes.push(seconds);
  return value;
};

const STARTS: readonly Start[] = [
  { name: "minitron", cut: plainCut(false) },
  { name: "surgeon, no refit", cut: plainCut(true) },
  { name: "refit, not rotated", cut: refitted(false) },
  { name: "refit", cut: refitted(true) },
];

async function distilled(cut: PrunedModel, seed: number, tokens: number, rate: number): Promise<Quality> {
  const student = loadWeights(backend, cut.model, cut.source, { dtype: "f32", trainable: true });
  try {
    if (tokens > 0) {
      const options = defaultTrainOptions(cut.model.sizes.hidden as number, tokens, LENGTH, batchSize);
      const learningRate = options.learningRate * rate;
      await train({
        backend,
        student,
        objective: distillationObjective({ kind: "online", weights: teacher }, DISTILLATION_DEFAULTS),
        sequences: new Sequences(data, LENGTH),
        options: { ...options, learningRate, minimumLearningRate: learningRate / 10, seed },
      });
    }
    return await qualityOf(student);
  } finally {
    student.free();
  }
}

const mean = (x: readonly number[]) => x.reduce((a, b) => a + b, 0) / x.length;
const spread = (x: readonly number[]) =>
  Math.sqrt(x.reduce((sum, value) => sum + (value - mean(x)) ** 2, 0) / Math.max(1, x.length - 1));
const summary = (x: readonly number[]) => `${mean(x).toFixed(4)} ± ${spread(x).toFixed(4)}`;

interface Result {
  readonly sizes: string;
  readonly start: string;
  readonly parameters: number;
  readonly tokens: number;
  readonly rate: number;
  readonly qualities: readonly Quality[];
}
const results: Result[] = [];

async function examine(sizes: string, start: Start): Promise<void> {
  const cuts: PrunedModel[] = [];
  for (let seed = 0; seed < SEEDS; seed++) cuts.push(await start.cut(seed, sizes));
  for (const tokens of BUDGETS) {
    const tried: { rate: number; quality: Quality }[] = [];
    for (const rate of tokens === 0 ? [1] : RATES)
      tried.push({ rate, quality: await distilled(cuts[0] as PrunedModel, 0, tokens, rate) });
    tried.sort((a, b) => a.quality.loss - b.quality.loss);
    const best = tried[0] as (typeof tried)[number];
    const qualities = [best.quality];
    for (let seed = 1; seed < SEEDS; seed++)
      qualities.push(await distilled(cuts[seed] as PrunedModel, seed, tokens, best.rate));
    const cutModel = (cuts[0] as PrunedModel).model;
    const parameters = countParameters(cutModel.parameters, cutModel.sizes);
    results.push({ sizes, start: start.name, parameters, tokens, rate: best.rate, qualities });
    const [losses, divergences] = [qualities.map(({ loss }) => loss), qualities.map(({ divergence }) => divergence)];
    console.log(
      `| ${sizes} | ${start.name} | ${parameters} | ${tokens} | ${tokens === 0 ? "-" : best.rate} | ${summary(losses)} | ${summary(divergences)} |`,
    );
  }
}

/** Tokens at which losses that fall with the logarithm of the tokens reach a loss; undefined where they never do. */
function tokensToReach(curve: readonly { readonly tokens: number; readonly loss: number }[], loss: number) {
  const [first, ...rest] = curve;
  if (first === undefined || first.loss <= loss) return first?.tokens;
  let before = first;
  for (const point of rest) {
    if (point.loss <= loss) {
      const [from, to] = [Math.log(Math.max(before.tokens, 1)), Math.log(point.tokens)];
      return Math.exp(from + ((to - from) * (before.loss - loss)) / (before.loss - point.loss));
    }
    before = point;
  }
  return undefined;
}

const dense = await qualityOf(teacher);
console.log(
  `teacher ${dense.loss.toFixed(4)} nats/token; ${SEEDS} seeds, ${SAMPLES} sequences of ${LENGTH} to calibrate on`,
);
console.log(
  "\n| sizes | start | parameters | tokens | rate | loss | KL |\n| --- | --- | --- | --- | --- | --- | --- |",
);
for (const sizes of values.sizes.split(";"))
  for (const start of STARTS.filter(({ name }) => new RegExp(values.starts).test(name)))
    if (start.name !== "refit, not rotated" || planOf(sizes).sizes.hidden !== model.sizes.hidden)
      await examine(sizes, start);

console.log("\nTokens to reach what Minitron's cut reaches with the most, by loss:");
const last = Math.max(...BUDGETS);
for (const sizes of values.sizes.split(";")) {
  const curveOf = (start: string, seed: number) =>
    results
      .filter((result) => result.sizes === sizes && result.start === start)
      .map(({ tokens, qualities }) => ({ tokens, loss: (qualities[seed] as Quality).loss }));
  const factors: number[] = [];
  for (let seed = 0; seed < SEEDS; seed++) {
    const goal = curveOf("minitron", seed).at(-1)?.loss;
    const tokens = goal === undefined ? undefined : tokensToReach(curveOf("refit", seed), goal);
    if (tokens !== undefined) factors.push(last / Math.max(tokens, 1));
  }
  console.log(
    `${sizes}: ${factors.length === 0 ? "not measured" : `${summary(factors)} times fewer (${factors.length} of ${SEEDS} seeds)`}`,
  );
}
const seconds = (of: "calibration" | "surgeon") => summary(statistics.map((each) => each[of].seconds));
console.log(
  `\nseconds: a pass of calibration ${seconds("calibration")}, statistics and choice ${seconds("surgeon")}, refit ${refitTimes.length === 0 ? "-" : summary(refitTimes)}`,
);
const peak = (of: "calibration" | "surgeon") =>
  `${Math.max(...statistics.map((each) => each[of].peakBytes / 2 ** 20)).toFixed(0)} MiB`;
console.log(`peak resident memory: calibration ${peak("calibration")}, statistics ${peak("surgeon")}`);
for (const folder of folders) rmSync(folder, { recursive: true, force: true });
mkdirSync(values.out, { recursive: true });
writeJson(path.join(values.out, "starts.json"), {
  model: values.model,
  seeds: SEEDS,
  samples: SAMPLES,
  dense,
  results,
});
process.exit(0);
