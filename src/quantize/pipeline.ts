/**
 * Runs jobs at most `width` at a time, in order, and hands out their results in that order. Work is begun ahead of the results
 * that are asked for, so that threads stay busy across the boundaries between tensors.
 */
export class Pipeline<T> {
  private readonly running: Promise<T>[] = [];
  private readonly jobs: Iterator<() => Promise<T>>;

  constructor(
    jobs: Iterable<() => Promise<T>>,
    private readonly width: number,
  ) {
    this.jobs = jobs[Symbol.iterator]();
  }

  /** The next result. @throws what the job threw, or RangeError past the last job */
  async next(): Promise<T> {
    while (this.running.length < this.width) {
      const { value: job, done } = this.jobs.next();
      if (done === true) break;
      const promise = job();
      promise.catch(() => {}); // said where the result is asked for
      this.running.push(promise);
    }
    const first = this.running.shift();
    if (first === undefined) throw new RangeError("there are no more results");
    return first;
  }
}
