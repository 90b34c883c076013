import { elementAt } from "../system/arrays.js";

/**
 * Python's `random.Random`, so that few-shot examples and bootstrap samples are the harness's: the Mersenne Twister MT19937
 * (Matsumoto & Nishimura 1998), seeded as CPython seeds it from an integer.
 */
export class PythonRandom {
  private readonly state = new Uint32Array(SIZE);
  private index = SIZE;

  /** @param seed an integer in [0, 2^32) */
  constructor(seed: number) {
    const { state } = this;
    state[0] = 19650218;
    for (let i = 1; i < SIZE; i++) state[i] = Math.imul(1812433253, mixed(elementAt(state, i - 1))) + i;
    // init_by_array, with the seed as its only word
    let i = 1;
    const advance = () => {
      if (++i < SIZE) return;
      state[0] = elementAt(state, SIZE - 1);
      i = 1;
    };
    for (let k = 0; k < SIZE; k++, advance())
      state[i] = (elementAt(state, i) ^ Math.imul(mixed(elementAt(state, i - 1)), 1664525)) + seed;
    for (let k = 1; k < SIZE; k++, advance())
      state[i] = (elementAt(state, i) ^ Math.imul(mixed(elementAt(state, i - 1)), 1566083941)) - i;
    state[0] = 0x80000000;
  }

  /** 32 random bits. */
  private word(): number {
    if (this.index === SIZE) this.twist();
    let y = elementAt(this.state, this.index++);
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  private twist(): void {
    const { state } = this;
    for (let i = 0; i < SIZE; i++) {
      const y = (elementAt(state, i) & 0x80000000) | (elementAt(state, (i + 1) % SIZE) & 0x7fffffff);
      state[i] = elementAt(state, (i + 397) % SIZE) ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.index = 0;
  }

  /** A uniform number in [0, 1) with 53 random bits. */
  random(): number {
    return ((this.word() >>> 5) * 67108864 + (this.word() >>> 6)) / 2 ** 53;
  }

  /** A uniform integer in [0, limit): as few bits as hold it, drawn again until the number is below the limit. */
  private below(limit: number): number {
    const shift = Math.clz32(limit);
    for (;;) {
      const value = this.word() >>> shift;
      if (value < limit) return value;
    }
  }

  /** `random.sample`: draws elements without replacement. @throws RangeError when there are fewer than `count` */
  sample<T>(population: readonly T[], count: number): T[] {
    const size = population.length;
    if (count > size) throw new RangeError(`${count} cannot be drawn from ${size}`);
    // CPython remembers what it drew in a list or a set, whichever is smaller, and draws different numbers for each
    const setSize = 21 + (count > 5 ? 4 ** Math.ceil(Math.log(count * 3) / Math.log(4)) : 0);
    const result: T[] = [];
    if (size <= setSize) {
      const pool = [...population];
      for (let i = 0; i < count; i++) {
        const j = this.below(size - i);
        result.push(elementAt(pool, j));
        pool[j] = elementAt(pool, size - i - 1);
      }
      return result;
    }
    const drawn = new Set<number>();
    while (result.length < count) {
      const j = this.below(size);
      if (drawn.has(j)) continue;
      drawn.add(j);
      result.push(elementAt(population, j));
    }
    return result;
  }

  /** `random.choices` without weights: draws an index in [0, size), with replacement. */
  choice(size: number): number {
    return Math.floor(this.random() * size);
  }
}

const SIZE = 624;
const mixed = (word: number): number => word ^ (word >>> 30);
