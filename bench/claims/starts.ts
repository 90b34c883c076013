/**
 * What starts are worth: Minitron's plain cut, neurons chosen by optimal brain surgeon, the refit with and without a rotated stream, and
 * sizes that differ from layer to layer, each before and after distillation on several numbers of tokens. Every start gets its own best
 * learning rate, found on the first seed; seeds change the order of the data and the part of it that is calibrated on. Validation text
 * chooses nothing but those rates.
 *
 *     npm run claims -- starts [--model DIR|FILE] [--data FILE] [--validation FILE] [--calibration FILE] [--samples 192]
 *         [--sizes "ffn=104;hidden=48,ffn=80"] [--starts REGEX] [--tokens 0,30000,100000,300000] [--seeds 3]
 *         [--rates 0.5,1,2] [--rates-up-to 100000] [--sequence-length 256] [--batch-tokens 1024] [--threads N]
 *         [--journal FILE]
 *
 * Above --rates-up-to tokens a start keeps the rate that was best below. A journal holds what is measured already: the same command goes
 * on after it.
 */
import { appendFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { openCorpus, Sequences, Tokenizer, type TokenStream } from "../../src/data/index.js";
import { DISTILLATION_DEFAULTS, defaultTrainOptions, distillationObjective, train } from "../../src/distill/index.js";
import { DivergenceMeter } from "../../src/evaluate/divergence.js";
import { perplexity } from "../../src/evaluate/index.js";
import { passageOf } from "../../src/evaluate/residual-stream.js";
import { Backend } from "../../src/ggml/index.js";
import { perLayerCandidate } from "../../src/jobs/per-layer.js";
import { countParameters, loadWeights, type ModelWeights, openCheckpoint } from "../../src/models/index.js";
import {
  calibrate,
  keptIndices,
  layerSizes,
  leastParameters,
  type PrunedModel,
  type PrunePlan,
  parseSizes,
  planFor,
  prune,
  type Scores,
  surgeonScores,
} from "../../src/prune/index.js";
import { cutAndRefit } from "../../src/refit/index.js";
import { writeJson } from "../../src/system/files.js";
import { PeakMemory } from "../../src/system/memory.js";
import { mean, summary } from "./spread.js";
import { STORIES } from "./stories.js";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: STORIES.model },
    data: { type: "string", default: STORIES.data },
    validation: { type: "string", default: STORIES.validation },
    "validation-sequences": { type: "string", default: "128" },
    /** By default what the students are trained on. */
    calibration: { type: "string" },
    sizes: { type: "string", default: "ffn=104;hidden=48,ffn=80" },
    starts: { type: "string", default: "" },
    tokens: { type: "string", default: "0,30000,100000,300000" },
    seeds: { type: "string", default: "3" },
    samples: { type: "string", default: "192" },
    rates: { type: "string", default: "0.5,1,2" },
    "rates-up-to": { type: "string", default: "100000" },
    journal: { type: "string" },
    "sequence-length": { type: "string", default: "256" },
    "batch-tokens": { type: "string", default: "1024" },
    threads: { type: "string", default: String(availableParallelism()) },
    out: { type: "string", default: path.resolve(import.meta.dirname, "../results") },
  },
});
const SEEDS = Number(values.seeds);
const LENGTH = Number(values["sequence-length"]);
const SAMPLES = Number(values.samples);
const BUDGETS = values.tokens.split(",").map(Number);
/** Shares of the default learning rate. */
const RATES = values.rates.split(",").map(Number);
const RATES_UP_TO = Number(values["rates-up-to"]);
/** Sequences of a training step, and of a batch of forward passes. */
const TRAINING_BATCH = Math.max(1, Math.floor(Number(values["batch-tokens"]) / LENGTH));
const FORWARD_BATCH = Math.max(1, Math.floor(2048 / LENGTH));

const backend = Backend.open({ device: "auto", threads: Number(values.threads) });
const original = openCheckpoint(values.model);
const { model } = original;
const tokenizer = await Tokenizer.load(original.directory);
const { train: data } = await openCorpus([values.data], tokenizer);
const { train: calibrationText } =
  values.calibration === undefined ? { train: data } : await openCorpus([values.calibration], tokenizer);
const { train: validation } = await openCorpus([values.validation], tokenizer);
const maxSequences = Number(values["validation-sequences"]);
const teacher = loadWeights(backend, model, original.source, { dtype: "f32", trainable: false });
const meter = await DivergenceMeter.prepare(backend, teacher, new Sequences(validation, LENGTH), {
  samples: maxSequences,
  batchSize: FORWARD_BATCH,
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
  const share = Math.floor(calibrationText.length / SEEDS);
  const wanted = Math.min(share, SAMPLES * LENGTH + 1);
  return calibrationText.part(seed * share, seed * share + wanted);
}

/** Computes a value for each key once, when it is first asked for. */
function memoized<K, V>(compute: (key: K) => Promise<V>): (key: K) => Promise<V> {
  const known = new Map<K, Promise<V>>();
  return (key) => {
    const value = known.get(key) ?? compute(key);
    known.set(key, value);
    return value;
  };
}

const measured: { calibration: Timed; surgeon: Timed }[] = [];
type Timed = Pick<Awaited<ReturnType<typeof timed>>, "seconds" | "peakBytes">;

/** What neurons are chosen by. */
interface NeuronScores {
  /** Minitron's. */
  readonly activations: Scores;
  /** Optimal brain surgeon's; activations for what it does not score. */
  readonly surgeon: Scores;
}

/** What is measured once a seed. */
const statisticsOf = memoized(async (seed: number) => {
  const tokens = calibrationData(seed);
  const sequences = new Sequences(tokens, LENGTH);
  const options = { samples: SAMPLES, batchSize: FORWARD_BATCH, computeType: "f32" } as const;
  const passage = passageOf(backend, sequences, model.vocabSize, { ...options, memoryBytes: 4e9 });
  const calibration = await timed(() => calibrate(backend, teacher, sequences, options));
  const surgeon = await timed(() => surgeonScores(passage, original));
  measured.push({ calibration, surgeon });
  const { scores, streamMoments } = surgeon.value;
  return {
    tokens,
    passage,
    activations: calibration.value,
    surgeon: new Map([...calibration.value, ...scores]),
    streamMoments,
  };
});

interface Start {
  readonly name: string;
  readonly cut: (seed: number, sizes: string) => Promise<PrunedModel>;
}

const planOf = (sizes: string) => planFor(model, parseSizes(sizes), []);
const plainCut = (chosenBy: keyof NeuronScores) => async (seed: number, sizes: string) => {
  const statistics = await statisticsOf(seed);
  return prune(original, planOf(sizes), keptIndices(model, planOf(sizes), statistics[chosenBy]));
};
const folders: string[] = [];
const refitTimes: number[] = [];

interface RefitOptions {
  readonly isRotated: boolean;
  /** The surgeon by default. */
  readonly chosenBy?: keyof NeuronScores;
}

async function refit(
  seed: number,
  plan: PrunePlan,
  { isRotated, chosenBy = "surgeon" }: RefitOptions,
): Promise<PrunedModel> {
  const directory = mkdtempSync(path.join(tmpdir(), "coppice-starts-"));
  folders.push(directory);
  const statistics = await statisticsOf(seed);
  const { passage, streamMoments } = statistics;
  const { value, seconds } = await timed(() =>
    cutAndRefit({
      passage,
      original,
      plan,
      kept: keptIndices(model, plan, statistics[chosenBy]),
      streamMoments: isRotated ? streamMoments : undefined,
      place: (name) => path.join(directory, name),
    }),
  );
  refitTimes.push(seconds);
  return value;
}

/** As many parameters as the sizes make, by sizes of each layer's own. */
async function perLayer(seed: number, sizes: string): Promise<PrunedModel> {
  const { tokens, activations, surgeon, streamMoments } = await statisticsOf(seed);
  const parameters = countParameters(model.parameters, planOf(sizes).sizes);
  const target = `${parameters / countParameters(model.parameters, model.sizes)}x`;
  const candidate = await perLayerCandidate(
    {
      backend,
      original,
      weights: teacher,
      tokens,
      validation: tokens,
      scores: activations,
      computeType: "f32",
      options: { target, space: { axes: ["ffn"] } },
    },
    { scores: surgeon, streamMoments: streamMoments.data },
    parameters,
  );
  if (candidate === undefined) throw new Error(`${sizes}: no sizes of single layers make so few parameters`);
  console.error(`per layer, seed ${seed}: ffn=${[candidate.sizes.ffn].flat().join("/")}`);
  return refit(seed, planFor(model, candidate.sizes, []), { isRotated: true });
}

const STARTS: readonly Start[] = [
  { name: "minitron", cut: plainCut("activations") },
  { name: "surgeon, no refit", cut: plainCut("surgeon") },
  { name: "refit, not rotated", cut: (seed, sizes) => refit(seed, planOf(sizes), { isRotated: false }) },
  {
    name: "refit, minitron's neurons",
    cut: (seed, sizes) => refit(seed, planOf(sizes), { isRotated: true, chosenBy: "activations" }),
  },
  { name: "refit", cut: (seed, sizes) => refit(seed, planOf(sizes), { isRotated: true }) },
  { name: "per layer", cut: perLayer },
];

/** Whether a start is possible at these sizes, and no other one's equal. */
function isApart({ name }: Start, sizes: string): boolean {
  const plan = planOf(sizes);
  if (name === "refit, not rotated") return plan.sizes.hidden !== model.sizes.hidden;
  if (name !== "per layer") return true;
  const least = leastParameters(model, layerSizes(model, { axes: ["ffn"] }));
  return /^ffn=\d+$/.test(sizes) && least <= countParameters(model.parameters, plan.sizes);
}

async function distilled(cut: PrunedModel, seed: number, tokens: number, rate: number): Promise<Quality> {
  const student = loadWeights(backend, cut.model, cut.source, { dtype: "f32", trainable: true });
  try {
    if (tokens > 0) {
      const options = defaultTrainOptions(cut.model.sizes.hidden as number, tokens, LENGTH, TRAINING_BATCH);
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

interface Result {
  readonly sizes: string;
  readonly start: string;
  readonly parameters: number;
  readonly tokens: number;
  readonly rate: number;
  readonly qualities: readonly Quality[];
}
const results: Result[] = [];

interface Run {
  readonly sizes: string;
  readonly start: string;
  readonly seed: number;
  readonly tokens: number;
  readonly rate: number;
}
interface Measured extends Quality {
  readonly parameters: number;
}
/** What was measured, here or by an earlier command with the same journal. */
const journal = new Map<string, Measured>();
const setting = {
  model: values.model,
  calibration: values.calibration ?? values.data,
  samples: SAMPLES,
  seeds: SEEDS,
  batch: TRAINING_BATCH,
};
if (values.journal !== undefined && existsSync(values.journal))
  for (const line of readFileSync(values.journal, "utf8").split("\n").filter(Boolean)) {
    const [key, value] = JSON.parse(line) as [object, Measured];
    journal.set(JSON.stringify(key), value);
  }

/** @param cut of the run's seed */
async function measure(run: Run, cut: (seed: number) => Promise<PrunedModel>): Promise<Measured> {
  const key = { ...setting, ...run };
  const known = journal.get(JSON.stringify(key));
  if (known !== undefined) return known;
  const start = await cut(run.seed);
  const parameters = countParameters(start.model.parameters, start.model.sizes);
  const result = { ...(await distilled(start, run.seed, run.tokens, run.rate)), parameters };
  console.error(JSON.stringify({ ...run, ...result }));
  if (values.journal !== undefined) appendFileSync(values.journal, `${JSON.stringify([key, result])}\n`);
  return result;
}

async function examine(sizes: string, start: Start): Promise<void> {
  const cut = memoized((seed: number) => start.cut(seed, sizes));
  let bestRate: number | undefined;
  for (const tokens of BUDGETS) {
    const run = { sizes, start: start.name, tokens };
    const rates = tokens === 0 ? [1] : tokens > RATES_UP_TO && bestRate !== undefined ? [bestRate] : RATES;
    const tried: { rate: number; quality: Measured }[] = [];
    for (const rate of rates) tried.push({ rate, quality: await measure({ ...run, seed: 0, rate }, cut) });
    tried.sort((a, b) => a.quality.loss - b.quality.loss);
    const [best] = tried;
    if (best === undefined) throw new Error("no learning rate was tried");
    if (tokens > 0) bestRate = best.rate;
    const qualities = [best.quality];
    for (let seed = 1; seed < SEEDS; seed++) qualities.push(await measure({ ...run, seed, rate: best.rate }, cut));
    const parameters = Math.round(mean(qualities.map((quality) => quality.parameters)));
    results.push({ sizes, start: start.name, parameters, tokens, rate: best.rate, qualities });
    const columns = (["loss", "divergence"] as const).map((measure) => summary(qualities.map((each) => each[measure])));
    const rate = tokens === 0 ? "-" : best.rate;
    console.log(`| ${[sizes, start.name, parameters, tokens, rate, ...columns].join(" | ")} |`);
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
const allSizes = values.sizes.split(";");
for (const sizes of allSizes)
  for (const start of STARTS.filter(({ name }) => new RegExp(values.starts).test(name)))
    if (isApart(start, sizes)) await examine(sizes, start);

const last = Math.max(...BUDGETS);
const calibrated = SAMPLES * LENGTH;
const seedNumbers = [...Array(SEEDS).keys()];

/** For each seed in which a start reaches what Minitron's cut reaches with the most tokens: how many it took. */
function tokensNeeded(sizes: string, name: string, measure: keyof Quality): number[] {
  const curveOf = (start: string, seed: number) =>
    results
      .filter((result) => result.sizes === sizes && result.start === start)
      .map(({ tokens, qualities }) => ({ tokens, loss: (qualities[seed] as Quality)[measure] }));
  return seedNumbers.flatMap((seed) => {
    const goal = curveOf("minitron", seed).at(-1)?.loss;
    return (goal === undefined ? undefined : tokensToReach(curveOf(name, seed), goal)) ?? [];
  });
}

function printFactors(): void {
  console.log(`\nTimes fewer tokens than Minitron's cut needs for what it reaches with ${last}:`);
  console.log(
    "\n| sizes | start | measure | seeds | fewer | with the calibration's |\n| --- | --- | --- | --- | --- | --- |",
  );
  for (const sizes of allSizes)
    for (const start of STARTS)
      for (const measure of ["loss", "divergence"] as const) {
        const needed = start.name === "minitron" ? [] : tokensNeeded(sizes, start.name, measure);
        if (needed.length === 0) continue;
        const fewer = summary(
          needed.map((tokens) => last / Math.max(tokens, 1)),
          2,
        );
        const together = summary(
          needed.map((tokens) => (last + calibrated) / (tokens + calibrated)),
          2,
        );
        console.log(`| ${[sizes, start.name, measure, `${needed.length} of ${SEEDS}`, fewer, together].join(" | ")} |`);
      }
}
if (last > 0) printFactors();

if (measured.length > 0) {
  const seconds = (of: "calibration" | "surgeon") =>
    summary(
      measured.map((each) => each[of].seconds),
      1,
    );
  const peak = (of: "calibration" | "surgeon") =>
    `${Math.max(...measured.map((each) => each[of].peakBytes / 2 ** 20)).toFixed(0)} MiB`;
  console.log(
    `\nseconds: a pass of calibration ${seconds("calibration")}, statistics and choice ${seconds("surgeon")}, refit ${refitTimes.length === 0 ? "-" : summary(refitTimes, 1)}`,
  );
  console.log(`peak resident memory: calibration ${peak("calibration")}, statistics ${peak("surgeon")}`);
}
for (const folder of folders) rmSync(folder, { recursive: true, force: true });
mkdirSync(values.out, { recursive: true });
writeJson(path.join(values.out, "starts.json"), { ...setting, dense, results });
process.exit(0);
