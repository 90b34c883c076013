import { setTimeout as wait } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type RunningFoundry, startFoundry } from "../../src/foundry/index.js";
import { temporaryDirectory } from "../temporary.js";

interface Job {
  readonly id: string;
  readonly state: string;
  readonly stage: string | null;
  readonly attempts: number;
  readonly stages: readonly { readonly name: string }[];
}

describe("a job", () => {
  let foundry: RunningFoundry;
  let model: string;
  const ask = async <T>(method: string, at: string, body?: object): Promise<T> =>
    (
      await fetch(foundry.url + at, { method, body: body === undefined ? null : JSON.stringify(body) })
    ).json() as Promise<T>;
  const until = async (id: string, good: (job: Job) => boolean): Promise<Job> => {
    for (;;) {
      const job = await ask<Job>("GET", `/v1/jobs/${id}`);
      if (good(job)) return job;
      if (["done", "failed"].includes(job.state)) throw new Error(`the job is ${job.state}`);
      await wait(100);
    }
  };
  const start = (tokens: number) =>
    ask<Job>("POST", "/v1/jobs", {
      model,
      tokens,
      target: "hidden=96,ffn=320",
      sequence_length: 32,
      calibration_samples: 8,
      refit_samples: 16,
    });
  beforeAll(async () => {
    const options = {
      data: temporaryDirectory(),
      port: 0,
      workers: 1,
      device: "cpu",
      threads: 1,
      logLevel: "silent",
    } as const;
    foundry = await startFoundry({ ...options, deadAfterSeconds: 2 });
    model = (await ask<{ data: { id: string }[] }>("GET", "/v1/models")).data[0]!.id;
  });
  afterAll(() => foundry?.close());

  it("is resumed by another worker when its own is killed", async () => {
    const { id } = await start(60_000);
    await until(id, ({ stages }) => stages.some(({ name }) => name === "calibrate"));
    for (const pid of foundry.workerPids()) process.kill(pid, "SIGKILL");
    const job = await until(id, ({ state }) => state === "done");
    expect(job.attempts).toBe(2);
    const events = await (await fetch(`${foundry.url}/v1/jobs/${id}/events`)).text();
    expect(events.match(/"stage":"calibrate"\}/g)).toHaveLength(1); // a finished stage is not repeated
  });

  it("stops when it is cancelled, and goes on when it is retried", async () => {
    const { id } = await start(20_000_000);
    await until(id, ({ stage }) => stage === "distill");
    await ask("POST", `/v1/jobs/${id}/cancel`);
    await until(id, ({ state }) => state === "cancelled");
    await ask("POST", `/v1/jobs/${id}/retry`);
    await until(id, ({ state, stage }) => state === "running" && stage === "distill");
    await ask("POST", `/v1/jobs/${id}/cancel`);
    await until(id, ({ state }) => state === "cancelled");
  });

  it("is refused to pages of other sites, where no keys are needed", async () => {
    const status = async (headers: Record<string, string>) =>
      (await fetch(`${foundry.url}/v1/jobs`, { headers })).status;
    expect(await status({})).toBe(200);
    expect(await status({ origin: foundry.url })).toBe(200);
    expect(await status({ origin: "https://elsewhere.example" })).toBe(403);
  });
});
