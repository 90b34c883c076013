/**
 * Marks a worker as alive every second or two. It has its own thread and its own connection, because the worker's thread may be busy
 * for minutes; it kills the process when a job that is to stop does not.
 */
import { hostname } from "node:os";
import { setTimeout as wait } from "node:timers/promises";
import { isMainThread, Worker as Thread, workerData } from "node:worker_threads";
import pg from "pg";
import { connectionOf } from "./database.js";
import type { WorkerFacts } from "./store/jobs.js";

interface HeartbeatOptions {
  readonly url: string;
  readonly workerId: string;
  readonly facts: WorkerFacts;
  readonly intervalSeconds: number;
  /** Seconds after a request to cancel its job when a worker that has not reacted is killed; its job then counts as cancelled. */
  readonly unresponsiveSeconds: number;
}

/** Starts the thread. @returns a function that ends it */
export async function startHeartbeat(options: HeartbeatOptions): Promise<() => Promise<void>> {
  const thread = new Thread(new URL(import.meta.url), { workerData: options });
  await new Promise<void>((resolve, reject) => {
    thread.once("message", () => resolve());
    thread.once("error", reject);
  });
  thread.on("error", () => {}); // a worker without a heartbeat is soon taken for dead
  thread.unref();
  return async () => {
    await thread.terminate();
  };
}

async function main({ url, workerId, facts, intervalSeconds, unresponsiveSeconds }: HeartbeatOptions): Promise<void> {
  const { parentPort } = await import("node:worker_threads");
  let cancelledAt: number | undefined;
  for (;;) {
    const client = new pg.Client(connectionOf(url));
    client.on("error", () => {});
    try {
      await client.connect();
      for (;;) {
        await client.query(
          `insert into foundry.workers (id, host, pid, device, memory_bytes, ranks) values ($1, $2, $3, $4, $5, $6)
           on conflict (id) do update set seen_at = now()`,
          [workerId, hostname(), process.pid, facts.device, facts.memoryBytes, facts.ranks],
        );
        parentPort?.postMessage("alive");
        const { rows } = await client.query(
          "select 1 from foundry.jobs where worker_id = $1 and state = 'running' and cancel_requested",
          [workerId],
        );
        cancelledAt = rows.length === 0 ? undefined : (cancelledAt ?? performance.now());
        if (cancelledAt !== undefined && performance.now() - cancelledAt > 1000 * unresponsiveSeconds)
          process.kill(process.pid, "SIGKILL");
        await wait(1000 * intervalSeconds);
      }
    } catch {
      await client.end().catch(() => {});
      await wait(1000);
    }
  }
}

if (!isMainThread && workerData !== null && "url" in workerData) void main(workerData as HeartbeatOptions);
