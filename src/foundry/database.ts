import { mkdirSync, rmSync } from "node:fs";
import { connect, createServer } from "node:net";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import type { PGlite } from "@electric-sql/pglite";
import pg from "pg";
import PgBoss from "pg-boss";
import { CoppiceError } from "../system/errors.js";
import { MIGRATIONS } from "./schema.js";

/** Runs SQL: the pool, or one connection within a transaction. */
export type Queryable = Pick<pg.PoolClient, "query">;

/** The queue of jobs that wait for a worker. */
const QUEUE = "jobs";
/** Seconds after which a message that a worker took and did not complete goes to another worker. */
const MESSAGE_SECONDS = 60;
/** Days for which a message is kept until a worker takes it. */
const MESSAGE_DAYS = 3650;
/** How long a job waits whose worker did not have what it asks for, before another worker looks at it. */
const POSTPONED_SECONDS = 2;

/**
 * PostgreSQL, or PGlite in this process, with the same driver and the same schema. The table of jobs holds their state; a queue
 * (pg-boss) wakes workers.
 */
export class Database {
  private constructor(
    readonly pool: pg.Pool,
    private readonly boss: PgBoss,
    /** Connects other processes to it. */
    readonly url: string,
    private readonly closeEngine: () => Promise<void>,
  ) {}

  /** @param url `postgres://...`; without one, PGlite keeps everything in the directory */
  static async open(url: string | undefined, directory: string): Promise<Database> {
    const engine = url === undefined ? await startEmbedded(directory) : { url, close: async () => {} };
    return Database.connect(engine.url, engine.close);
  }

  /** Connects to a running database. */
  static async connect(url: string, closeEngine: () => Promise<void> = async () => {}): Promise<Database> {
    const pool = new pg.Pool({ ...connectionOf(url), max: 8, connectionTimeoutMillis: 30_000 });
    pool.on("error", () => {}); // the server may close an idle connection: the next query gets another
    pool.on("connect", (client) => client.on("error", () => {})); // or one in a transaction, whose next query fails
    const boss = new PgBoss({
      db: { executeSql: (text, values) => pool.query(text, values) },
      maintenanceIntervalSeconds: 30,
      monitorStateIntervalSeconds: 3600,
      schedule: false,
    });
    boss.on("error", () => {}); // its own maintenance is retried
    try {
      await withTransaction(pool, migrate);
      await boss.start();
      await boss.createQueue(QUEUE, { name: QUEUE, retryLimit: 100, expireInSeconds: MESSAGE_SECONDS });
    } catch (error) {
      await pool.end();
      await closeEngine();
      throw new CoppiceError(`the database cannot be used: ${error instanceof Error ? error.message : error}`);
    }
    return new Database(pool, boss, url, closeEngine);
  }

  /** Runs SQL in one transaction, which is rolled back when the work throws. */
  transaction<T>(work: (client: Queryable) => Promise<T>): Promise<T> {
    return withTransaction(this.pool, work);
  }

  /** Queues a job for a worker, as part of the client's transaction. */
  async enqueue(client: Queryable, jobId: string): Promise<void> {
    const db = { executeSql: (text: string, values: unknown[]) => client.query(text, values) };
    await this.boss.send(QUEUE, { jobId }, { db, retentionDays: MESSAGE_DAYS });
  }

  /** Puts a job back in the queue for another worker, after a while. */
  async postpone(jobId: string): Promise<void> {
    await this.boss.send(QUEUE, { jobId }, { startAfter: POSTPONED_SECONDS, retentionDays: MESSAGE_DAYS });
  }

  /** A queued job, if there is one. `done` takes its message off the queue. */
  async dequeue(): Promise<{ readonly jobId: string; readonly done: () => Promise<void> } | undefined> {
    const [message] = await this.boss.fetch<{ jobId: string }>(QUEUE);
    if (message === undefined) return undefined;
    return { jobId: message.data.jobId, done: () => this.boss.complete(QUEUE, message.id) };
  }

  async close(): Promise<void> {
    await this.boss.stop({ graceful: true, wait: true, timeout: 2000 }).catch(() => {});
    await this.pool.end();
    await this.closeEngine();
  }
}

/** `socket:DIRECTORY` is the PGlite of another process, on a socket in a directory that only its owner can enter. */
export const connectionOf = (url: string): pg.PoolConfig =>
  url.startsWith("socket:")
    ? { host: url.slice("socket:".length), port: 5432, database: "postgres", user: "postgres" }
    : { connectionString: url };

/** Starts PGlite behind a socket, so that this process and its workers connect to it as to PostgreSQL. */
async function startEmbedded(directory: string) {
  const [files, sockets] = [path.join(directory, "database"), path.join(directory, "socket")];
  for (const folder of [directory, files, sockets]) mkdirSync(folder, { recursive: true, mode: 0o700 });
  const lock = await lockDirectory(directory);
  const { PGlite } = await import("@electric-sql/pglite");
  const { PGLiteSocketServer } = await import("@electric-sql/pglite-socket");
  const db = await PGlite.create(files);
  const socket = path.join(sockets, ".s.PGSQL.5432");
  rmSync(socket, { force: true }); // left by a process that was killed: the lock shows that no other uses it
  const server = new PGLiteSocketServer({ db: isolateQueries(db), path: socket, maxConnections: 64 });
  await server.start();
  const close = async () => {
    await server.stop();
    await db.close();
    lock.close();
  };
  return { url: `socket:${sockets}`, close };
}

/** Messages of PostgreSQL's extended protocol that are followed by others, up to a Sync: Parse, Bind, Describe, Execute, Close, Flush. */
const BEFORE_SYNC = new Set([..."PBDECH"].map((letter) => letter.charCodeAt(0)));
const SYNC = Uint8Array.of("S".charCodeAt(0), 0, 0, 0, 4);

/**
 * Keeps the queries of several connections apart. They share PGlite's one session, and the socket server interleaves their messages:
 * the Parse of one connection may come between another's Parse and Bind, which then binds the wrong statement. The server lets a
 * connection finish its transaction first, so a query reports one until its Sync.
 */
function isolateQueries(db: PGlite): PGlite {
  let inQuery = false;
  const overrides: Partial<PGlite> = {
    isInTransaction: () => inQuery || db.isInTransaction(),
    execProtocolRawStream: (message, options) => {
      inQuery = BEFORE_SYNC.has(message[0] ?? 0);
      return db.execProtocolRawStream(message, options);
    },
    // the server calls this when a connection breaks off: its unfinished query ends, too
    exec: async (sql, options) => {
      if (inQuery) await db.execProtocolRaw(SYNC);
      inQuery = false;
      return db.exec(sql, options);
    },
  };
  return new Proxy(db, {
    get: (target, name) => {
      const value: unknown = Reflect.get(name in overrides ? overrides : target, name);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** Two processes with the same PGlite files would destroy them: only one can listen on the lock's socket. @throws CoppiceError */
async function lockDirectory(directory: string) {
  const file = path.join(directory, "lock.sock");
  const listen = () =>
    new Promise<ReturnType<typeof createServer>>((resolve, reject) => {
      const server = createServer((socket) => socket.end());
      server.once("error", reject);
      server.listen(file, () => resolve(server));
    });
  try {
    return (await listen()).unref();
  } catch {
    const isAlive = await Promise.race([
      new Promise<boolean>((resolve) => {
        const socket = connect(file, () => {
          socket.destroy();
          resolve(true);
        });
        socket.once("error", () => resolve(false));
      }),
      wait(2000, true),
    ]);
    if (isAlive)
      throw new CoppiceError(`${directory} is used by another foundry: stop that one, or choose another --data`);
    rmSync(file, { force: true }); // left by a process that was killed
    return (await listen()).unref();
  }
}

async function withTransaction<T>(pool: pg.Pool, work: (client: Queryable) => Promise<T>): Promise<T> {
  const client = await pool.connect();
  try {
    await client.query("begin");
    const result = await work(client);
    await client.query("commit");
    return result;
  } catch (error) {
    await client.query("rollback").catch(() => {});
    throw error;
  } finally {
    client.release();
  }
}

/** Brings the schema up to date; several processes may try at once. */
async function migrate(client: Queryable): Promise<void> {
  await client.query("select pg_advisory_xact_lock(77012)");
  await client.query("create schema if not exists foundry");
  await client.query(
    "create table if not exists foundry.migrations (number int primary key, at timestamptz default now())",
  );
  const { rows } = await client.query<{ number: number }>("select max(number) as number from foundry.migrations");
  for (let number = (rows[0]?.number ?? 0) + 1; number <= MIGRATIONS.length; number++) {
    await client.query(MIGRATIONS[number - 1] ?? "");
    await client.query("insert into foundry.migrations (number) values ($1)", [number]);
  }
}
