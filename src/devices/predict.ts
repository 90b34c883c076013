import { blockSize, dataBytes, type StoredDType } from "../ggml/dtype.js";
import { activeWeights, cacheBytes as cacheBytesOf, largestSize, type Model, sizeOf } from "../models/index.js";
import { ggufShapes, recipeFacts } from "../quantize/content.js";
import type { FileKind } from "../quantize/index.js";
import { typesFor } from "../quantize/recipes.js";
import type { DeviceProfile } from "./profiles.js";

/** Bytes that a model takes when it runs. */
export interface MemoryPrediction {
  readonly weightBytes: number;
  readonly cacheBytes: number;
  /** What is passed from one operation to the next. */
  readonly bufferBytes: number;
  readonly totalBytes: number;
}

/** Tokens of a prompt that llama.cpp computes at once. */
const BATCH = 512;
/** What it rounds contexts up to. */
const CONTEXT_STEP = 256;
const F32 = 4;

/** A model's tensors, which many candidates ask for. */
const shapesOf = (model: Model): ReturnType<typeof ggufShapes> => {
  const known = SHAPES.get(model) ?? ggufShapes(model);
  SHAPES.set(model, known);
  return known;
};
const SHAPES = new WeakMap<Model, ReturnType<typeof ggufShapes>>();

/** The tensors of a model in a file of a kind. */
export function storedTensors(model: Model, kind: FileKind): { name: string; dtype: StoredDType; bytes: number }[] {
  const shapes = shapesOf(model);
  const types = typesFor(kind, shapes, recipeFacts(model, true));
  return shapes.map(({ name, shape }) => {
    const dtype = types.get(name) ?? "f32";
    const columns = shape.at(-1) ?? 1;
    const elements = shape.reduce((a, b) => a * b, 1);
    const filled =
      columns % blockSize(dtype) === 0
        ? elements
        : (elements / columns) * Math.ceil(columns / blockSize(dtype)) * blockSize(dtype);
    return { name, dtype, bytes: dataBytes(dtype, filled) };
  });
}

/**
 * What llama.cpp takes for one sequence of a context: weights, keys and values in f16, and buffers for a batch of 512, of which the
 * logits are the largest with flash attention, or in a small vocabulary those of a layer.
 */
export function predictMemory(model: Model, kind: FileKind, contextLength: number): MemoryPrediction {
  const weightBytes = storedTensors(model, kind).reduce((sum, { bytes }) => sum + bytes, 0);
  const cacheBytes = cacheBytesOf(model, CONTEXT_STEP * Math.ceil(contextLength / CONTEXT_STEP));
  const batch = Math.min(BATCH, contextLength);
  const [hidden, ffn] = [sizeOf("hidden", model.sizes), largestSize(model, "ffn")];
  const mask = contextLength / 2; // in 16 bits
  const bufferBytes = batch * F32 * Math.max(model.vocabSize + 2 * hidden, 3 * ffn + 4 * hidden + mask);
  return { weightBytes, cacheBytes, bufferBytes, totalBytes: weightBytes + cacheBytes + bufferBytes };
}

export interface SpeedPrediction {
  /** Tokens written in a second, one sequence, with half of the context filled. */
  readonly tokensPerSecond: number;
  readonly boundBy: "bandwidth" | "compute";
}

/** Of the memory's rate, what an engine reaches where it reads weights once for each token. */
const BANDWIDTH_SHARE: Readonly<Record<DeviceProfile["kind"], number>> = {
  ...{ phone: 0.6, board: 0.6, laptop: 0.7, gpu: 0.75, browser: 0.8 },
};
/** Seconds that starting an operation takes, of which a layer has about 16. */
const START_SECONDS: Readonly<Record<DeviceProfile["kind"], number>> = {
  ...{ phone: 3e-6, board: 4e-6, laptop: 2e-6, gpu: 3e-6, browser: 5e-6 },
};
const OPERATIONS_PER_LAYER = 16;
/**
 * Of the rate at quantized weights, what attention reaches: on processors llama.cpp reads keys and values in f16 anew for each query
 * head (about a fifth was seen beside q4_k, one thread of a Zen 5).
 */
const ATTENTION_SHARE: Readonly<Record<DeviceProfile["kind"], number>> = {
  ...{ phone: 0.2, board: 0.2, laptop: 0.2, gpu: 0.5, browser: 0.2 },
};
/** Seconds that choosing a token and handing it on takes, and those of each word of the vocabulary that is looked at. */
const [TOKEN_SECONDS, WORD_SECONDS] = [3e-4, 1e-8];

/** What an engine reaches on a device. */
interface Rates {
  readonly bandwidth: number;
  readonly compute: (dtype: StoredDType) => number;
  readonly rowSeconds: number;
  readonly attention: number;
  readonly startSeconds: number;
}

function ratesOf({ kind, bandwidth, compute, measured }: DeviceProfile): Rates {
  if (measured !== undefined) {
    const known = Object.entries(measured.computeOf) as [StoredDType, number][];
    // one that was not measured is taken for the type that is nearest in size
    const nearest = (dtype: StoredDType) =>
      known.reduce(
        (best, one) => (sizeGap(one[0], dtype) < sizeGap(best[0], dtype) ? one : best),
        known[0] ?? ["f16", compute],
      );
    const { attentionCompute: attention, startSeconds, rowSeconds } = measured;
    return { bandwidth, attention, startSeconds, rowSeconds, compute: (dtype) => nearest(dtype)[1] };
  }
  return {
    ...{ bandwidth: bandwidth * BANDWIDTH_SHARE[kind], compute: () => compute, rowSeconds: 0 },
    ...{ attention: compute * ATTENTION_SHARE[kind], startSeconds: START_SECONDS[kind] },
  };
}

const bytesPerWeight = (dtype: StoredDType): number => dataBytes(dtype, blockSize(dtype)) / blockSize(dtype);
const sizeGap = (a: StoredDType, b: StoredDType): number => Math.abs(bytesPerWeight(a) - bytesPerWeight(b));

/**
 * How fast a device writes: each token reads all weights (but the rows of the embedding it does not need) and the keys and values
 * before it, and takes two operations a weight. Whichever takes longer counts, tensor by tensor (the roofline model of Williams,
 * Waterman and Patterson, 2009).
 */
export function predictSpeed(
  model: Model,
  kind: FileKind,
  device: DeviceProfile,
  contextLength: number,
): SpeedPrediction {
  const rates = ratesOf(device);
  const shapes = new Map(shapesOf(model).map(({ name, shape }) => [name, shape]));
  const read = storedTensors(model, kind).filter(({ name }) => name !== "token_embd.weight" || model.tiedEmbeddings);
  let [reading, computing] = [0, 0];
  let seconds =
    OPERATIONS_PER_LAYER * model.layerCount * rates.startSeconds + TOKEN_SECONDS + WORD_SECONDS * model.vocabSize;
  for (const { name, dtype, bytes } of read) {
    const shape = shapes.get(name) ?? [];
    const elements = shape.reduce((a, b) => a * b, 1);
    const rows = elements / (shape.at(-1) ?? 1);
    const memory = bytes / rates.bandwidth;
    const compute = (2 * elements) / rates.compute(dtype) + rows * rates.rowSeconds;
    reading += memory;
    computing += compute;
    seconds += Math.max(memory, compute);
  }
  const past = contextLength / 2;
  const cache = cacheBytesOf(model, past) / rates.bandwidth;
  const attention = model.cost(past).operations / rates.attention;
  reading += cache;
  computing += attention;
  seconds += Math.max(cache, attention);
  return { tokensPerSecond: 1 / seconds, boundBy: reading >= NEARLY * computing ? "bandwidth" : "compute" };
}

/** What was measured reads and computes at once: memory bounds it where it needs about as long. */
const NEARLY = 0.8;

/**
 * Loss that language models of a size come to beyond what more data or parameters could not take away: 406.4 / N^0.34 nats a token
 * (Hoffmann et al. 2022, arXiv 2203.15556, eq. 10 and its fit).
 */
const reducibleLoss = (parameters: number): number => 406.4 / parameters ** 0.34;

/** Of the difference that scaling laws see between two sizes, what distillation leaves (arXiv 2407.14679: a pruned and distilled model is ahead of its size). */
const AFTER_DISTILLATION = 0.5;

/**
 * Rise of the perplexity by quantizing a Llama of 7 B parameters, in nats a token: the logarithm of the ratios that llama.cpp's
 * quantizer lists (f16: 5.9066). Types that it does not list stand between their neighbours by bits.
 */
const QUANTIZATION_LOSS: Readonly<Partial<Record<FileKind, number>>> = {
  ...{ f32: 0, f16: 0, bf16: 0, q8_0: 0.0001, q6_k: 0.0007, q5_k_m: 0.0024, q5_k_s: 0.006 },
  ...{ q4_k_m: 0.009, q4_k_s: 0.0193, iq4_xs: 0.0185, q3_k_m: 0.0404, iq3_xxs: 0.1, q2_k: 0.137 },
};
/** Kinds of files to weigh, from large to small. */
export const WEIGHED_KINDS = Object.keys(QUANTIZATION_LOSS).filter(
  (kind) => kind !== "f32" && kind !== "bf16",
) as FileKind[];
/** Smaller models have less to spare: the loss by quantizing grows about as so much power of the size (the same list, 7 B and 13 B). */
const SIZE_POWER = 0.3;

/** Nats a token that a smaller model in a type is expected to be behind the original. */
export function predictLoss(original: Model, smaller: Model, kind: FileKind): number {
  const [before, after] = [original, smaller].map((model) => Math.max(1, activeWeights(model, { head: false })));
  const pruning = AFTER_DISTILLATION * (reducibleLoss(after ?? 1) - reducibleLoss(before ?? 1));
  return Math.max(0, pruning) + (QUANTIZATION_LOSS[kind] ?? 0) * (7e9 / (after ?? 1)) ** SIZE_POWER;
}
