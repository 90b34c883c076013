import { Sequences, TokenStream } from "../data/index.js";
import {
  crossEntropyObjective,
  DISTILLATION_DEFAULTS,
  defaultTrainOptions,
  distillationObjective,
  Trainer,
} from "../distill/index.js";
import type { Backend } from "../ggml/index.js";
import {
  countParameters,
  forwardFlopsPerToken,
  initialize,
  type Model,
  modelFromConfig,
  sizeOf,
} from "../models/index.js";
import { calibrate } from "../prune/index.js";
import { InterruptedError, UsageError } from "../system/errors.js";
import { PeakMemory } from "../system/memory.js";
import { Random } from "../system/random.js";
import { median } from "../system/statistics.js";
import { type ComputeType, Graph, type OptimizerState, ops, type ProfileEntry, TensorStore } from "../tensor/index.js";
import type { BenchWork } from "./bench-work.js";
import { type JobOptions, onDevice } from "./job.js";
import { openModel } from "./open-model.js";

export interface BenchJob extends JobOptions {
  /** A model whose sizes to take, or the sizes themselves: `hidden=288,ffn=768,layers=6,heads=6,kvHeads=6,vocab=32000`. */
  readonly model: string;
  /** The work that is timed; a distillation step by default. The teacher has the student's sizes. */
  readonly work?: BenchWork | undefined;
  readonly sequenceLength?: number | undefined;
  /** Sequences per step. */
  readonly batchSize?: number | undefined;
  /** Timed steps, after one that warms up. */
  readonly steps?: number | undefined;
  readonly computeType?: ComputeType | undefined;
  readonly recompute?: boolean | undefined;
  readonly optimizerState?: OptimizerState | undefined;
  readonly freeGradients?: boolean | undefined;
  /** Also time each kind of operation. */
  readonly profile?: boolean | undefined;
}

export interface BenchOutcome {
  readonly work: BenchWork;
  readonly device: string;
  readonly threads: number;
  /** The variant of our kernels that ran; null without them. */
  readonly kernels: string | null;
  readonly computeType: ComputeType;
  readonly parameters: number;
  readonly sequenceLength: number;
  readonly batchSize: number;
  /** Seconds of each timed step. */
  readonly seconds: readonly number[];
  readonly medianSeconds: number;
  readonly tokensPerSecond: number;
  /** Floating-point operations that the models need, per second; recomputation does not count. */
  readonly modelFlops: number;
  /** Operations per second of the fastest large matrix product. */
  readonly peakFlops: number;
  /** modelFlops / peakFlops. */
  readonly share: number;
  /** Peak resident memory of this process while the work was prepared and done, in bytes. */
  readonly memoryBytes: number;
  readonly profile?: readonly ProfileEntry[] | undefined;
}

const DEFAULT_STEPS = 5;

/** Work that is ready to be timed. */
export interface PreparedBench {
  /** Tokens in a step. */
  readonly tokens: number;
  /** Operations that the models need for a step. */
  readonly flops: number;
  readonly parameters: number;
  /** Runs a step. @returns seconds */
  readonly step: () => Promise<number>;
  readonly profile: () => ProfileEntry[];
  readonly free: () => void;
}

/** Opens the model, and completes a job's settings. */
async function withDefaults(job: BenchJob) {
  const model = AS_SIZES.test(job.model) ? modelOfSizes(job.model) : (await openModel(job.model, job)).model;
  const settings = {
    work: job.work ?? ("distill" as const),
    sequenceLength: job.sequenceLength ?? Math.min(256, model.maxPositions),
    batchSize: job.batchSize ?? 4,
    computeType: job.computeType ?? ("bf16" as const),
    recompute: job.recompute ?? false,
    optimizerState: job.optimizerState,
    freeGradients: job.freeGradients,
  };
  checkUsed(job, settings.work);
  return { model, settings };
}

/** @throws UsageError for an option that the work does not use */
function checkUsed({ recompute, optimizerState, freeGradients, profile, devices }: BenchJob, work: BenchWork): void {
  const isTraining = work === "distill" || work === "train";
  const unused = [
    ["--recompute", recompute === true && !isTraining],
    ["--optimizer-state", optimizerState !== undefined && !isTraining],
    ["--free-gradients", freeGradients === true && !isTraining],
    ["--profile", profile === true && work === "calibrate"],
  ].find(([, isUnused]) => isUnused);
  if (profile === true && devices !== undefined && devices !== 1)
    throw new UsageError("--profile is of one device: leave out --devices");
  if (unused !== undefined) throw new UsageError(`${unused[0]} changes nothing of --work ${work}: leave it out`);
}

/** Prepares work on random weights and tokens. @throws UsageError for sizes that are not understood */
export async function prepareBench(backend: Backend, job: BenchJob): Promise<PreparedBench> {
  const { model, settings } = await withDefaults(job);
  const work = WORK[settings.work](backend, model, settings);
  const tokens = work.batches * settings.batchSize * settings.sequenceLength;
  const head = settings.work !== "forward" && settings.work !== "calibrate";
  let number = 0;
  return {
    tokens,
    flops: PASSES[settings.work] * forwardFlopsPerToken(model, settings.sequenceLength, { head }) * tokens,
    parameters: countParameters(model.parameters, model.sizes),
    step: async () => {
      const started = performance.now();
      await work.step(++number);
      return (performance.now() - started) / 1000;
    },
    profile: work.profile,
    free: work.free,
  };
}

/**
 * Times steps of work on random weights and tokens. @throws UsageError for sizes that are not understood
 * @example
 * ```ts
 * import { bench } from "coppice";
 *
 * const { tokensPerSecond, kernels, share } = await bench({
 *   model: "hidden=288,ffn=768,layers=6,heads=6,kvHeads=6,vocab=32000",
 *   work: "distill",
 *   batchSize: 4,
 * });
 * console.log(`${Math.round(tokensPerSecond)} tokens/s on ${kernels}, ${Math.round(100 * share)} % of the peak`);
 * ```
 */
export function bench(job: BenchJob): Promise<BenchOutcome> {
  return onDevice(job, async (backend) => {
    const { settings } = await withDefaults(job);
    await backend.measureThreads();
    const peakFlops = await measurePeak(backend, settings.computeType);
    const memory = new PeakMemory();
    const prepared = await prepareBench(backend, job);
    try {
      const steps = job.steps ?? DEFAULT_STEPS;
      const seconds: number[] = [];
      await prepared.step(); // warms up: touches the memory
      for (let step = 1; step <= steps; step++) {
        if (job.signal?.aborted) throw new InterruptedError(`stopped after ${step - 1} of ${steps} steps`);
        seconds.push(await prepared.step());
        job.onProgress?.({ stage: settings.work, done: step, total: steps, unit: "steps" });
      }
      const memoryBytes = memory.stop();
      const medianSeconds = median(seconds);
      const { work, computeType, sequenceLength, batchSize } = settings;
      return {
        work,
        computeType,
        sequenceLength,
        batchSize,
        device: backend.device.description,
        threads: backend.threads,
        kernels: backend.kernels?.variant ?? null,
        parameters: prepared.parameters,
        seconds,
        medianSeconds,
        tokensPerSecond: prepared.tokens / medianSeconds,
        modelFlops: prepared.flops / medianSeconds,
        peakFlops,
        share: prepared.flops / medianSeconds / peakFlops,
        memoryBytes,
        profile: job.profile === true ? prepared.profile() : undefined,
      };
    } finally {
      prepared.free();
    }
  });
}

/** The work for a token in forward passes: a gradient takes two, a teacher one. */
const PASSES: Record<BenchWork, number> = { distill: 4, train: 3, forward: 1, logits: 1, calibrate: 1 };

interface Settings {
  readonly sequenceLength: number;
  readonly batchSize: number;
  readonly computeType: ComputeType;
  readonly recompute: boolean;
  readonly optimizerState?: OptimizerState | undefined;
  readonly freeGradients?: boolean | undefined;
}

/** A step of work that can be repeated. */
interface RepeatedWork {
  /** Batches in a step. */
  readonly batches: number;
  readonly step: (number: number) => Promise<unknown>;
  readonly profile: () => ProfileEntry[];
  readonly free: () => void;
}

const WORK: Record<BenchWork, (backend: Backend, model: Model, settings: Settings) => RepeatedWork> = {
  distill: (backend, model, settings) => trainingWork(backend, model, settings, true),
  train: (backend, model, settings) => trainingWork(backend, model, settings, false),
  forward: (backend, model, settings) => forwardWork(backend, model, settings, false),
  logits: (backend, model, settings) => forwardWork(backend, model, settings, true),
  calibrate: (backend, model, settings) => {
    const { sequenceLength, batchSize, computeType } = settings;
    const weights = initialize(backend, model, 1, { dtype: computeType, trainable: false });
    const sequences = randomSequences(model, sequenceLength, BATCHES * batchSize);
    const samples = BATCHES * batchSize;
    return {
      batches: BATCHES,
      step: () => calibrate(backend, weights, sequences, { samples, batchSize, computeType }),
      profile: () => [],
      free: () => weights.free(),
    };
  },
};

/** Batches in a step of calibration, which builds its graph each time, and for comparison also in a step of forward passes. */
const BATCHES = 64;

function randomSequences(model: Model, length: number, count: number): Sequences {
  const random = new Random(5);
  const ids = Uint32Array.from({ length: length * count + 1 }, () => random.integer(model.vocabSize));
  return new Sequences(TokenStream.of(ids, "random"), length);
}

function trainingWork(backend: Backend, model: Model, settings: Settings, withTeacher: boolean): RepeatedWork {
  const { sequenceLength, batchSize, computeType, recompute, optimizerState, freeGradients } = settings;
  const student = initialize(backend, model, 1);
  const teacher = withTeacher ? initialize(backend, model, 2, { dtype: computeType, trainable: false }) : undefined;
  const objective =
    teacher === undefined
      ? crossEntropyObjective
      : distillationObjective({ kind: "online", weights: teacher }, DISTILLATION_DEFAULTS);
  const defaults = defaultTrainOptions(sizeOf("hidden", model.sizes), 1e6, sequenceLength, batchSize);
  const sequences = randomSequences(model, sequenceLength, 4 * batchSize);
  const options = { ...defaults, computeType, recompute, optimizerState, freeGradients };
  const trainer = new Trainer({ backend, student, objective, sequences, options });
  return {
    batches: 1,
    step: (number) => trainer.step(number),
    profile: () => trainer.graphs.flatMap((graph) => graph.profile()),
    free: () => {
      trainer.free();
      student.free();
      teacher?.free();
    },
  };
}

function forwardWork(backend: Backend, model: Model, settings: Settings, withLogits: boolean): RepeatedWork {
  const { sequenceLength, batchSize, computeType } = settings;
  const weights = initialize(backend, model, 1, { dtype: computeType, trainable: false });
  const sequences = randomSequences(model, sequenceLength, batchSize);
  const g = new Graph(backend, { computeType });
  const tokens = g.input("tokens", "i32", [batchSize, sequenceLength]);
  const { hidden, logits } = model.forward(g, weights.get, tokens);
  g.output(withLogits ? ops.mapHeadRows(g, hidden, model.vocabSize, (rows) => ops.sumLast(g, logits(rows))) : hidden);
  g.write(tokens, sequences.batch(Array.from({ length: batchSize }, (_, i) => i)).tokens);
  return {
    batches: BATCHES,
    step: async () => {
      for (let i = 0; i < BATCHES; i++) await g.run();
    },
    profile: () => g.profile(),
    free: () => {
      g.free();
      weights.free();
    },
  };
}

/** The width of the square matrices that measure the peak, and how often they are multiplied. */
const [PEAK_SIZE, PEAK_TRIES] = [1024, 10];

/** Operations per second of the fastest of several square matrix products. */
async function measurePeak(backend: Backend, computeType: ComputeType): Promise<number> {
  const size = PEAK_SIZE;
  const store = new TensorStore(backend, 2);
  const [x, weight] = [store.add("x", [size, size], "f32"), store.add("weight", [size, size], computeType)];
  store.allocate();
  const g = new Graph(backend, { computeType });
  try {
    g.output(ops.linear(g, x, weight));
    let best = 0;
    for (let i = 0; i < PEAK_TRIES; i++) {
      const started = performance.now();
      await g.run();
      best = Math.max(best, (2 * size ** 3) / ((performance.now() - started) / 1000));
    }
    return best;
  } finally {
    g.free();
    store.free();
  }
}

/** The field of config.json for each size, and whether it is required. */
const SIZE_FIELDS: ReadonlyMap<string, { readonly field: string; readonly isRequired: boolean }> = new Map([
  ["hidden", { field: "hidden_size", isRequired: true }],
  ["ffn", { field: "intermediate_size", isRequired: true }],
  ["layers", { field: "num_hidden_layers", isRequired: true }],
  ["heads", { field: "num_attention_heads", isRequired: true }],
  ["kvHeads", { field: "num_key_value_heads", isRequired: false }],
  ["headDim", { field: "head_dim", isRequired: false }],
  ["vocab", { field: "vocab_size", isRequired: true }],
]);

/** Sizes, rather than a place, whose adapters may have strengths (`model+lora:adapter=0.5`). */
const AS_SIZES = /^[\w\s]+=/;

/** A Llama with the given sizes and tied embeddings. @throws UsageError for sizes that are not understood or missing */
function modelOfSizes(sizes: string): Model {
  const config: Record<string, unknown> = {
    model_type: "llama",
    tie_word_embeddings: true,
    max_position_embeddings: 2 ** 20,
  };
  for (const part of sizes.split(",")) {
    const [name = "", value = ""] = part.split("=").map((text) => text.trim());
    const size = SIZE_FIELDS.get(name);
    if (size === undefined || !/^\d+$/.test(value))
      throw new UsageError(`the size "${part}" is not understood; sizes are ${[...SIZE_FIELDS.keys()].join(", ")}`);
    config[size.field] = Number(value);
  }
  for (const [name, { field, isRequired }] of SIZE_FIELDS)
    if (isRequired && config[field] === undefined) throw new UsageError(`the sizes lack ${name}`);
  return modelFromConfig(config);
}
