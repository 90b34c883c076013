import { elementAt, sharedPrefixLength } from "../system/arrays.js";
import type { ops } from "../tensor/index.js";

/** A sequence to score: its input ids, and the ids that should follow the last of them. */
export interface ScoredSequence {
  readonly input: Int32Array;
  /** The target of input[i] for i from input.length - targets.length on. */
  readonly targets: Int32Array;
}

/** Sequences that share their beginnings as one forest: each shared token is there once, in depth-first order. */
export interface Packing extends ops.ForestLayout {
  readonly tokens: Int32Array;
  /** Which token predicts each target, sequence after sequence. */
  readonly rows: Int32Array;
  readonly targets: Int32Array;
  /** Tokens of the longest of its sequences. */
  readonly longest: number;
  /** Indices of the packed sequences in the list passed to {@link packSequences}. */
  readonly members: readonly number[];
}

/** Lexicographic order. */
function compare(a: Int32Array, b: Int32Array): number {
  const i = sharedPrefixLength(a, b);
  return i === a.length || i === b.length ? a.length - b.length : elementAt(a, i) - elementAt(b, i);
}

/** Sequences that share less than this belong to different families. */
const FAMILY_SHARE = 0.5;

/** Up to here all lengths are of one kind. */
const SHORT = 2048;

/**
 * Sequences of different kinds of lengths, a power of two apart, are not computed together: some models (LongRoPE) rotate long ones in
 * another way.
 */
export const kindOfLength = (length: number): number => Math.ceil(Math.log2(Math.max(SHORT, length)));

/**
 * Packs sequences so that what they share at the beginning is computed once. Sorted sequences share most with their
 * neighbors, so each adds only what it does not share with the one before. A family that fits into one packing is not split.
 * @param places how many tokens a packing may have beyond its first sequence
 */
export function packSequences(sequences: readonly ScoredSequence[], places: number): Packing[] {
  const kindOf = (index: number): number => kindOfLength(elementAt(sequences, index).input.length);
  const kinds = [...new Set(sequences.map((_, i) => kindOf(i)))].sort((a, b) => a - b);
  return kinds.flatMap((kind) =>
    packTogether(
      sequences,
      sequences.flatMap((_, i) => (kindOf(i) === kind ? [i] : [])),
      places,
    ),
  );
}

/** Packs those of the sequences that `indices` lists. */
function packTogether(sequences: readonly ScoredSequence[], indices: readonly number[], places: number): Packing[] {
  const inputOf = (index: number): Int32Array => elementAt(sequences, index).input;
  const order = indices.toSorted((a, b) => compare(inputOf(a), inputOf(b)));
  const sorted = order.map((index, i) => {
    const input = inputOf(index);
    const shared = i === 0 ? 0 : sharedPrefixLength(inputOf(elementAt(order, i - 1)), input);
    return { length: input.length, added: input.length - shared, begins: shared < FAMILY_SHARE * input.length };
  });
  /** How many tokens the family that begins at i adds. */
  const familySize = (i: number): number => {
    let size = elementAt(sorted, i).added;
    for (let j = i + 1; sorted[j]?.begins === false; j++) size += elementAt(sorted, j).added;
    return size;
  };
  const packings: Packing[] = [];
  let first = 0;
  let size = 0;
  let capacity = 0;
  sorted.forEach(({ length, added, begins }, i) => {
    if (i > first && size + (begins ? familySize(i) : added) > capacity) {
      packings.push(pack(sequences, order.slice(first, i)));
      first = i;
    }
    if (i === first) capacity = length + places;
    size = i === first ? length : size + added;
  });
  if (first < order.length) packings.push(pack(sequences, order.slice(first)));
  return packings;
}

function pack(sequences: readonly ScoredSequence[], members: readonly number[]): Packing {
  const tokens: number[] = [];
  const positions: number[] = [];
  const ends: number[] = [];
  const rows: number[] = [];
  const targets: number[] = [];
  const path: number[] = []; // where the tokens of the last sequence are
  let before: Int32Array = new Int32Array();
  const leave = (depth: number) => {
    for (const place of path.splice(depth)) ends[place] = tokens.length;
  };
  for (const member of members) {
    const { input, targets: expected } = elementAt(sequences, member);
    const shared = sharedPrefixLength(before, input);
    leave(shared);
    for (let depth = shared; depth < input.length; depth++) {
      path.push(tokens.length);
      tokens.push(elementAt(input, depth));
      positions.push(depth);
      ends.push(0);
    }
    expected.forEach((target, i) => {
      rows.push(elementAt(path, input.length - expected.length + i));
      targets.push(target);
    });
    before = input;
  }
  leave(0);
  return {
    tokens: Int32Array.from(tokens),
    positions: Int32Array.from(positions),
    ends: Int32Array.from(ends),
    rows: Int32Array.from(rows),
    targets: Int32Array.from(targets),
    longest: 1 + positions.reduce((most, position) => Math.max(most, position), 0),
    members,
  };
}
