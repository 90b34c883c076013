import { CoppiceError } from "../system/errors.js";
import { Permutation } from "../system/random.js";
import type { TokenStream } from "./tokens.js";

/** The token ids of a batch and, for every position, the id that follows. */
export interface Batch {
  /** [batch · sequenceLength] */
  readonly tokens: Int32Array;
  readonly targets: Int32Array;
}

/**
 * A stream split into packed sequences. For each of the `length` tokens of a sequence the next one is predicted, so that every
 * token of the stream but the first is predicted exactly once. A stream's begin token replaces the first token of each sequence.
 */
export class Sequences {
  readonly count: number;

  /** @throws CoppiceError when the stream is shorter than one sequence */
  constructor(
    readonly stream: TokenStream,
    readonly length: number,
  ) {
    this.count = Math.floor((stream.length - 1) / length);
    if (this.count < 1)
      throw new CoppiceError(
        `the data has ${stream.length} tokens, but one sequence needs ${length + 1}: give more data or a shorter --sequence-length`,
      );
  }

  /** The sequences with these numbers. */
  batch(numbers: readonly number[]): Batch {
    const tokens = new Int32Array(numbers.length * this.length);
    const targets = new Int32Array(tokens.length);
    numbers.forEach((number, row) => {
      this.copy(number, { tokens, targets }, row);
    });
    return { tokens, targets };
  }

  /** Copies a sequence into a row of a batch. @returns how many tokens it has: fewer than `length` at the stream's end */
  copy(number: number, { tokens, targets }: Batch, row: number): number {
    const { stream, length } = this;
    const count = Math.min(length, stream.length - 1 - number * length);
    stream.copy(number * length, count, tokens, row * length);
    stream.copy(number * length + 1, count, targets, row * length);
    if (stream.beginToken !== undefined) tokens[row * length] = stream.beginToken;
    return count;
  }
}

/**
 * Checks that every token of a stream is in a model's vocabulary, before any reaches native code.
 * @throws CoppiceError when an id lies outside the vocabulary
 */
export function checkVocabulary(stream: TokenStream, vocabSize: number): void {
  if (stream.length > 0 && stream.largestId >= vocabSize)
    throw new CoppiceError(
      `the data has the token id ${stream.largestId}, the model's vocabulary ends at ${vocabSize - 1}: its tokenizer.json is not this model's`,
    );
}

/**
 * The order of training: an endless series of epochs, each a permutation of all sequences that depends on the seed and the epoch's
 * number. A run's position in the data is thus a single number.
 */
export class TrainingOrder {
  private epoch = -1;
  private permutation: Permutation;

  constructor(
    private readonly count: number,
    private readonly seed: number,
  ) {
    this.permutation = new Permutation(count, seed, 0);
  }

  /** The number of the sequence at position n. */
  at(n: number): number {
    const epoch = Math.floor(n / this.count);
    if (epoch !== this.epoch) {
      this.permutation = new Permutation(this.count, this.seed, epoch);
      this.epoch = epoch;
    }
    return this.permutation.at(n % this.count);
  }

  /** The numbers of `size` sequences from position n on. */
  range(n: number, size: number): number[] {
    return Array.from({ length: size }, (_, i) => this.at(n + i));
  }
}
