/**
 * Re-examines at small scale the claims that structured pruning and distillation rest on (arXiv 2407.14679 and 2408.11796):
 * what a pruned start, a teacher, width against depth and a corrected teacher are worth. Three seeds, mean and spread.
 *
 *     npm run claims -- pruning [--tokens 100000] [--seeds 3] [--only REGEX] [--threads N]
 *         [--teacher DIR] [--data FILE] [--validation FILE] [--shifted FILE]
 */
import { mkdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import type { TensorSource } from "../../src/checkpoint/index.js";
import { openCorpus, Sequences, Tokenizer, type TokenStream } from "../../src/data/index.js";
import {
  crossEntropyObjective,
  DISTILLATION_DEFAULTS,
  defaultIntermediatePairs,
  defaultTrainOptions,
  distillationObjective,
  type Objective,
  SparseTeacher,
  topKTargets,
  train,
} from "../../src/distill/index.js";
import { perplexity } from "../../src/evaluate/index.js";
import { Backend } from "../../src/ggml/index.js";
import {
  countParameters,
  initialize,
  loadWeights,
  type Model,
  type ModelWeights,
  modelFromConfig,
  openCheckpoint,
} from "../../src/models/index.js";
import {
  calibrate,
  enumerateCandidates,
  keptIndices,
  layerOrder,
  planFor,
  prune,
  rankCandidates,
} from "../../src/prune/index.js";
import { writeJson } from "../../src/system/files.js";
import { mean, spread } from "./spread.js";
import { SHAKESPEARE, STORIES } from "./stories.js";

const { values } = parseArgs({
  options: {
    teacher: { type: "string", default: STORIES.model },
    data: { type: "string", default: STORIES.data },
    validation: { type: "string", default: STORIES.validation },
    shifted: { type: "string", default: SHAKESPEARE },
    tokens: { type: "string", default: "100000" },
    seeds: { type: "string", default: "3" },
    only: { type: "string", default: "" }, // a regular expression of the methods' names
    threads: { type: "string", default: String(availableParallelism()) },
    out: { type: "string", default: path.resolve(import.meta.dirname, "../results") },
  },
});
const TOKENS = Number(values.tokens);
const SEEDS = Number(values.seeds);
const LENGTH = 128;
const BATCH = 16;
/** Each method gets the better of these on the first seed. */
const LEARNING_RATES = [3e-3, 1e-2];
const SCRATCH_FACTOR = 40;

const backend = Backend.open({ device: "auto", threads: Number(values.threads) });
const checkpoint = openCheckpoint(values.teacher);
const model = modelFromConfig(checkpoint.config);
const tokenizer = await Tokenizer.load(values.teacher);
const stories = (await openCorpus([values.data], tokenizer)).train;
const validation = (await openCorpus([values.validation], tokenizer)).train;
const shifted = await openCorpus([values.shifted], tokenizer, { heldOutShare: 0.1 });
const load = (m: Model, source: TensorSource, trainable: boolean) =>
  loadWeights(backend, m, source, { dtype: "f32", trainable });
const teacher = load(model, checkpoint.source, false);

const lossOf = async (weights: ModelWeights, stream: TokenStream): Promise<number> =>
  (await perplexity(backend, weights, stream, { sequenceLength: LENGTH, computeType: "bf16" })).loss;

/** One way to make a small model. */
interface Method {
  readonly name: string;
  readonly start: (seed: number) => ModelWeights;
  readonly objective: () => Objective;
  readonly data: TokenStream;
  readonly validation: TokenStream;
  readonly tokens: number;
  /** Uses the learning rate that was best for another method. */
  readonly rateOf?: string;
}

interface Result {
  readonly name: string;
  readonly losses: readonly number[];
  readonly learningRate: number;
  readonly parameters: number;
  readonly tokens: number;
}

async function runOnce(
  method: Method,
  seed: number,
  learningRate: number,
): Promise<{ loss: number; parameters: number }> {
  const weights = method.start(seed);
  try {
    await train({
      backend,
      student: weights,
      objective: method.objective(),
      sequences: new Sequences(method.data, LENGTH),
      options: {
        ...defaultTrainOptions(weights.model.sizes.hidden ?? 1, method.tokens, LENGTH, BATCH),
        learningRate,
        minimumLearningRate: learningRate / 10,
        seed,
      },
    });
    const parameters = countParameters(weights.model.parameters, weights.model.sizes);
    return { loss: await lossOf(weights, method.validation), parameters };
  } finally {
    weights.free();
  }
}

const results: Result[] = [];

async function examine(method: Method): Promise<void> {
  if (!new RegExp(values.only).test(method.name)) return;
  const inherited = results.find(({ name }) => name === method.rateOf)?.learningRate;
  const tried: { rate: number; loss: number; parameters: number }[] = [];
  for (const rate of inherited === undefined ? LEARNING_RATES : [inherited])
    tried.push({ rate, ...(await runOnce(method, 0, rate)) });
  const best = tried.sort((a, b) => a.loss - b.loss)[0];
  if (best === undefined) throw new Error("no learning rate was tried");
  const losses = [best.loss];
  for (let seed = 1; seed < SEEDS; seed++) losses.push((await runOnce(method, seed, best.rate)).loss);
  const result = {
    name: method.name,
    losses,
    learningRate: best.rate,
    parameters: best.parameters,
    tokens: method.tokens,
  };
  results.push(result);
  console.log(row(result));
}

const row = ({ name, losses, learningRate, parameters, tokens }: Result) =>
  `| ${name} | ${parameters} | ${(tokens / 1e6).toFixed(2)} M | ${learningRate} | ${mean(losses).toFixed(4)} | ${spread(losses).toFixed(4)} |`;

const scores = await calibrate(backend, teacher, new Sequences(stories, LENGTH), {
  samples: 1024,
  batchSize: 16,
  computeType: "bf16",
});
const search = {
  maxCandidates: 12,
  computeType: "bf16",
  depthMethod: "contiguous-loss",
  sequenceLength: LENGTH,
  maxSequences: 128,
} as const;

// Two cuts of equal size: two of five layers gone, and the widths that come nearest to it.
const inputs = { backend, original: checkpoint, weights: teacher, scores, validation };
const order = await layerOrder(inputs, 2, { ...search, method: "contiguous-loss" });
const depthPlan = planFor(model, { layers: model.layerCount - 2 }, order);
const depthCut = prune(checkpoint, depthPlan, keptIndices(model, depthPlan, scores));
const target = countParameters(depthCut.model.parameters, depthCut.model.sizes);
const candidates = enumerateCandidates(model, target, { axes: ["hidden", "ffn"], tolerance: 0.02 });
const [bestWidth] = await rankCandidates(inputs, candidates, search);
if (bestWidth === undefined) throw new Error("no width candidate");
const widthCut = prune(checkpoint, bestWidth.plan, keptIndices(model, bestWidth.plan, scores));

const distilled = () => distillationObjective({ kind: "online", weights: teacher }, DISTILLATION_DEFAULTS);
const topK = (k: number) => () =>
  distillationObjective(
    {
      kind: "sparse",
      source: new SparseTeacher(backend, () => teacher, new Sequences(stories, LENGTH), {
        targets: topKTargets({ k, temperature: 1 }),
        computeType: "bf16",
        teacherId: "claims",
        vocabSize: model.vocabSize,
      }),
    },
    { ...DISTILLATION_DEFAULTS, divergence: "top-k" },
  );
const onStories = { data: stories, validation, tokens: TOKENS };
const pruned = () => load(widthCut.model, widthCut.source, true);
const fresh = (seed: number) => initialize(backend, widthCut.model, seed + 100);

console.log(
  `teacher ${(await lossOf(teacher, validation)).toFixed(4)} nats/token on the validation data; sequences of ${LENGTH}, ${BATCH} a step`,
);
for (const [name, cut] of [
  ["width", widthCut],
  ["depth", depthCut],
] as const) {
  const weights = load(cut.model, cut.source, false);
  console.log(
    `${name} cut, as pruned: ${(await lossOf(weights, validation)).toFixed(4)} (${JSON.stringify(cut.model.config.hidden_size)} hidden, ${cut.model.layerCount} layers)`,
  );
  weights.free();
}
console.log(
  "\n| method | parameters | tokens | learning rate | loss, mean | spread |\n| --- | --- | --- | --- | --- | --- |",
);
await examine({ name: "pruned + distilled", start: pruned, objective: distilled, ...onStories });
await examine({ name: "pruned + cross-entropy", start: pruned, objective: () => crossEntropyObjective, ...onStories });
await examine({ name: "random start + distilled", start: fresh, objective: distilled, ...onStories });
await examine({
  name: "from scratch, equal tokens",
  start: fresh,
  objective: () => crossEntropyObjective,
  ...onStories,
});
await examine({
  name: "depth cut + distilled",
  start: () => load(depthCut.model, depthCut.source, true),
  objective: distilled,
  ...onStories,
});
await examine({
  name: "depth cut + distilled + intermediate states",
  start: () => load(depthCut.model, depthCut.source, true),
  objective: () =>
    distillationObjective(
      { kind: "online", weights: teacher },
      { ...DISTILLATION_DEFAULTS, intermediate: defaultIntermediatePairs(depthPlan.keptLayers) },
    ),
  ...onStories,
});
for (const k of [4, 16, 64])
  await examine({
    name: `pruned + distilled, top-${k}`,
    start: pruned,
    objective: topK(k),
    ...onStories,
    rateOf: "pruned + distilled",
  });

// Data that the teacher never saw: distilled from the teacher as it is, and from one trained on a third as many tokens.
const onShifted = { data: shifted.train, validation: shifted.heldOut, tokens: TOKENS, start: pruned };
const corrected = load(model, checkpoint.source, true);
await train({
  backend,
  student: corrected,
  objective: crossEntropyObjective,
  sequences: new Sequences(shifted.train, LENGTH),
  options: {
    ...defaultTrainOptions(model.sizes.hidden ?? 1, Math.ceil(TOKENS / 3), LENGTH, BATCH),
    learningRate: 1e-3,
    minimumLearningRate: 1e-4,
  },
});
console.log(
  `shifted data: teacher ${(await lossOf(teacher, shifted.heldOut)).toFixed(4)}, corrected teacher ${(await lossOf(corrected, shifted.heldOut)).toFixed(4)}`,
);
await examine({ name: "shifted data, uncorrected teacher", objective: distilled, ...onShifted });
await examine({
  name: "shifted data, corrected teacher",
  objective: () => distillationObjective({ kind: "online", weights: corrected }, DISTILLATION_DEFAULTS),
  ...onShifted,
});
await examine({
  name: `from scratch, ${SCRATCH_FACTOR} times the tokens`,
  start: fresh,
  objective: () => crossEntropyObjective,
  ...onStories,
  tokens: SCRATCH_FACTOR * TOKENS,
  rateOf: "from scratch, equal tokens",
});
mkdirSync(values.out, { recursive: true });
writeJson(path.join(values.out, "claims.json"), { tokens: TOKENS, seeds: SEEDS, teacher: values.teacher, results });
console.log(`\nwritten to ${path.join(values.out, "claims.json")}`);
process.exit(0);
