import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import { Random } from "../system/random.js";
import { ops } from "../tensor/index.js";
import { sampledCrossEntropy } from "./losses.js";
import type { Position, SparseTargets, TargetValues } from "./sparse-targets.js";

export interface SampledOptions {
  /** How many times each position's distribution is sampled. */
  readonly samples: number;
  readonly temperature: number;
  readonly seed: number;
  /** Token ids are below it. */
  readonly vocabSize: number;
}

/**
 * n samples have about n^0.7 distinct ids (16 of 50, 6 of 12: SmolLM2-135M on WikiText-2). Only to estimate the space on the disk.
 */
const DISTINCT_EXPONENT = 0.7;
/** The widest integers that a buffer reads and writes. */
const MOST_PAIR_BYTES = 6;

/**
 * Samples of the teacher's distribution, drawn with replacement: distinct ids, with the share of the samples that each has. The shares
 * are an unbiased estimate of the distribution, and so is the loss's gradient of that of the forward KL divergence (arXiv 2503.16870,
 * which draws from q ∝ p^t with weights p/q; here t = 1, where a weight is a count, and estimates without normalization are
 * unbiased). The random numbers follow from the seed and the position, so the order of computing does not matter.
 */
export function sampledTargets({ samples, temperature, seed, vocabSize }: SampledOptions): SparseTargets {
  const layout = layoutOf(samples, vocabSize);
  const { slots, pairBytes } = layout;
  return {
    slots,
    identity: ["sampled", samples, temperature, seed],
    expectedBytes: samples ** DISTINCT_EXPONENT * pairBytes,
    divergence: "forward-kl",
    temperature,
    lossName: "sampledCrossEntropy",
    declare: (g, logits) => {
      const columns = logits.shape.at(-1);
      if (columns !== vocabSize)
        throw new CoppiceError(`targets of ${vocabSize} tokens cannot be sampled from logits of ${columns}`);
      const probabilities = g.output(ops.softmax(g, logits, { scale: 1 / temperature }));
      return (positions) => {
        const p = g.read(probabilities);
        const ids = new Int32Array(positions.length * slots);
        const values = new Float32Array(positions.length * slots);
        positions.forEach((position, row) => {
          const range = [row * slots, (row + 1) * slots] as const;
          sampleInto(
            { ids: ids.subarray(...range), values: values.subarray(...range) },
            p.subarray(row * vocabSize, (row + 1) * vocabSize),
            samples,
            randomAt(seed, position),
          );
        });
        return { ids, values };
      };
    },
    encode: (targets) => encode(targets, layout),
    decode: (entry, positions) => decode(entry, positions, layout),
    loss: (g, studentLogits, targets) => sampledCrossEntropy(g, studentLogits, targets, temperature),
  };
}

/** Separates samples from the other uses of a run's seed, which have smaller numbers. */
const FIRST_STREAM = 2 ** 31;

const randomAt = (seed: number, { sequence, offset }: Position): Random =>
  new Random(new Random(seed, FIRST_STREAM + sequence).uint32(), offset);

/** Probabilities are summed in blocks, which a processor does several at a time; only those with samples are read again. */
const BLOCK = 32;

/**
 * Draws samples of a distribution by inverting its cumulative sum.
 * @param targets one position's, zeros; receives distinct ids in ascending order with their shares, or NaN if `p` is not finite
 * @param p [vocab], proportional to the probabilities
 */
export function sampleInto(targets: TargetValues, p: Float32Array, samples: number, random: Random): void {
  const sums = blockSums(p);
  const total = sums.reduce((a, b) => a + b, 0);
  if (!(total > 0 && total < Number.POSITIVE_INFINITY)) {
    targets.values.fill(Number.NaN);
    return;
  }
  const points = new Float64Array(samples);
  for (let i = 0; i < samples; i++) points[i] = random.uniform() * total;
  points.sort();
  let drawn = 0;
  let slot = 0;
  let point = elementAt(points, 0);
  let blockEnd = 0;
  for (let block = 0; drawn < samples; block++) {
    let sum = blockEnd;
    blockEnd += elementAt(sums, block); // as in the total, so that it exceeds every point at last
    const last = Math.min((block + 1) * BLOCK, p.length) - 1;
    for (let id = block * BLOCK; point < blockEnd; id++) {
      sum += elementAt(p, id);
      const before = drawn;
      while (point < (id === last ? blockEnd : sum)) point = points[++drawn] ?? Number.POSITIVE_INFINITY;
      if (drawn === before) continue;
      targets.ids[slot] = id;
      targets.values[slot] = (drawn - before) / samples;
      slot++;
    }
  }
}

function blockSums(p: Float32Array): Float64Array {
  const sums = new Float64Array(Math.ceil(p.length / BLOCK));
  for (let block = 0; block < sums.length; block++) {
    const end = Math.min((block + 1) * BLOCK, p.length);
    let sum = 0;
    for (let id = block * BLOCK; id < end; id++) sum += elementAt(p, id);
    sums[block] = sum;
  }
  return sums;
}

/**
 * How samples are stored: for each position, pairs of an id and a count until the counts sum to the number of samples. A pair is
 * one integer, id · samples + count - 1.
 */
interface Layout {
  readonly samples: number;
  /** The most ids that a position may have. */
  readonly slots: number;
  readonly pairBytes: number;
}

function layoutOf(samples: number, vocabSize: number): Layout {
  const pairBytes = Math.max(1, Math.ceil(Math.log2(samples * vocabSize) / 8));
  if (pairBytes > MOST_PAIR_BYTES)
    throw new CoppiceError(`${samples} samples of ${vocabSize} tokens cannot be stored: take fewer samples`);
  return { samples, slots: Math.min(samples, vocabSize), pairBytes };
}

function encode({ ids, values }: TargetValues, { samples, pairBytes }: Layout): Uint8Array {
  const used = values.reduce((count, value) => count + (value > 0 ? 1 : 0), 0);
  const entry = Buffer.alloc(used * pairBytes);
  let at = 0;
  values.forEach((value, i) => {
    if (value === 0) return;
    const count = Math.round(value * samples);
    at = entry.writeUIntLE(elementAt(ids, i) * samples + count - 1, at, pairBytes);
  });
  return entry;
}

function decode(entry: Uint8Array, positions: number, { samples, slots, pairBytes }: Layout): TargetValues {
  const bytes = Buffer.from(entry.buffer, entry.byteOffset, entry.byteLength);
  const ids = new Int32Array(positions * slots);
  const values = new Float32Array(positions * slots);
  let at = 0;
  for (let position = 0; position < positions; position++) {
    for (let drawn = 0, slot = position * slots; drawn < samples; slot++, at += pairBytes) {
      const pair = bytes.readUIntLE(at, pairBytes);
      const count = (pair % samples) + 1;
      ids[slot] = Math.floor(pair / samples);
      values[slot] = count / samples;
      drawn += count;
    }
  }
  return { ids, values };
}
