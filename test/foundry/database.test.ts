import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { type EventEmitter, once } from "node:events";
import { writeFileSync } from "node:fs";
import type { Socket } from "node:net";
import path from "node:path";
import { pathToFileURL } from "node:url";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

import { connectionOf, Database } from "../../src/foundry/database.js";
import { Secrets } from "../../src/foundry/secrets.js";
import type { JobSpec } from "../../src/foundry/specification.js";
import { Jobs } from "../../src/foundry/store/jobs.js";
import { Tenants } from "../../src/foundry/store/tenants.js";
import { temporaryDirectory } from "../temporary.js";
import { DATABASES, type TestDatabase } from "./databases.js";

const evaluation = (): JobSpec => ({ kind: "evaluate", model: randomUUID(), tasks: [] });

for (const { name, missing, start } of DATABASES)
  describe.skipIf(missing)(`${name}, reached by several connections`, () => {
    let engine: TestDatabase;
    let db: Database;
    beforeAll(async () => {
      engine = await start();
      db = await Database.open(engine.url, temporaryDirectory());
    });
    afterAll(async () => {
      await db?.close();
      await engine?.stop();
    });

    it("answers each query of each with its own result", async () => {
      const clients = await Promise.all(
        Array.from({ length: 6 }, async () => {
          const client = new pg.Client(connectionOf(db.url));
          await client.connect();
          return client;
        }),
      );
      await Promise.all(
        clients.map(async (client, own) => {
          // statements that differ only in their values: a mix-up would cause no error
          const sql = `select ${own} as statement, $1::int as value`;
          for (let value = 0; value < 150; value++)
            expect((await client.query(sql, [value])).rows).toEqual([{ statement: own, value }]);
        }),
      );
      await Promise.all(clients.map((client) => client.end()));
    });

    it("commits all of a transaction or nothing, whatever others do meanwhile", async () => {
      await db.pool.query("create table public.counted (n int)");
      const insertTwo = (fails: boolean) =>
        db.transaction(async (client) => {
          await client.query("insert into public.counted values ($1)", [1]);
          if (fails) await client.query("select $1::int / 0", [1]);
          await client.query("insert into public.counted values ($1)", [1]);
        });
      const all = await Promise.allSettled(Array.from({ length: 40 }, (_, i) => insertTwo(i % 4 === 0)));
      expect(all.filter(({ status }) => status === "rejected")).toHaveLength(10);
      expect((await db.pool.query("select count(*)::int as count from public.counted")).rows).toEqual([{ count: 60 }]);
    });

    it("refuses tenant names that cannot be directory names", async () => {
      const tenants = new Tenants(db, new Secrets("x"), { max_bytes: null, max_jobs: null, max_tokens: null });
      for (const name of ["../up", "a/b", ".", "", "Anna", "a".repeat(42)])
        await expect(tenants.addKey(name, "laptop", "user"), name).rejects.toThrow("is not a tenant name");
      expect(await tenants.anyKeys()).toBe(false);
      const { key } = await tenants.addKey("anna-2", "laptop", "user");
      expect(await tenants.callerOf(key)).toEqual({ tenant: "anna-2", name: "laptop", role: "user" });
    });

    it("gives a job only to a worker that has what it asks for", async () => {
      const jobs = new Jobs(db);
      const requires = { device: "cuda", memory_bytes: 80e9, ranks: 4 } as const;
      const spec = { ...evaluation(), requires };
      const { job } = await jobs.create({ tenant: "anna", name: "large", spec });
      const enough = { device: "cuda", memoryBytes: 80e9, ranks: 4 } as const;
      for (const less of [{ device: "cpu" }, { memoryBytes: 79e9 }, { ranks: 3 }] as const)
        expect(await jobs.claim(job.id, randomUUID(), { ...enough, ...less })).toBeUndefined();
      expect(await jobs.waits(job.id)).toBe(true);
      expect(await jobs.claim(job.id, randomUUID(), { ...enough, ranks: 8 })).toMatchObject({ state: "running" });
      expect(await jobs.waits(job.id)).toBe(false);
      // a message that was put back is there again after a while
      await db.postpone(job.id);
      let message = await db.dequeue();
      while (message?.jobId !== job.id) {
        await message?.done();
        message = await db.dequeue();
      }
      await message.done();
    });

    it("thins a long curve, and keeps its end", async () => {
      const jobs = new Jobs(db);
      const { job } = await jobs.create({ tenant: "anna", name: "long", spec: evaluation() });
      const held = (await jobs.claim(job.id, randomUUID(), FACTS))!;
      const points = Array.from({ length: 95 }, (_, step) => ({ step, loss: 1 / (1 + step) }));
      await jobs.addEvents(held, "metrics", points.slice(0, 50));
      await jobs.addEvents(held, "metrics", points.slice(50));
      expect(await jobs.metrics(job.id)).toEqual(points);
      const some = await jobs.metrics(job.id, 10);
      expect(some).toHaveLength(10);
      expect(some).toEqual(points.filter(({ step }) => some.some((one) => one.step === step)));
      expect(some.at(-1)).toEqual(points.at(-1));
    });

    it("goes on when a connection breaks off in the middle of a query", async () => {
      const client = new pg.Client(connectionOf(db.url));
      client.on("error", () => {});
      await client.connect();
      const { connection } = client as unknown as { connection: EventEmitter & { stream: Socket } };
      const text = Buffer.from("\0select nonsense from nowhere\0\0\0"); // a Parse that fails, and no Sync after it
      const head = Buffer.alloc(5);
      head.write("P");
      head.writeInt32BE(text.length + 4, 1);
      // the error comes back: the message has arrived
      const refused = once(connection, "errorMessage");
      connection.stream.write(Buffer.concat([head, text]));
      await refused;
      connection.stream.destroy();
      expect((await db.pool.query("select $1::int as value", [7])).rows).toEqual([{ value: 7 }]);
    });
  });

/** What most workers have. */
const FACTS = { device: "cpu", memoryBytes: 16e9, ranks: 1 } as const;

describe("a worker that does not react", () => {
  it("is killed when its job is cancelled, and the job then counts as cancelled", async () => {
    const directory = temporaryDirectory();
    const db = await Database.open(undefined, directory);
    const jobs = new Jobs(db);
    const { job } = await jobs.create({ tenant: "anna", name: "long", spec: evaluation() });
    const id = randomUUID();
    const module = pathToFileURL(path.resolve(import.meta.dirname, "../../dist/foundry/heartbeat.js"));
    const options = { url: db.url, workerId: id, facts: FACTS, intervalSeconds: 0.1, unresponsiveSeconds: 0.5 };
    const script = `
      const { startHeartbeat } = await import(${JSON.stringify(module.href)});
      await startHeartbeat(${JSON.stringify(options)});
      console.log("alive");
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60_000);`;
    const file = path.join(directory, "worker.mjs");
    writeFileSync(file, script);
    const child = spawn(process.execPath, [file], { stdio: ["ignore", "pipe", "inherit"] });
    const exit = once(child, "exit");
    await once(child.stdout, "data");
    await jobs.claim(job.id, id, FACTS);
    expect(await jobs.recoverFromDeadWorkers(60)).toBe(0); // it is alive
    await jobs.cancel("anna", job.id);
    expect((await exit)[1]).toBe("SIGKILL");
    await expect.poll(() => jobs.recoverFromDeadWorkers(1)).toBe(1);
    expect(await jobs.get("anna", job.id)).toMatchObject({ state: "cancelled", error: null });
    await db.close();
  });
});

describe("a job that its living worker no longer works on", () => {
  it("goes back to the queue when that worker looks for work", async () => {
    const db = await Database.open(undefined, temporaryDirectory());
    const jobs = new Jobs(db);
    const { job } = await jobs.create({ tenant: "anna", name: "lost", spec: evaluation() });
    const id = randomUUID();
    await db.pool.query(
      "insert into foundry.workers (id, host, pid, device, memory_bytes, ranks) values ($1, 'here', 1, 'cpu', 1, 1)",
      [id],
    );
    await jobs.claim(job.id, id, FACTS);
    expect(await jobs.recoverFromDeadWorkers(60)).toBe(0);
    expect(await jobs.recoverFromDeadWorkers(60, randomUUID())).toBe(0);
    expect(await jobs.recoverFromDeadWorkers(60, id)).toBe(1);
    expect(await jobs.get("anna", job.id)).toMatchObject({ state: "queued", deaths: 1 });
    await db.close();
  });
});

describe("an embedded database", () => {
  it("starts again after its process was killed, with what was committed", async () => {
    const directory = temporaryDirectory();
    const module = pathToFileURL(path.resolve(import.meta.dirname, "../../dist/foundry/database.js"));
    const script = `
      const { Database } = await import(${JSON.stringify(module.href)});
      const db = await Database.open(undefined, ${JSON.stringify(directory)});
      await db.pool.query("create table public.kept as select 7 as n");
      console.log("committed");`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    await once(child.stdout, "data");
    await expect(Database.open(undefined, directory)).rejects.toThrow("is used by another foundry");
    child.kill("SIGKILL");
    await once(child, "exit");
    const db = await Database.open(undefined, directory);
    expect((await db.pool.query("select n from public.kept")).rows).toEqual([{ n: 7 }]);
    await db.close();
  });
});
