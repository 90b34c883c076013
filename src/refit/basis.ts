import { type Matrix, meanDiagonal, symmetricEigen, zeroMatrix } from "../linear-algebra/index.js";
import type { Model } from "../models/index.js";
import { elementAt } from "../system/arrays.js";

/** How the original's residual stream becomes a narrower one. */
export interface Basis {
  /** The narrower stream is the original's times this: [hidden, narrower hidden]. */
  readonly write: Matrix;
  /** What reads the normalized stream is multiplied by this from the right: [hidden, narrower hidden]. Undefined where channels are only selected. */
  readonly read: Matrix | undefined;
  /** So many channels, the first ones, have a negative final gain. */
  readonly negative: number;
}

/** The basis that keeps some channels as they are. */
export function selectionBasis(hidden: number, kept: Uint32Array): Basis {
  const write = zeroMatrix(hidden, kept.length);
  kept.forEach((channel, i) => {
    write.data[channel * kept.length + i] = 1;
  });
  return { write, read: undefined, negative: 0 };
}

/**
 * Why a model's residual stream cannot be rotated; undefined if it can. Rotating takes RMS norms, whose gains can be moved into the
 * matrices that read them (SliceGPT, arXiv 2401.15024, section 3.2), and nothing between a block and the stream.
 */
export function whyNotRotated({ steps, finalNorm, positions }: Model): string | undefined {
  if (steps.some(({ isNormedAfter }) => isNormedAfter)) return "it has norms after its blocks";
  if (finalNorm === undefined || steps.some(({ norm }) => norm === undefined)) return "its norms subtract a mean";
  if (positions !== undefined) return "it has learned positions";
  return undefined;
}

export interface RotationInputs {
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
  const { moments, gain, tied, hidden: width, embeddingGram } = inputs;
  const size = gain.length;
  const factors = tied ? gain.map((value) => Math.sqrt(Math.abs(value))) : new Float32Array(size).fill(1);
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
  const scale = Math.sqrt(meanDiagonal(embeddingGram) / meanProjected(embeddingGram, write));
  return { write: scaled(write, scale), read: scaled(read, 1 / scale), negative: fixed.length };
}

/** Eigenvectors of the factored moments, restricted to some channels: row by row, leading first. */
async function principalComponents(moments: Matrix, factors: Float32Array, channels: readonly number[]): Promise<Matrix> {
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

/** The mean diagonal of r' a r. */
function meanProjected(a: Matrix, r: Matrix): number {
  let trace = 0;
  for (let i = 0; i < a.rows; i++)
    for (let j = 0; j < a.rows; j++) {
      let dot = 0;
      for (let k = 0; k < r.columns; k++) dot += (r.data[i * r.columns + k] as number) * (r.data[j * r.columns + k] as number);
      trace += (a.data[i * a.columns + j] as number) * dot;
    }
  return trace / r.columns;
}

const scaled = (matrix: Matrix, factor: number): Matrix => ({ ...matrix, data: matrix.data.map((value) => value * factor) });
