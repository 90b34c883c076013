import { availableParallelism } from "node:os";
import { logOf } from "../system/log.js";
import type { Kernels } from "./kernels.js";
import { chooseThreads, measureThreads, type ThreadTimes } from "./thread-count.js";
import { type PooledDevice, ThreadPool } from "./thread-pool.js";

const log = logOf("engine");

export interface ThreadOptions {
  /** How many; by default as many as are fastest. */
  readonly count?: number | undefined;
  /** Whether they live as long as the backend; ggml otherwise starts them for each computation. */
  readonly keep: boolean;
}

/** What computes less than this in all is not worth a measurement. */
const SHORT_MS = 2000;
/** Other work comes and goes. */
const MEASURED_EVERY_MS = 5 * 60_000;

/**
 * The threads of a processor's backend. Unless their number is given, all processors are used at first, and what is fastest is measured
 * when it has turned out that there is much to compute, and again from time to time. Results do not depend on it.
 */
export class ProcessorThreads {
  private pool: ThreadPool | undefined;
  private current: number;
  private readonly isMeasured: boolean;
  /** Time spent computing until the first measurement. */
  private computedMs = 0;
  private measuredAt: number | undefined;

  constructor(
    private readonly on: PooledDevice,
    private readonly kernels: Kernels | undefined,
    { count, keep }: ThreadOptions,
  ) {
    this.current = count ?? availableParallelism();
    this.pool = ThreadPool.start(on, this.current, keep);
    this.isMeasured = count === undefined && this.pool !== undefined;
  }

  get count(): number {
    return this.current;
  }

  /** Computes something, for which the number of threads is chosen before if it is time. */
  async use(compute: () => Promise<void>): Promise<void> {
    if (this.isMeasured && this.isDue())
      await this.measure().catch((error: unknown) => log.debug("threads not timed", { error: String(error) }));
    const started = performance.now();
    await compute();
    this.computedMs += performance.now() - started;
  }

  private isDue(): boolean {
    if (this.measuredAt === undefined) return this.computedMs > SHORT_MS;
    return performance.now() - this.measuredAt > MEASURED_EVERY_MS;
  }

  /**
   * Measures numbers of threads, and takes the best from now on. Nothing may be computing on the backend.
   * @returns undefined where their number is given, or there is nothing to choose
   */
  async measure(): Promise<ThreadTimes | undefined> {
    if (!this.isMeasured) return undefined;
    this.end();
    try {
      const times = await measureThreads(this.on, this.kernels);
      this.current = chooseThreads(times);
      return times;
    } finally {
      this.pool = ThreadPool.start(this.on, this.current);
      this.measuredAt = performance.now();
    }
  }

  private end(): void {
    this.pool?.detach();
    this.pool?.free();
    this.pool = undefined;
  }

  /** Ends the threads. The backend must have been freed. */
  free(): void {
    this.pool?.free();
  }
}
