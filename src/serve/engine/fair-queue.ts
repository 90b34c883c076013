import { ApiError } from "../errors.js";

interface Waiting {
  readonly start: () => void;
  readonly leave: () => void;
}

/**
 * Limits how many requests run at once. Others wait: each client's in order, while clients take turns, so that one with many requests
 * does not delay the others.
 */
export class FairQueue {
  private readonly waitingOf = new Map<string, Waiting[]>();
  private runningCount = 0;
  private waitingCount = 0;

  /** @param places how many may run at once @param bound how many may wait */
  constructor(
    private readonly places: number,
    private readonly bound: number,
  ) {}

  get running(): number {
    return this.runningCount;
  }

  get waiting(): number {
    return this.waitingCount;
  }

  /**
   * Waits for a place.
   * @returns a function that gives the place back
   * @throws ApiError 429 when too many wait already; the signal's reason when it is aborted
   */
  async enter(client: string, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.runningCount < this.places && this.waitingCount === 0) return this.occupy();
    if (this.waitingCount >= this.bound)
      throw new ApiError(429, `${this.waitingCount} requests are waiting already: try again later`, {
        code: "queue_full",
        retryAfter: 1 + Math.ceil(this.waitingCount / this.places),
      });
    await new Promise<void>((resolve, reject) => {
      const queue = this.waitingOf.get(client) ?? [];
      const onAbort = () => {
        waiting.leave();
        reject(signal.reason);
      };
      const waiting: Waiting = {
        start: () => {
          signal.removeEventListener("abort", onAbort);
          resolve();
        },
        leave: () => {
          const at = queue.indexOf(waiting);
          if (at < 0) return;
          queue.splice(at, 1);
          this.waitingCount--;
          if (queue.length === 0) this.waitingOf.delete(client);
        },
      };
      queue.push(waiting);
      this.waitingOf.set(client, queue);
      this.waitingCount++;
      signal.addEventListener("abort", onAbort, { once: true });
    });
    return this.releaser();
  }

  private occupy(): () => void {
    this.runningCount++;
    return this.releaser();
  }

  private releaser(): () => void {
    let released = false;
    return () => {
      if (released) return;
      released = true;
      this.runningCount--;
      this.next();
    };
  }

  /** Starts the first request of the client whose turn it is, and moves that client to the end. */
  private next(): void {
    const [client, queue] = this.waitingOf.entries().next().value ?? [];
    const waiting = queue?.[0];
    if (client === undefined || queue === undefined || waiting === undefined) return;
    waiting.leave();
    if (queue.length > 0) {
      this.waitingOf.delete(client);
      this.waitingOf.set(client, queue);
    }
    this.runningCount++;
    waiting.start();
  }
}
