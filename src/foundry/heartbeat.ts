/**
 * Says every second or two that a worker lives. A thread of its own with a connection of its own: the worker's thread may compute
 * or write for minutes. When a job is to be stopped meanwhile, it ends the process.
 */
import { hostname } from "node:os";
import { setTimeout as wait } from "node:timers/promises";
import { isMainThread, Worker as Thread, workerData } from "node:worker_threads";
import pg from "pg";
import { connectionOf } from "./database.js";

interface Beat {
  readonly url: string;
  readonly id: string;
  readonly seconds: number;
  /** A worker that was told so long ago to stop does not hear it: its process is killed, and its job counts as cancelled. */
  readonly deafSeconds: number;
}

/** Starts the thread. @returns what ends it */
export async function startHeartbeat(beat: Beat): Promise<() => Promise<void>> {
  const thread = new Thread(new URL(import.meta.url), { workerData: beat });
  await new Promise<void>((resolve, reject) => {
    thread.once("message", () => resolve());
    thread.once("error", reject);
  });
  thread.on("error", () => {}); // without it the worker counts as dead after a while, which it then is
  thread.unref();
  return async () => {
    await thread.terminate();
  };
}

async function main({ url, id, seconds, deafSeconds }: Beat): Promise<void> {
  const { parentPort } = await import("node:worker_threads");
  let toldAt: number | undefined;
  for (;;) {
    const client = new pg.Client(connectionOf(url));
    client.on("error", () => {});
    try {
      await client.connect();
      for (;;) {
        await client.query(
          `insert into foundry.workers (id, host, pid) values ($1, $2, $3) on conflict (id) do update set seen_at = now()`,
          [id, hostname(), process.pid],
        );
        parentPort?.postMessage("alive");
        const { rows } = await client.query(
          "select 1 from foundry.jobs where worker_id = $1 and state = 'running' and cancel_requested",
          [id],
        );
        toldAt = rows.length === 0 ? undefined : (toldAt ?? performance.now());
        if (toldAt !== undefined && performance.now() - toldAt > 1000 * deafSeconds)
          process.kill(process.pid, "SIGKILL");
        await wait(1000 * seconds);
      }
    } catch {
      await client.end().catch(() => {});
      await wait(1000);
    }
  }
}

if (!isMainThread && workerData !== null && "url" in workerData) void main(workerData as Beat);
