/**
 * Runs jobs in order, at most `width` at a time, and returns their results in the same order. Jobs start ahead of the results that are
 * requested, so that threads stay busy across the boundaries between tensors.
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

  /** The next result. @throws the job's error, or RangeError after the last job */
  async next(): Promise<T> {
    while (this.running.length < this.width) {
      const { value: job, done } = this.jobs.next();
      if (done === true) break;
      const promise = job();
      promise.catch(() => {}); // reported when the result is requested
      this.running.push(promise);
    }
    const first = this.running.shift();
    if (first === undefined) throw new RangeError("there are no more results");
    return first;
  }
}
