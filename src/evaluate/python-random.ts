/**
 * Python's `random.Random`, so that few-shot examples and bootstrap samples are those that the harness draws: the Mersenne Twister
 * MT19937 (Matsumoto & Nishimura 1998), seeded as CPython seeds it from an integer.
 */
export class PythonRandom {
  private readonly state = new Uint32Array(SIZE);
  private index = SIZE;

  /** @param seed an integer in [0, 2^32) */
  constructor(seed: number) {
    const { state } = this;
    state[0] = 19650218;
    for (let i = 1; i < SIZE; i++) state[i] = Math.imul(1812433253, mixed(state[i - 1] ?? 0)) + i;
    // init_by_array with the one word that the seed is
    let i = 1;
    const advance = () => {
      if (++i < SIZE) return;
      state[0] = state[SIZE - 1] ?? 0;
      i = 1;
    };
    for (let k = 0; k < SIZE; k++, advance())
      state[i] = ((state[i] ?? 0) ^ Math.imul(mixed(state[i - 1] ?? 0), 1664525)) + seed;
    for (let k = 1; k < SIZE; k++, advance())
      state[i] = ((state[i] ?? 0) ^ Math.imul(mixed(state[i - 1] ?? 0), 1566083941)) - i;
    state[0] = 0x80000000;
  }

  /** 32 random bits. */
  private word(): number {
    if (this.index === SIZE) this.twist();
    let y = this.state[this.index++] ?? 0;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  private twist(): void {
    const { state } = this;
    for (let i = 0; i < SIZE; i++) {
      const y = ((state[i] ?? 0) & 0x80000000) | ((state[(i + 1) % SIZE] ?? 0) & 0x7fffffff);
      state[i] = (state[(i + 397) % SIZE] ?? 0) ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.index = 0;
  }

  /** A uniform number in [0, 1) of 53 random bits. */
  random(): number {
    return ((this.word() >>> 5) * 67108864 + (this.word() >>> 6)) / 2 ** 53;
  }

  /** A uniform integer in [0, limit), of as few bits as hold it, drawn until one is below. */
  private below(limit: number): number {
    const shift = Math.clz32(limit);
    for (;;) {
      const value = this.word() >>> shift;
      if (value < limit) return value;
    }
  }

  /** `random.sample`: so many elements without repetition. @throws RangeError when there are fewer */
  sample<T>(population: readonly T[], count: number): T[] {
    const size = population.length;
    if (count > size) throw new RangeError(`${count} cannot be drawn from ${size}`);
    // CPython keeps a list or a set of what was drawn, whichever is smaller; the numbers drawn differ
    const setSize = 21 + (count > 5 ? 4 ** Math.ceil(Math.log(count * 3) / Math.log(4)) : 0);
    const result: T[] = [];
    if (size <= setSize) {
      const pool = [...population];
      for (let i = 0; i < count; i++) {
        const j = this.below(size - i);
        result.push(pool[j] as T);
        pool[j] = pool[size - i - 1] as T;
      }
      return result;
    }
    const drawn = new Set<number>();
    while (result.length < count) {
      const j = this.below(size);
      if (drawn.has(j)) continue;
      drawn.add(j);
      result.push(population[j] as T);
    }
    return result;
  }

  /** `random.choices` without weights: an index in [0, size), with repetition. */
  choice(size: number): number {
    return Math.floor(this.random() * size);
  }
}

const SIZE = 624;
const mixed = (word: number): number => word ^ (word >>> 30);
