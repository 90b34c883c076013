import { Sequences, TokenStream } from "../data/index.js";
import { crossEntropyObjective, defaultTrainOptions, type TrainOptions, train } from "../distill/index.js";
import type { Backend } from "../ggml/device.js";
import { type ConfigJson, initialize, modelFromConfig } from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { MissingKernelError } from "../system/errors.js";
import { Random } from "../system/random.js";
import { LARGE_OP_CASES, OP_CASES, type OpCase, resultAndGradients } from "./op-cases.js";
import { VALUE_CASES, type ValueCase, valuesOf } from "./value-cases.js";

/** How far a device's results are from the processor's. */
export interface Comparison {
  readonly name: string;
  /** The largest difference, in parts of the largest expected number; null where the device failed. */
  readonly difference: number | null;
  readonly isClose: boolean;
  /** Whether the device has no kernel for weights of a type, and says so; no device has one for each. */
  readonly isRefused?: boolean | undefined;
  /** Why it failed, in the device's words. */
  readonly failure?: string | undefined;
}

/** Differences of results in f32 are at most so large, sums over thousands of terms included. */
const OP_TOLERANCE = 1e-3;
/** Of losses along a few steps of training. */
const LOSS_TOLERANCE = 1e-3;
/** Of those where operands have 8 bits of mantissa. */
const ROUNDED_LOSS_TOLERANCE = 0.01;

type Results = readonly Float32Array[];

/** The largest difference in parts of the expected numbers' size; infinite where one is not finite or there are more or fewer. */
export function largestDifference(actual: Results, expected: Results): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  const differences = actual.map((values, which) => {
    const wanted = elementAt(expected, which);
    if (values.length !== wanted.length) return Number.POSITIVE_INFINITY;
    const size = wanted.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1; // zeros are expected exactly
    let largest = 0;
    for (const [i, value] of values.entries()) {
      const difference = Math.abs(value - elementAt(wanted, i)) / size;
      if (!(difference <= largest)) largest = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
    }
    return largest;
  });
  return Math.max(...differences);
}

async function compared(
  name: string,
  { tolerance, mayBeRefused = false }: { readonly tolerance: number; readonly mayBeRefused?: boolean | undefined },
  compute: (on: "device" | "processor") => Promise<Results>,
): Promise<Comparison> {
  const expected = await compute("processor");
  try {
    const difference = largestDifference(await compute("device"), expected);
    return { name, difference: Number.isFinite(difference) ? difference : null, isClose: difference <= tolerance };
  } catch (error) {
    const failure = error instanceof Error ? error.message : String(error);
    const isRefused = mayBeRefused && error instanceof MissingKernelError;
    return { name, difference: null, isClose: false, isRefused, failure };
  }
}

export interface ComparedDevices {
  readonly device: Backend;
  readonly processor: Backend;
}

/** A comparison by its name, and how it is done. */
export interface NamedComparison {
  readonly name: string;
  readonly compare: (devices: ComparedDevices) => Promise<Comparison>;
}

/** What is to be freed when a process ends: software drivers of Vulkan damage memory when buffers are freed between computations. */
const kept: { free(): void }[] = [];
const keep = (...resources: readonly { free(): void }[]): void => void kept.push(...resources);

function ofOp([name, one]: readonly [string, OpCase]): NamedComparison {
  const compare = (on: ComparedDevices) =>
    compared(name, { tolerance: OP_TOLERANCE }, (where) => resultAndGradients(on[where], one, keep));
  return { name, compare };
}

function ofValues([name, one]: readonly [string, ValueCase]): NamedComparison {
  const compare = (on: ComparedDevices) =>
    compared(name, { tolerance: OP_TOLERANCE, ...one }, (where) => valuesOf(on[where], one, keep));
  return { name, compare };
}

/** Small models whose parts differ: norms, attention, positions, feed-forward networks, embeddings. */
const COMMON = {
  hidden_size: 64,
  intermediate_size: 160,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  vocab_size: 300,
};
const POST_NORM = { ...COMMON, model_type: "olmo2", num_key_value_heads: 2 };
const MODELS: Readonly<Record<string, ConfigJson>> = {
  llama: { ...COMMON, model_type: "llama", num_key_value_heads: 2 },
  qwen3: { ...COMMON, model_type: "qwen3", num_key_value_heads: 2, head_dim: 16, tie_word_embeddings: true },
  gemma2: {
    ...COMMON,
    model_type: "gemma2",
    num_key_value_heads: 2,
    head_dim: 16,
    query_pre_attn_scalar: 16,
    sliding_window: 8,
  },
  gpt2: {
    model_type: "gpt2",
    n_embd: 64,
    n_layer: 2,
    n_head: 4,
    n_positions: 64,
    vocab_size: 300,
  },
  olmo2: POST_NORM,
};

const [STEPS, BATCH, LENGTH] = [6, 4, 32];

function ofTraining(
  name: string,
  config: ConfigJson,
  options: Partial<TrainOptions> = {},
  tolerance = LOSS_TOLERANCE,
): NamedComparison {
  const compare = (on: ComparedDevices) =>
    compared(name, { tolerance }, async (where) => [await lossesOf(on[where], config, options)]);
  return { name, compare };
}

/**
 * Results of every op and its gradients, at small sizes and at large ones, products with weights of every type, and losses along a few
 * steps of training of small models.
 */
export const COMPARISONS: readonly NamedComparison[] = [
  ...Object.entries({ ...OP_CASES, ...LARGE_OP_CASES }).map(ofOp),
  ...Object.entries(VALUE_CASES).map(ofValues),
  ...Object.entries(MODELS).map(([architecture, config]) => ofTraining(`training of ${architecture}`, config)),
  ofTraining("training with gradients that are freed", POST_NORM, { freeGradients: true }),
  ofTraining("training in parts of batches, computed again", POST_NORM, { microBatchSize: 2, recompute: true }),
  ofTraining("training in bf16", POST_NORM, { computeType: "bf16" }, ROUNDED_LOSS_TOLERANCE),
];

async function lossesOf(backend: Backend, config: ConfigJson, settings: Partial<TrainOptions>): Promise<Float32Array> {
  const model = modelFromConfig(config);
  const student = initialize(backend, model, 1);
  try {
    const random = new Random(2);
    const ids = Int32Array.from({ length: STEPS * BATCH * LENGTH + 1 }, () =>
      Math.floor(model.vocabSize * random.uniform() ** 2),
    );
    const sequences = new Sequences(TokenStream.of(ids, "check"), LENGTH);
    const options = {
      ...defaultTrainOptions(COMMON.hidden_size, STEPS * BATCH * LENGTH, LENGTH, BATCH),
      computeType: "f32" as const,
      ...settings,
    };
    const losses: number[] = [];
    const onProgress = ({ record }: { readonly record: { readonly loss: number } }) => void losses.push(record.loss);
    await train({ backend, student, sequences, options, objective: crossEntropyObjective, onProgress });
    return Float32Array.from(losses);
  } finally {
    student.free();
  }
}
