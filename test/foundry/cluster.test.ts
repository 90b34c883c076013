import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as wait } from "node:timers/promises";
import S3rver from "s3rver";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { temporaryDirectory } from "../temporary.js";
import { DATABASES, type TestDatabase } from "./databases.js";

const root = path.resolve(import.meta.dirname, "../..");
const teacher = path.join(root, "examples/tiny-teacher");
const [, postgres] = DATABASES;

interface Job {
  readonly id: string;
  readonly state: string;
  readonly stage: string | null;
  readonly attempts: number;
  readonly error: string | null;
}

/** A process for the API and others for jobs, which share only PostgreSQL and a store, as on several machines. */
describe.skipIf(postgres?.missing ?? true)("a foundry on several machines with PostgreSQL and S3", () => {
  const home = temporaryDirectory();
  const processes: ChildProcess[] = [];
  let database: TestDatabase | undefined;
  let store: S3rver | undefined;
  let url: string;
  let env: NodeJS.ProcessEnv;

  const start = (machine: string, args: readonly string[]): ChildProcess => {
    const common = ["--storage", "s3://foundry/models", "--dead-after", "2", "--log-level", "silent"];
    const compute = ["--device", "cpu", "--threads", "1", "--data", path.join(home, machine)];
    const command = [path.join(root, "bin/coppice.cjs"), "foundry", ...args, ...common, ...compute];
    const child = spawn(process.execPath, command, { stdio: ["ignore", "pipe", "inherit"], env });
    processes.push(child);
    return child;
  };
  const stop = async (child: ChildProcess, signal: NodeJS.Signals) => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await ended;
  };
  const stored = () => readdirSync(path.join(home, "s3"), { recursive: true, encoding: "utf8" });
  const read = (name: string) => {
    const file = path.join(home, "s3", name);
    return existsSync(file) ? readFileSync(file, "utf8") : "";
  };
  const ask = async <T>(method: string, at: string, body?: string | Uint8Array<ArrayBuffer>): Promise<T> => {
    const response = await fetch(url + at, { method, body: body ?? null });
    if (!response.ok) throw new Error(`${method} ${at}: ${response.status} ${await response.text()}`);
    return (await response.json().catch(() => undefined)) as T;
  };
  const until = async (id: string, good: (job: Job) => boolean): Promise<Job> => {
    for (;;) {
      const job = await ask<Job>("GET", `/v1/jobs/${id}`);
      if (good(job)) return job;
      if (["done", "failed"].includes(job.state)) throw new Error(`the job is ${job.state}: ${job.error}`);
      await wait(100);
    }
  };

  beforeAll(async () => {
    database = await postgres?.start();
    const configureBuckets = [{ name: "foundry", configs: [] }];
    store = new S3rver({
      port: 0,
      address: "127.0.0.1",
      silent: true,
      directory: path.join(home, "s3"),
      configureBuckets,
    });
    const { port } = (await store.run()) as { port: number };
    env = {
      ...process.env,
      DATABASE_URL: database?.url,
      AWS_ENDPOINT_URL_S3: `http://127.0.0.1:${port}`,
      AWS_ACCESS_KEY_ID: "S3RVER",
      AWS_SECRET_ACCESS_KEY: "S3RVER",
      NODE_NO_WARNINGS: "1",
    };
    const { stdout } = start("api", ["--workers", "0", "--port", "0", "--json"]);
    if (stdout === null) throw new Error("no output");
    const line = await new Promise<string>((resolve) => createInterface({ input: stdout }).once("line", resolve));
    ({ url } = JSON.parse(line) as { url: string });
  });
  afterAll(async () => {
    await Promise.all(processes.map((child) => stop(child, "SIGTERM")));
    await store?.close();
    await database?.stop();
  });

  it("makes an uploaded model smaller, though the machine that started the job is lost", async () => {
    const { id: model } = await ask<{ id: string }>("POST", "/v1/models", JSON.stringify({ name: "Sent" }));
    for (const name of readdirSync(teacher).filter((file) => /\.(json|safetensors)$/.test(file)))
      await ask("PUT", `/v1/models/${model}/files/${name}`, readFileSync(path.join(teacher, name)));
    await ask("POST", `/v1/models/${model}/complete`);
    const text = "Tom had a red kite. The kite flew high over the park and Tom laughed.\n".repeat(400);
    const { id: dataset } = await ask<{ id: string }>("POST", "/v1/datasets?name=kites.txt", text);
    const spec = { model, dataset, tokens: 200_000, sequence_length: 32, calibration_samples: 8 };
    const cut = { target: "hidden=96,ffn=320", refit_samples: 16 };
    const { id } = await ask<Job>("POST", "/v1/jobs", JSON.stringify({ ...spec, ...cut }));
    const first = start("one", ["worker"]);
    await until(id, ({ stage }) => stage === "distill");
    // until the stages before distillation are in the store
    await expect
      .poll(() => {
        const names = stored();
        const stages = names.find((name) => /stages\.json/.test(name) && !/metadata/.test(name));
        const isComplete = names.some((name) => /complete/.test(name));
        return isComplete && stages !== undefined && /"measure pruned"/.test(read(stages));
      })
      .toBe(true);
    await stop(first, "SIGKILL");
    const second = start("two", ["worker"]);
    const job = await until(id, ({ state }) => state === "done");
    expect(job.attempts).toBe(2);
    const events = await (await fetch(`${url}/v1/jobs/${id}/events`)).text();
    expect(events.match(/"stage":"calibrate"\}/g)).toHaveLength(1); // the second machine resumed what the first had saved
    const { data } = await ask<{ data: { name: string; sha256: string; bytes: number }[] }>(
      "GET",
      `/v1/jobs/${id}/artifacts`,
    );
    expect(data.map(({ name }) => name).sort()).toEqual(expect.arrayContaining(["README.md", "model.safetensors"]));
    for (const { name, sha256 } of data) {
      const content = await (await fetch(`${url}/v1/jobs/${id}/artifacts/${name}`)).arrayBuffer();
      expect(createHash("sha256").update(Buffer.from(content)).digest("hex"), name).toBe(sha256);
    }
    expect(existsSync(path.join(home, "api", "files"))).toBe(false); // all files are in the store
    await expect.poll(() => stored().filter((name) => /attempt-/.test(name))).toEqual([]); // the workspace is deleted last
    await stop(second, "SIGTERM");
    expect(second.exitCode).toBe(0);
  });
});
