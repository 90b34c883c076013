/** One sequence to be computed: its input ids, and the ids that its last tokens are to be followed by. */
export interface ScoredSequence {
  readonly input: Int32Array;
  /** The target of input[i] for i from input.length - targets.length on. */
  readonly targets: Int32Array;
}

/** Sequences that share their beginnings, written as one: each shared token once, in depth-first order. */
export interface Packing {
  readonly tokens: Int32Array;
  /** Each token's place in its own sequence. */
  readonly positions: Int32Array;
  /** The place after the last token that has this one before it. */
  readonly ends: Int32Array;
  /** Which token predicts each target, sequence after sequence. */
  readonly rows: Int32Array;
  readonly targets: Int32Array;
  /** The sequences in it: their numbers in the list that was given. */
  readonly members: readonly number[];
}

/** How many ids two sequences have in common at the beginning. */
function sharedLength(a: Int32Array, b: Int32Array): number {
  const limit = Math.min(a.length, b.length);
  let i = 0;
  while (i < limit && a[i] === b[i]) i++;
  return i;
}

function compare(a: Int32Array, b: Int32Array): number {
  const i = sharedLength(a, b);
  return i === a.length || i === b.length ? a.length - b.length : (a[i] ?? 0) - (b[i] ?? 0);
}

/** Sequences that share less than this belong to different families. */
const FAMILY_SHARE = 0.5;

/**
 * Packs sequences so that what they share at the beginning is computed once: sorted, neighbours share most, and each adds only what
 * it does not share with the one before. A family that fits into a packing is not spread over two.
 * @param places how many tokens a packing may have beyond its first sequence
 */
export function packSequences(sequences: readonly ScoredSequence[], places: number): Packing[] {
  const inputOf = (number: number): Int32Array => (sequences[number] as ScoredSequence).input;
  const order = sequences.map((_, i) => i).sort((a, b) => compare(inputOf(a), inputOf(b)));
  const sorted = order.map((number, i) => {
    const input = inputOf(number);
    const shared = i === 0 ? 0 : sharedLength(inputOf(order[i - 1] ?? 0), input);
    return { length: input.length, added: input.length - shared, begins: shared < FAMILY_SHARE * input.length };
  });
  /** How many tokens the family that begins at i adds. */
  const familySize = (i: number): number => {
    let size = sorted[i]?.added ?? 0;
    for (let j = i + 1; sorted[j]?.begins === false; j++) size += sorted[j]?.added ?? 0;
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
  let path: number[] = []; // where the tokens of the last sequence are
  let before = new Int32Array();
  const leave = (depth: number) => {
    for (const place of path.splice(depth)) ends[place] = tokens.length;
  };
  for (const number of members) {
    const { input, targets: wanted } = sequences[number] as ScoredSequence;
    const shared = sharedLength(before, input);
    leave(shared);
    for (let depth = shared; depth < input.length; depth++) {
      path.push(tokens.length);
      tokens.push(input[depth] ?? 0);
      positions.push(depth);
      ends.push(0);
    }
    wanted.forEach((target, i) => {
      rows.push(path[input.length - wanted.length + i] ?? 0);
      targets.push(target);
    });
    before = input as typeof before;
  }
  leave(0);
  path = [];
  return {
    ...{ tokens: Int32Array.from(tokens), positions: Int32Array.from(positions), ends: Int32Array.from(ends) },
    ...{ rows: Int32Array.from(rows), targets: Int32Array.from(targets), members },
  };
}
