/**
 * A small seeded generator (sfc32, Chris Doty-Humphrey's PractRand), so that the same seed gives the same numbers on
 * every platform. Not for secrets.
 */
export class Random {
  private a: number;
  private b: number;
  private c: number;
  private counter = 1;
  private spare: number | undefined;

  /**
   * @param seed an integer
   * @param stream separates uses of one seed (weights, order of the data, ...)
   */
  constructor(seed: number, stream = 0) {
    this.a = seed >>> 0;
    this.b = Math.floor(seed / 2 ** 32) >>> 0;
    this.c = stream >>> 0;
    for (let i = 0; i < 15; i++) this.uint32();
  }

  /** A uniform integer in [0, 2^32). */
  uint32(): number {
    const sum = (this.a + this.b + this.counter++) | 0;
    this.a = this.b ^ (this.b >>> 9);
    this.b = (this.c + (this.c << 3)) | 0;
    this.c = ((this.c << 21) | (this.c >>> 11)) + sum;
    return sum >>> 0;
  }

  /** A uniform number in [0, 1), with 32 random bits. */
  uniform(): number {
    return this.uint32() / 2 ** 32;
  }

  /** A uniform integer in [0, limit). */
  integer(limit: number): number {
    return Math.floor(this.uniform() * limit);
  }

  /** A standard normal number (Marsaglia's polar method). */
  normal(): number {
    if (this.spare !== undefined) {
      const value = this.spare;
      this.spare = undefined;
      return value;
    }
    for (;;) {
      const u = 2 * this.uniform() - 1;
      const v = 2 * this.uniform() - 1;
      const s = u * u + v * v;
      if (s === 0 || s >= 1) continue;
      const factor = Math.sqrt((-2 * Math.log(s)) / s);
      this.spare = v * factor;
      return u * factor;
    }
  }
}

/**
 * A pseudo-random permutation of 0 ... size - 1 that needs no memory, so that a corpus of any size is shuffled without storing its
 * order: a four-round Feistel network over the next even number of bits, walking cycles until the result is in range.
 */
export class Permutation {
  private readonly halfBits: number;
  private readonly mask: number;
  private readonly keys: readonly number[];

  constructor(
    readonly size: number,
    seed: number,
    stream = 0,
  ) {
    const bits = Math.max(2, Math.ceil(Math.log2(Math.max(2, size))));
    this.halfBits = Math.ceil(bits / 2);
    this.mask = 2 ** this.halfBits - 1;
    const random = new Random(seed, stream);
    this.keys = [random.uint32(), random.uint32(), random.uint32(), random.uint32()];
  }

  /** Where position `index` goes. */
  at(index: number): number {
    let value = index;
    do value = this.encrypt(value);
    while (value >= this.size);
    return value;
  }

  private encrypt(value: number): number {
    let left = Math.floor(value / (this.mask + 1));
    let right = value % (this.mask + 1);
    for (const key of this.keys) {
      const mixed = Math.imul(right ^ key, 0x9e3779b1);
      const round = (Math.imul(mixed ^ (mixed >>> 15), 0x85ebca6b) >>> (32 - this.halfBits)) & this.mask;
      [left, right] = [right, left ^ round];
    }
    return left * (this.mask + 1) + right;
  }
}
