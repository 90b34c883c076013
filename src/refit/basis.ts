import type { Backend } from "../ggml/device.js";
import { type Matrix, meanDiagonal, multiply, symmetricEigen, zeroMatrix } from "../linear-algebra/index.js";
import type { ModelTensors } from "../models/index.js";
import { carriedAxes } from "../models/wrappers.js";
import { readMatrix } from "../prune/matrices.js";
import { elementAt } from "../system/arrays.js";

/** How the original's residual stream becomes a narrower one. */
export interface Basis {
  /** The narrower stream is the original's times this: [hidden, narrower hidden]. */
  readonly write: Matrix;
  /** What reads the normalized stream is multiplied by this from the right: [hidden, narrower hidden]. Undefined where channels are only selected. */
  readonly read: Matrix | undefined;
  /** The factor on the whole stream. */
  readonly scale: number;
  /** So many channels, the first ones, have a negative final gain. */
  readonly negative: number;
}

/** The basis that keeps some channels as they are. */
export function selectionBasis(hidden: number, kept: Uint32Array): Basis {
  const write = zeroMatrix(hidden, kept.length);
  kept.forEach((channel, i) => {
    write.data[channel * kept.length + i] = 1;
  });
  return { write, read: undefined, scale: 1, negative: 0 };
}

/**
 * Why a model's residual stream cannot be rotated into fewer channels; undefined if it can. Rotating takes RMS norms, whose gains can be
 * moved into the matrices that read them (SliceGPT, arXiv 2401.15024, section 3.2), and nothing between a block and the stream.
 */
export function whyNotRotated({ model, source, carried }: ModelTensors, width: number): string | undefined {
  const { steps, finalNorm, positions, tiedEmbeddings } = model;
  for (const name of carried?.tensors.keys() ?? [])
    if (carriedAxes(model.config, name)?.includes("hidden")) return "other parts of the model write into it";
  if (steps.some(({ isNormedAfter }) => isNormedAfter)) return "it has norms after its blocks";
  if (finalNorm === undefined || steps.some(({ norm }) => norm === undefined)) return "its norms subtract a mean";
  if (positions !== undefined) return "it has learned positions";
  const fixed = tiedEmbeddings
    ? readMatrix(source, finalNorm.gain).data.filter((gain) => gain + finalNorm.offset <= 0)
    : [];
  return fixed.length >= width ? `${fixed.length} gains of its final norm are not positive` : undefined;
}

export interface RotationInputs {
  readonly backend: Backend;
  /** Second moments of the normalized stream, [hidden, hidden]. */
  readonly moments: Matrix;
  /** The final norm's gain. */
  readonly gain: Float32Array;
  readonly tied: boolean;
  readonly hidden: number;
  /** E'E of the embeddings, [hidden, hidden]. */
  readonly embeddingGram: Matrix;
}

/**
 * The basis of the stream's leading principal components. Where the head is the embedding, the final gain g lies between the two:
 * components are of t · n with t = √|g|, what writes is multiplied by t and what reads divided by it, so that the head is exact;
 * channels whose gain is not positive stay axes of their own, with a negative gain. The stream is scaled so that the embeddings keep
 * their size: training then takes steps of the same relative size.
 * @returns undefined when too few channels have a positive gain
 */
export async function rotationBasis(inputs: RotationInputs): Promise<Basis | undefined> {
  const { backend, moments, gain, tied, hidden: width, embeddingGram } = inputs;
  const size = gain.length;
  const factors = tied ? rootsOf(gain) : new Float32Array(size).fill(1);
  const channels = [...gain.keys()];
  const fixed = tied ? channels.filter((i) => elementAt(gain, i) <= 0) : [];
  if (fixed.length >= width) return undefined;
  const others = channels.filter((i) => !fixed.includes(i));
  const vectors = await principalComponents(moments, factors, others);
  const write = zeroMatrix(size, width);
  const read = zeroMatrix(size, width);
  const set = (channel: number, column: number, value: number): void => {
    write.data[channel * width + column] = value * elementAt(factors, channel);
    read.data[channel * width + column] = value / elementAt(factors, channel);
  };
  fixed.forEach((channel, i) => {
    set(channel, i, 1);
  });
  for (let i = fixed.length; i < width; i++)
    others.forEach((channel, j) => {
      set(channel, i, elementAt(vectors.data, (i - fixed.length) * vectors.columns + j));
    });
  const projected = await multiply(backend, embeddingGram, write);
  const meanSquare = dot(projected.data, write.data) / width; // the mean diagonal of R' E'E R
  const scale = Math.sqrt(meanDiagonal(embeddingGram) / meanSquare);
  return { write: scaled(write, scale), read: scaled(read, 1 / scale), scale, negative: fixed.length };
}

/** What was computed of moments, by their numbers: the candidates of a search have the same. */
const computed = new WeakMap<
  Float32Array,
  { readonly factors: Float32Array; readonly channels: readonly number[]; readonly vectors: Matrix }
>();

/** Eigenvectors of the factored moments, restricted to some channels: row by row, leading first. */
async function principalComponents(
  moments: Matrix,
  factors: Float32Array,
  channels: readonly number[],
): Promise<Matrix> {
  const known = computed.get(moments.data);
  const isSame =
    known !== undefined &&
    known.channels.join() === channels.join() &&
    known.factors.every((factor, i) => factor === factors[i]);
  if (isSame) return known.vectors;
  const vectors = await eigenvectors(moments, factors, channels);
  computed.set(moments.data, { factors, channels, vectors });
  return vectors;
}

async function eigenvectors(moments: Matrix, factors: Float32Array, channels: readonly number[]): Promise<Matrix> {
  const size = channels.length;
  const restricted = zeroMatrix(size, size);
  channels.forEach((a, i) => {
    channels.forEach((b, j) => {
      restricted.data[i * size + j] =
        elementAt(moments.data, a * moments.columns + b) * elementAt(factors, a) * elementAt(factors, b);
    });
  });
  return (await symmetricEigen(restricted)).vectors;
}

/** Smallest factor, as a share of the mean: what reads a channel is divided by it. */
const SMALLEST_FACTOR = 1e-3;

/** √|gain|, but nowhere next to zero. */
function rootsOf(gain: Float32Array): Float32Array {
  const roots = gain.map((value) => Math.sqrt(Math.abs(value)));
  const smallest = (SMALLEST_FACTOR * roots.reduce((a, b) => a + b, 0)) / roots.length;
  return roots.map((value) => Math.max(value, smallest));
}

const dot = (a: Float32Array, b: Float32Array): number => a.reduce((sum, value, i) => sum + value * elementAt(b, i), 0);

const scaled = (matrix: Matrix, factor: number): Matrix => ({
  ...matrix,
  data: matrix.data.map((value) => value * factor),
});
