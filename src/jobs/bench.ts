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
  initialise,
  type Model,
  modelFromConfig,
  sizeOf,
} from "../models/index.js";
import { calibrate } from "../prune/index.js";
import { UsageError } from "../system/errors.js";
import { PeakMemory } from "../system/memory.js";
import { Random } from "../system/random.js";
import { median } from "../system/statistics.js";
import { type ComputeType, Graph, ops, type ProfileEntry, TensorStore } from "../tensor/index.js";
import type { BenchWork } from "./bench-work.js";
import { type JobOptions, onDevice, openModel } from "./environment.js";

export interface BenchJob extends JobOptions {
  /** A model whose sizes to take, or the sizes themselves: `hidden=288,ffn=768,layers=6,heads=6,kvHeads=6,vocab=32000`. */
  readonly model: string;
  /** What is timed; a distillation step by default. The teacher has the sizes of the student. */
  readonly work?: BenchWork | undefined;
  readonly sequenceLength?: number | undefined;
  /** Sequences per step. */
  readonly batchSize?: number | undefined;
  /** Timed steps; one more comes before them. */
  readonly steps?: number | undefined;
  readonly computeType?: ComputeType | undefined;
  readonly recompute?: boolean | undefined;
  /** Time each kind of operation, too. */
  readonly profile?: boolean | undefined;
}

export interface BenchOutcome {
  readonly work: BenchWork;
  readonly device: string;
  readonly threads: number;
  /** Which of our kernels ran; null when none did. */
  readonly kernels: string | null;
  readonly computeType: ComputeType;
  readonly parameters: number;
  readonly sequenceLength: number;
  readonly batchSize: number;
  /** Seconds of each timed step. */
  readonly seconds: readonly number[];
  readonly medianSeconds: number;
  readonly tokensPerSecond: number;
  /** Floating-point operations that the models need, per second; what is computed twice counts once. */
  readonly modelFlops: number;
  /** The fastest large matrix product, in operations per second. */
  readonly peakFlops: number;
  /** modelFlops / peakFlops. */
  readonly share: number;
  /** Highest resident memory of this process while the work was set up and done, in bytes. */
  readonly memoryBytes: number;
  readonly profile?: readonly ProfileEntry[] | undefined;
}

/** How often a measurement is repeated. */
const DEFAULT_STEPS = 5;

/** Work that is set up and waits to be done. */
export interface PreparedBench {
  /** Tokens of a step. */
  readonly tokens: number;
  /** Operations that the models need for a step. */
  readonly flops: number;
  readonly parameters: number;
  /** Does the work once. @returns seconds */
  readonly step: () => Promise<number>;
  readonly profile: () => ProfileEntry[];
  readonly free: () => void;
}

/** Completes what a job leaves open. */
async function settle(job: BenchJob) {
  const model = job.model.includes("=") ? modelOfSizes(job.model) : (await openModel(job.model, job)).model;
  const settings = {
    work: job.work ?? ("distill" as const),
    sequenceLength: job.sequenceLength ?? Math.min(256, model.maxPositions),
    batchSize: job.batchSize ?? 4,
    computeType: job.computeType ?? ("bf16" as const),
    recompute: job.recompute ?? false,
  };
  return { model, settings };
}

/** Sets work up on random weights and tokens. @throws UsageError for sizes that are not understood */
export async function prepareBench(backend: Backend, job: BenchJob): Promise<PreparedBench> {
  const { model, settings } = await settle(job);
  const task = WORK[settings.work](backend, model, settings);
  const tokens = task.batches * settings.batchSize * settings.sequenceLength;
  const head = settings.work !== "forward" && settings.work !== "calibrate";
  let number = 0;
  return {
    tokens,
    flops: PASSES[settings.work] * forwardFlopsPerToken(model, settings.sequenceLength, { head }) * tokens,
    parameters: countParameters(model.parameters, model.sizes),
    step: async () => {
      const started = performance.now();
      await task.step(++number);
      return (performance.now() - started) / 1000;
    },
    profile: task.profile,
    free: task.free,
  };
}

/** Times a step of work on random weights and tokens. @throws UsageError for sizes that are not understood */
export function bench(job: BenchJob): Promise<BenchOutcome> {
  return onDevice(job, async (backend) => {
    const { settings } = await settle(job);
    const peakFlops = await measurePeak(backend, settings.computeType);
    const memory = new PeakMemory();
    const prepared = await prepareBench(backend, job);
    try {
      const steps = job.steps ?? DEFAULT_STEPS;
      const seconds: number[] = [];
      await prepared.step(); // the first touches the memory
      for (let step = 1; step <= steps; step++) {
        seconds.push(await prepared.step());
        job.onProgress?.({ stage: settings.work, done: step, total: steps, unit: "steps" });
      }
      const memoryBytes = memory.stop();
      const medianSeconds = median(seconds);
      const { recompute: _, ...described } = settings;
      return {
        ...described,
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
        ...(job.profile === true && { profile: prepared.profile() }),
      };
    } finally {
      prepared.free();
    }
  });
}

/** Forward passes that a token's work amounts to: a gradient takes two, a teacher one. */
const PASSES: Record<BenchWork, number> = { distill: 4, train: 3, forward: 1, logits: 1, calibrate: 1 };

interface Settings {
  readonly sequenceLength: number;
  readonly batchSize: number;
  readonly computeType: ComputeType;
  readonly recompute: boolean;
}

/** Something that is done again and again. */
interface Task {
  /** Batches in a step. */
  readonly batches: number;
  readonly step: (number: number) => Promise<unknown>;
  readonly profile: () => ProfileEntry[];
  readonly free: () => void;
}

const WORK: Record<BenchWork, (backend: Backend, model: Model, settings: Settings) => Task> = {
  distill: (backend, model, settings) => trainingTask(backend, model, settings, true),
  train: (backend, model, settings) => trainingTask(backend, model, settings, false),
  forward: (backend, model, settings) => forwardTask(backend, model, settings, false),
  logits: (backend, model, settings) => forwardTask(backend, model, settings, true),
  calibrate: (backend, model, settings) => {
    const { sequenceLength, batchSize, computeType } = settings;
    const weights = initialise(backend, model, 1, { dtype: computeType, trainable: false });
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

/** Batches in a step of calibration, which builds its graph anew each time, and of a forward pass, to compare it with. */
const BATCHES = 64;

function randomSequences(model: Model, length: number, count: number): Sequences {
  const random = new Random(5);
  const ids = Uint32Array.from({ length: length * count + 1 }, () => random.integer(model.vocabSize));
  return new Sequences(TokenStream.of(ids, "random"), length);
}

function trainingTask(backend: Backend, model: Model, settings: Settings, distil: boolean): Task {
  const { sequenceLength, batchSize, computeType, recompute } = settings;
  const student = initialise(backend, model, 1);
  const teacher = distil ? initialise(backend, model, 2, { dtype: computeType, trainable: false }) : undefined;
  const objective =
    teacher === undefined
      ? crossEntropyObjective
      : distillationObjective({ kind: "online", weights: teacher }, DISTILLATION_DEFAULTS);
  const defaults = defaultTrainOptions(sizeOf("hidden", model.sizes), 1e6, sequenceLength, batchSize);
  const sequences = randomSequences(model, sequenceLength, 4 * batchSize);
  const options = { ...defaults, computeType, recompute };
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

function forwardTask(backend: Backend, model: Model, settings: Settings, withLogits: boolean): Task {
  const { sequenceLength, batchSize, computeType } = settings;
  const weights = initialise(backend, model, 1, { dtype: computeType, trainable: false });
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

/** Size of the products that measure the peak, and how many are tried. */
const PEAK = { size: 1024, tries: 10 };

/** Operations per second of the fastest of some square matrix products. */
async function measurePeak(backend: Backend, computeType: ComputeType): Promise<number> {
  const { size, tries } = PEAK;
  const store = new TensorStore(backend, 2);
  const [x, weight] = [store.add("x", [size, size], "f32"), store.add("weight", [size, size], computeType)];
  store.allocate();
  const g = new Graph(backend, { computeType });
  try {
    g.output(ops.linear(g, x, weight));
    let best = 0;
    for (let i = 0; i < tries; i++) {
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

const SIZE_FIELDS: Readonly<Record<string, string>> = {
  hidden: "hidden_size",
  ffn: "intermediate_size",
  layers: "num_hidden_layers",
  heads: "num_attention_heads",
  kvHeads: "num_key_value_heads",
  headDim: "head_dim",
  vocab: "vocab_size",
};

/** A Llama of given sizes, its embeddings tied. */
function modelOfSizes(text: string): Model {
  const config: Record<string, unknown> = {
    model_type: "llama",
    tie_word_embeddings: true,
    max_position_embeddings: 2 ** 20,
  };
  for (const part of text.split(",")) {
    const [name = "", value = ""] = part.split("=").map((piece) => piece.trim());
    const field = SIZE_FIELDS[name];
    if (field === undefined || !/^\d+$/.test(value))
      throw new UsageError(`the size "${part}" is not understood; sizes are ${Object.keys(SIZE_FIELDS).join(", ")}`);
    config[field] = Number(value);
  }
  for (const name of ["hidden", "ffn", "layers", "heads", "vocab"])
    if (config[SIZE_FIELDS[name] ?? ""] === undefined) throw new UsageError(`the sizes lack ${name}`);
  return modelFromConfig(config);
}
