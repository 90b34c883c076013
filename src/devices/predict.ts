import { blockSize, dataBytes, type StoredDType } from "../ggml/dtype.js";
import { activeWeights, cacheBytes, hasWindowsInLlamaCpp, largestSize, type Model, sizeOf } from "../models/index.js";
import { ggufShapes, recipeFacts } from "../quantize/content.js";
import type { FileKind } from "../quantize/index.js";
import { type TensorShape, typesFor } from "../quantize/tensor-types.js";
import { elementAt } from "../system/arrays.js";
import { elementCount } from "../tensor/index.js";
import type { DeviceProfile } from "./profiles.js";

/** The memory that a model takes when it runs. */
export interface MemoryPrediction {
  readonly weightBytes: number;
  readonly cacheBytes: number;
  /** For intermediate results. */
  readonly bufferBytes: number;
  readonly totalBytes: number;
}

/** Prompt tokens that llama.cpp computes at once. */
const BATCH = 512;
/** llama.cpp rounds contexts up to a multiple of this. */
const CONTEXT_STEP = 256;
const F32_BYTES = 4;

/** A tensor in a GGUF file. */
interface StoredTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: StoredDType;
  readonly bytes: number;
}

/** What is known of a model's files: each of the predictions asks for it. */
interface StoredFiles {
  readonly shapes: readonly TensorShape[];
  readonly byKind: Map<FileKind, readonly StoredTensor[]>;
}

const filesOfModels = new WeakMap<Model, StoredFiles>();

function filesOf(model: Model): StoredFiles {
  const known = filesOfModels.get(model);
  if (known !== undefined) return known;
  const files: StoredFiles = { shapes: ggufShapes(model), byKind: new Map() };
  filesOfModels.set(model, files);
  return files;
}

/** The tensors of a model in a file of a kind. */
export function storedTensors(model: Model, kind: FileKind): readonly StoredTensor[] {
  const files = filesOf(model);
  const tensors = files.byKind.get(kind) ?? tensorsIn(model, kind, files.shapes);
  files.byKind.set(kind, tensors);
  return tensors;
}

function tensorsIn(model: Model, kind: FileKind, shapes: readonly TensorShape[]): StoredTensor[] {
  const types = typesFor(kind, shapes, recipeFacts(model, true));
  return shapes.map(({ name, shape }) => {
    const dtype = types.get(name) ?? "f32";
    const columns = shape.at(-1) ?? 1;
    const rows = elementCount(shape) / columns;
    const filledColumns = Math.ceil(columns / blockSize(dtype)) * blockSize(dtype);
    return { name, shape, dtype, bytes: dataBytes(dtype, rows * filledColumns) };
  });
}

/**
 * The memory that llama.cpp takes for one sequence: weights, keys and values in f16, and buffers for a batch of 512. With flash
 * attention the logits have the largest buffer, or with a small vocabulary a layer's intermediate results.
 */
export function predictMemory(model: Model, kind: FileKind, contextLength: number): MemoryPrediction {
  const weightBytes = storedTensors(model, kind).reduce((sum, { bytes }) => sum + bytes, 0);
  const cache = cacheBytes(model, CONTEXT_STEP * Math.ceil(contextLength / CONTEXT_STEP));
  const batch = Math.min(BATCH, contextLength);
  const [hidden, ffn] = [sizeOf("hidden", model.sizes), largestSize(model, "ffn")];
  const mask = contextLength / 2; // in 16 bits
  const bufferBytes = batch * F32_BYTES * Math.max(model.vocabSize + 2 * hidden, 3 * ffn + 4 * hidden + mask);
  return { weightBytes, cacheBytes: cache, bufferBytes, totalBytes: weightBytes + cache + bufferBytes };
}

export interface SpeedPrediction {
  /** Generated tokens per second for one sequence, with half of the context filled. */
  readonly tokensPerSecond: number;
  readonly boundBy: "bandwidth" | "compute";
}

type ByDeviceKind = Readonly<Record<DeviceProfile["kind"], number>>;

/** The share of the memory bandwidth that an engine reaches when it reads the weights once for each token. */
const BANDWIDTH_SHARE: ByDeviceKind = { phone: 0.6, board: 0.6, laptop: 0.7, gpu: 0.75, browser: 0.8 };
/** Seconds that it takes to start an operation; a layer has about 16. */
const START_SECONDS: ByDeviceKind = { phone: 3e-6, board: 4e-6, laptop: 2e-6, gpu: 3e-6, browser: 5e-6 };
const OPERATIONS_PER_LAYER = 16;
/**
 * The share of the rate for quantized weights that attention reaches: on processors llama.cpp reads keys and values in f16 again for
 * each query head (about a fifth of the rate for q4_k was measured on one thread of a Zen 5).
 */
const ATTENTION_SHARE: ByDeviceKind = { phone: 0.2, board: 0.2, laptop: 0.2, gpu: 0.5, browser: 0.2 };
/** Seconds that sampling and returning a token takes, and sampling for each entry of the vocabulary. */
const [TOKEN_SECONDS, VOCABULARY_SECONDS] = [3e-4, 1e-8];

/** The rates that an engine reaches on a device. */
interface Rates {
  readonly bandwidth: number;
  readonly compute: (dtype: StoredDType) => number;
  readonly rowSeconds: number;
  readonly attention: number;
  readonly startSeconds: number;
}

function ratesOf({ kind, bandwidth, compute, measured }: DeviceProfile): Rates {
  if (measured !== undefined) {
    const rates = Object.entries(measured.computeOf) as [StoredDType, number][];
    // for a type that was not measured, the rate of the one nearest in size
    const nearest = (dtype: StoredDType) =>
      rates.reduce(
        (best, rate) => (sizeGap(rate[0], dtype) < sizeGap(best[0], dtype) ? rate : best),
        rates[0] ?? ["f16", compute],
      );
    const { attentionCompute: attention, startSeconds, rowSeconds } = measured;
    return { bandwidth, attention, startSeconds, rowSeconds, compute: (dtype) => nearest(dtype)[1] };
  }
  return {
    bandwidth: bandwidth * BANDWIDTH_SHARE[kind],
    compute: () => compute,
    rowSeconds: 0,
    attention: compute * ATTENTION_SHARE[kind],
    startSeconds: START_SECONDS[kind],
  };
}

const bytesPerWeight = (dtype: StoredDType): number => dataBytes(dtype, blockSize(dtype)) / blockSize(dtype);
const sizeGap = (a: StoredDType, b: StoredDType): number => Math.abs(bytesPerWeight(a) - bytesPerWeight(b));

/**
 * How fast a device generates: each token reads all weights (of the embedding only its row) and the keys and values before it, and
 * takes two operations per weight. For each tensor the slower of reading and computing counts (the roofline model of Williams,
 * Waterman and Patterson, 2009).
 */
export function predictSpeed(
  model: Model,
  kind: FileKind,
  device: DeviceProfile,
  contextLength: number,
): SpeedPrediction {
  const rates = ratesOf(device);
  const read = storedTensors(model, kind).filter(({ name }) => name !== "token_embd.weight" || model.tiedEmbeddings);
  let [reading, computing] = [0, 0];
  let seconds =
    OPERATIONS_PER_LAYER * model.layerCount * rates.startSeconds + TOKEN_SECONDS + VOCABULARY_SECONDS * model.vocabSize;
  for (const { shape, dtype, bytes } of read) {
    const elements = elementCount(shape);
    const rows = elements / (shape.at(-1) ?? 1);
    const memory = bytes / rates.bandwidth;
    const compute = (2 * elements) / rates.compute(dtype) + rows * rates.rowSeconds;
    reading += memory;
    computing += compute;
    seconds += Math.max(memory, compute);
  }
  const past = contextLength / 2;
  const cache = cacheBytes(model, past) / rates.bandwidth;
  const attention = model.cost(past, { hasWindows: hasWindowsInLlamaCpp(model) }).operations / rates.attention;
  reading += cache;
  computing += attention;
  seconds += Math.max(cache, attention);
  return { tokensPerSecond: 1 / seconds, boundBy: reading >= BANDWIDTH_BOUND * computing ? "bandwidth" : "compute" };
}

/** Measured rates read and compute at once, so memory is the limit if reading takes at least this share of the computing time. */
const BANDWIDTH_BOUND = 0.8;

/**
 * The part of a language model's loss that more parameters would remove: 406.4 / N^0.34 nats per token (Hoffmann et al. 2022,
 * arXiv 2203.15556, eq. 10 and its fit).
 */
const reducibleLoss = (parameters: number): number => 406.4 / parameters ** 0.34;

/** The share of the scaling law's difference between two sizes that distillation leaves: pruned and distilled models are ahead of their size (arXiv 2407.14679). */
const AFTER_DISTILLATION = 0.5;

/**
 * Increase of a 7 B Llama's loss by quantizing, in nats per token: the logarithm of the ratios of perplexities that llama.cpp's
 * quantizer lists (f16: 5.9066). Types that it does not list are interpolated by their bits.
 */
const QUANTIZATION_LOSS: Readonly<Partial<Record<FileKind, number>>> = {
  f32: 0,
  f16: 0,
  bf16: 0,
  q8_0: 0.0001,
  q6_k: 0.0007,
  q5_k_m: 0.0024,
  q5_k_s: 0.006,
  q4_k_m: 0.009,
  q4_k_s: 0.0193,
  iq4_xs: 0.0185,
  q3_k_m: 0.0404,
  iq3_xxs: 0.1,
  q2_k: 0.137,
};
/** Kinds of files to consider, from large to small. */
export const CANDIDATE_KINDS = Object.keys(QUANTIZATION_LOSS).filter(
  (kind) => kind !== "f32" && kind !== "bf16",
) as FileKind[];
/** Smaller models lose more by quantizing: about by this power of the ratio of sizes (the same list, 7 B and 13 B). */
const SIZE_POWER = 0.3;

/** The increase of the loss that is expected from cutting and quantizing a model, in nats per token. */
export function predictLoss(original: Model, smaller: Model, kind: FileKind): number {
  const weightsOf = (model: Model) => Math.max(1, activeWeights(model, { head: false }));
  const [before, after] = [weightsOf(original), weightsOf(smaller)];
  const pruning = AFTER_DISTILLATION * (reducibleLoss(after) - reducibleLoss(before));
  return Math.max(0, pruning) + quantizationLoss(smaller, kind) * (7e9 / after) ** SIZE_POWER;
}

/** That of a 7 B model: as measured, or for other kinds by its logarithm between those of the kinds next in size. */
function quantizationLoss(model: Model, kind: FileKind): number {
  const known = QUANTIZATION_LOSS[kind];
  if (known !== undefined) return known;
  const bytesOf = (one: FileKind) => storedTensors(model, one).reduce((sum, { bytes }) => sum + bytes, 0);
  const measured = (Object.entries(QUANTIZATION_LOSS) as [FileKind, number][])
    .filter(([, loss]) => loss > 0)
    .map(([one, loss]) => ({ bytes: bytesOf(one), loss: Math.log(loss) }))
    .sort((a, b) => a.bytes - b.bytes);
  const bytes = bytesOf(kind);
  const next = measured.findIndex((one) => one.bytes >= bytes);
  const above = Math.min(Math.max(1, next < 0 ? measured.length - 1 : next), measured.length - 1);
  const [low, high] = [elementAt(measured, above - 1), elementAt(measured, above)];
  const slope = (high.loss - low.loss) / Math.max(1, high.bytes - low.bytes);
  return Math.exp(low.loss + slope * (bytes - low.bytes));
}
