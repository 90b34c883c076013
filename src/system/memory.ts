import { totalmem } from "node:os";

/** Measures this process's peak resident memory while something runs. */
export class PeakMemory {
  private peak = process.memoryUsage.rss();
  private readonly before = process.resourceUsage().maxRSS;
  private readonly timer = setInterval(() => this.sample(), 50).unref();

  private sample(): void {
    this.peak = Math.max(this.peak, process.memoryUsage.rss());
  }

  /**
   * Stops measuring.
   * @returns the highest resident set since construction, in bytes: sampled every 50 ms, and exact when it is the highest since
   * the process started
   */
  stop(): number {
    clearInterval(this.timer);
    this.sample();
    const lifetime = process.resourceUsage().maxRSS;
    return lifetime > this.before ? Math.max(this.peak, lifetime * 1024) : this.peak;
  }
}

/** Memory that this process may take at most, in bytes: the machine's, or less where its container has a limit. */
export const memoryLimit = (): number => Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
