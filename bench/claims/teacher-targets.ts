/**
 * What it costs, and what it is worth, to keep a few numbers of each of the teacher's distributions: its most probable tokens or samples,
 * beside the whole distribution. Bytes a token in the cache, the time of a first and of a cached pass over the same tokens, and the
 * student's loss afterwards; then the time to compute targets alone, beside the teacher's bare logits. Times are the processor's, which
 * other programs lengthen little.
 *
 *     npm run claims -- teacher-targets [--tokens 40000] [--seeds 3] [--threads 1] [--sequences 8] [--only REGEX]
 *         [--teacher MODEL] [--data FILE] [--validation FILE] [--student hidden=48,ffn=152]
 *     npm run claims -- teacher-targets --tokens 0 --teacher MODEL --data FILE    (only the time to compute targets)
 */
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { openCorpus, Sequences, Tokenizer, type TokenStream } from "../../src/data/index.js";
import {
  DISTILLATION_DEFAULTS,
  defaultTrainOptions,
  distillationObjective,
  type SparseTargets,
  SparseTeacher,
  sampledTargets,
  type Teacher,
  topKTargets,
  train,
} from "../../src/distill/index.js";
import { perplexity } from "../../src/evaluate/index.js";
import { Backend } from "../../src/ggml/index.js";
import { openModel } from "../../src/jobs/index.js";
import { loadWeights } from "../../src/models/index.js";
import { calibrate, keptIndices, type PrunedModel, parseSizes, planWithLayers, prune } from "../../src/prune/index.js";
import { median } from "../../src/system/statistics.js";
import { Graph, ops } from "../../src/tensor/index.js";
import { markdown } from "../lines.js";
import { mean, spread } from "./spread.js";
import { STORIES } from "./stories.js";

const { values } = parseArgs({
  options: {
    teacher: { type: "string", default: STORIES.model },
    data: { type: "string", default: STORIES.data },
    validation: { type: "string", default: STORIES.validation },
    student: { type: "string", default: "hidden=48,ffn=152" },
    tokens: { type: "string", default: "40000" },
    seeds: { type: "string", default: "3" },
    threads: { type: "string", default: "1" },
    sequences: { type: "string", default: "8" }, // whose targets are computed to time that alone
    only: { type: "string", default: "" }, // a regular expression of the methods' names
  },
});
const TOKENS = Number(values.tokens);
const SEEDS = Array.from({ length: Number(values.seeds) }, (_, i) => i);
const [LENGTH, BATCH] = [128, 16];
const LEARNING_RATE = 3e-3; // the best of those tried for docs/claims.md
const VALIDATION_SEQUENCES = 256;
const COMPUTE = "bf16";

const backend = Backend.open({ device: "cpu", threads: Number(values.threads) });
const { checkpoint, model } = await openModel(values.teacher);
const teacher = loadWeights(backend, model, checkpoint.source, { dtype: COMPUTE, trainable: false });
const tokenizer = await Tokenizer.load(checkpoint.directory);
const tokens = (await openCorpus([values.data], tokenizer)).train;
const sequences = new Sequences(tokens, LENGTH);
const { vocabSize } = model;
const scratch = mkdtempSync(path.join(tmpdir(), "teacher-targets-"));

interface Kind {
  readonly name: string;
  /** None for the whole distribution. */
  readonly targets: ((seed: number) => SparseTargets) | undefined;
}
const kinds: Kind[] = [
  { name: "whole distribution", targets: undefined },
  ...[32, 128].map((k) => ({ name: `top-k, ${k}`, targets: () => topKTargets({ k, temperature: 1 }) })),
  ...[12, 32, 50].map((samples) => ({
    name: `samples, ${samples}`,
    targets: (seed: number) => sampledTargets({ samples, temperature: 1, seed, vocabSize }),
  })),
].filter(({ name }) => new RegExp(values.only).test(name));

const sparseTeacher = (targets: SparseTargets, cacheDirectory?: string) =>
  new SparseTeacher(backend, () => teacher, sequences, {
    targets,
    computeType: COMPUTE,
    teacherId: "bench",
    vocabSize,
    cacheDirectory,
  });

/** The bytes of a directory's entries. */
const entryBytes = (directory: string): number =>
  readdirSync(directory, { recursive: true, encoding: "utf8" })
    .filter((name) => /entries-\d+\.bin$/.test(name))
    .reduce((sum, name) => sum + statSync(path.join(directory, name)).size, 0);

/** Seconds of the processor that this process has used. */
const processorSeconds = (): number => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

/** The start of all students. */
async function prunedStart() {
  const calibration = { samples: 256, batchSize: BATCH, computeType: COMPUTE } as const;
  const scores = await calibrate(backend, teacher, sequences, calibration);
  const plan = planWithLayers(model, parseSizes(values.student), [...Array(model.layerCount).keys()]);
  return prune(checkpoint, plan, keptIndices(model, plan, scores));
}

interface Student {
  readonly start: PrunedModel;
  readonly validation: TokenStream;
  readonly seed: number;
}

/** Trains a student; the same seed starts from the same weights and sees the same data. */
async function distill({ start, validation, seed }: Student, source: Teacher, divergence: SparseTargets["divergence"]) {
  const student = loadWeights(backend, start.model, start.source, { dtype: "f32", trainable: true });
  try {
    const started = processorSeconds();
    await train({
      backend,
      student,
      sequences,
      objective: distillationObjective(source, { ...DISTILLATION_DEFAULTS, divergence }),
      options: {
        ...defaultTrainOptions(start.model.sizes.hidden ?? 1, TOKENS, LENGTH, BATCH),
        learningRate: LEARNING_RATE,
        minimumLearningRate: LEARNING_RATE / 10,
        seed,
      },
    });
    const seconds = processorSeconds() - started;
    const options = { sequenceLength: LENGTH, maxSequences: VALIDATION_SEQUENCES, computeType: COMPUTE } as const;
    return { seconds, loss: (await perplexity(backend, student, validation, options)).loss };
  } finally {
    student.free();
  }
}

async function distillFrom(student: Student, targets: SparseTargets, directory: string) {
  const source = sparseTeacher(targets, directory);
  try {
    return await distill(student, { kind: "sparse", source }, targets.divergence);
  } finally {
    source.free();
  }
}

interface Run {
  readonly loss: number;
  /** Seconds of a pass that computes the targets, and of one that reads them. */
  readonly first: number;
  readonly cached: number | undefined;
  /** A token's in the cache. */
  readonly bytes: number | undefined;
}

async function runOf({ name, targets }: Kind, student: Student): Promise<Run> {
  if (targets === undefined) {
    const { seconds, loss } = await distill(student, { kind: "online", weights: teacher }, "forward-kl");
    return { loss, first: seconds, cached: undefined, bytes: undefined };
  }
  const directory = path.join(scratch, `${name}-${student.seed}`);
  const first = await distillFrom(student, targets(student.seed), directory);
  const cached = await distillFrom(student, targets(student.seed), directory);
  if (cached.loss !== first.loss) throw new Error(`${name}: ${cached.loss} from the cache, ${first.loss} before`);
  const trained = Math.ceil(TOKENS / LENGTH / BATCH) * LENGTH * BATCH;
  return { loss: first.loss, first: first.seconds, cached: cached.seconds, bytes: entryBytes(directory) / trained };
}

/** A line of the table. @param whole the losses of the same seeds' students of the whole distribution */
function rowOf(name: string, runs: readonly Run[], whole: readonly number[] | undefined): (string | number)[] {
  const losses = runs.map(({ loss }) => loss);
  const differences = losses.map((loss, i) => loss - (whole?.[i] ?? Number.NaN));
  const seconds = (times: readonly (number | undefined)[]) =>
    times.includes(undefined) ? "-" : median(times as number[]).toFixed(2);
  return [
    name,
    runs[0]?.bytes === undefined ? "-" : mean(runs.map(({ bytes }) => bytes ?? 0)).toFixed(1),
    seconds(runs.map(({ first }) => first)),
    seconds(runs.map(({ cached }) => cached)),
    mean(losses).toFixed(4),
    spread(losses).toFixed(4),
    `${mean(differences).toFixed(4)} ± ${spread(differences).toFixed(4)}`,
  ];
}

const HEAD = [
  "targets",
  "bytes a token",
  "first pass, s",
  "cached pass, s",
  "loss, mean",
  "spread",
  "from the whole's",
];

/** Students of each kind of targets. */
async function students(): Promise<void> {
  const { train: validation } = await openCorpus([values.validation], tokenizer);
  const start = await prunedStart();
  const rows: (string | number)[][] = [];
  let whole: number[] | undefined;
  for (const kind of kinds) {
    const runs: Run[] = [];
    for (const seed of SEEDS) runs.push(await runOf(kind, { start, validation, seed }));
    if (kind.targets === undefined) whole = runs.map(({ loss }) => loss);
    rows.push(rowOf(kind.name, runs, whole));
  }
  console.log(`${TOKENS} tokens, ${SEEDS.length} seeds, student ${values.student}\n`);
  console.log(`${markdown(HEAD, rows)}\n`);
}

const ROUNDS = 5;

/** The time that targets of a batch take, without a student and without a cache. */
async function costs(): Promise<void> {
  const numbers = Array.from({ length: Math.min(Number(values.sequences), sequences.count) }, (_, i) => i);
  const batch = sequences.batch(numbers);
  const count = batch.tokens.length;
  const bare = new Graph(backend, { computeType: COMPUTE });
  const input = bare.input("tokens", "i32", [numbers.length, LENGTH]);
  const { hidden, logits } = model.forward(bare, teacher.get, input);
  bare.output(ops.mapHeadRows(bare, hidden, vocabSize, (rows) => ops.sumLast(bare, logits(rows))));
  bare.write(input, batch.tokens);
  const contenders: { name: string; run: () => Promise<void>; bytes: number | undefined }[] = [
    { name: "logits alone", run: () => bare.run(), bytes: undefined },
  ];
  for (const { name, targets } of kinds) {
    if (targets === undefined) continue;
    const kind = targets(0);
    const source = sparseTeacher(kind);
    const g = new Graph(backend);
    const inputs = source.declareInputs(g, count);
    const run = () => source.feed(g, inputs, count, batch, numbers);
    await run();
    const perSequence = LENGTH * kind.slots;
    const ids = g.readInt32(inputs.indices).map((index) => index % vocabSize);
    const weights = g.read(inputs.values);
    const bytes = numbers.reduce((sum, _, i) => {
      const range = [i * perSequence, (i + 1) * perSequence] as const;
      return sum + kind.encode({ ids: ids.subarray(...range), values: weights.subarray(...range) }).byteLength;
    }, 0);
    contenders.push({ name, run, bytes: bytes / count });
  }
  const times = contenders.map((): number[] => []);
  for (let round = 0; round <= ROUNDS; round++)
    for (const [i, { run }] of contenders.entries()) {
      const started = processorSeconds();
      await run();
      if (round > 0) times[i]?.push((1e6 * (processorSeconds() - started)) / count); // the first is a warm-up
    }
  const base = median(times[0] ?? []);
  const rows = contenders.map(({ name, bytes }, i) => {
    const time = median(times[i] ?? []);
    return [name, bytes?.toFixed(1) ?? "-", time.toFixed(time < 100 ? 1 : 0), (time / base).toFixed(2)];
  });
  console.log(`${count} tokens, vocabulary ${vocabSize}, median of ${ROUNDS}\n`);
  console.log(markdown(["computed", "bytes a token", "µs a token", "beside logits"], rows));
}

try {
  if (TOKENS > 0) await students();
  await costs();
} finally {
  rmSync(scratch, { recursive: true });
}
process.exit(0);
