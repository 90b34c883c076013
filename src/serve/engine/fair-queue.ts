import { ApiError } from "../errors.js";

interface Waiting {
  readonly start: () => void;
  readonly leave: () => void;
}

/**
 * Lets so many requests run at once. Others wait, each client's in order, and clients take turns, so that one that asks a lot
 * does not keep the others waiting.
 */
export class FairQueue {
  private readonly waitingOf = new Map<string, Waiting[]>();
  private runningCount = 0;
  private waitingCount = 0;

  /** @param places how many run at once @param bound how many may wait */
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
   * @returns what gives the place back
   * @throws ApiError 429 when too many wait already, and whatever the signal was aborted with
   */
  async enter(client: string, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.runningCount < this.places && this.waitingCount === 0) return this.occupy();
    if (this.waitingCount >= this.bound)
      throw new ApiError(429, `${this.waitingCount} requests wait already: ask again later`, {
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

  /** Starts the first request of the client whose turn it is; that client goes to the end. */
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
