import { mkdirSync, rmSync } from "node:fs";
import { connect, createServer } from "node:net";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import type { PGlite } from "@electric-sql/pglite";
import pg from "pg";
import PgBoss from "pg-boss";
import { CoppiceError } from "../system/errors.js";
import { MIGRATIONS } from "./schema.js";

/** Something that runs SQL: a pool, or one connection within a transaction. */
export type Queryable = Pick<pg.PoolClient, "query">;

/** Name of the queue whose messages say that a job waits. */
const QUEUE = "jobs";
/** A message that a worker took and did not answer for is given to another after so many seconds. */
const MESSAGE_SECONDS = 60;
/** A message that nobody takes is kept for so many days: jobs may wait for a worker for long. */
const MESSAGE_DAYS = 3650;

/**
 * PostgreSQL, or PGlite within this process, behind one driver and one schema. A table of jobs says what is to be done and by whom; a
 * queue (pg-boss) wakes workers.
 */
export class Database {
  private constructor(
    readonly pool: pg.Pool,
    private readonly boss: PgBoss,
    /** How another process reaches it. */
    readonly url: string,
    private readonly closeEngine: () => Promise<void>,
  ) {}

  /** @param url `postgres://...`; without one, PGlite keeps everything in the directory */
  static async open(url: string | undefined, directory: string): Promise<Database> {
    const engine = url === undefined ? await startEmbedded(directory) : { url, close: async () => {} };
    return Database.connect(engine.url, engine.close);
  }

  /** Reaches one that is there. */
  static async connect(url: string, closeEngine: () => Promise<void> = async () => {}): Promise<Database> {
    const pool = new pg.Pool({ ...connectionOf(url), max: 8, connectionTimeoutMillis: 30_000 });
    pool.on("error", () => {}); // a connection that idles may be ended by the server: the next query gets another
    const boss = new PgBoss({
      db: { executeSql: (text, values) => pool.query(text, values) },
      ...{ maintenanceIntervalSeconds: 30, monitorStateIntervalSeconds: 3600, schedule: false },
    });
    boss.on("error", () => {}); // what it does by itself (maintenance) is tried again
    try {
      await migrate(pool);
      await boss.start();
      await boss.createQueue(QUEUE, { name: QUEUE, retryLimit: 100, expireInSeconds: MESSAGE_SECONDS });
    } catch (error) {
      await pool.end();
      await closeEngine();
      throw new CoppiceError(`the database cannot be used: ${error instanceof Error ? error.message : error}`);
    }
    return new Database(pool, boss, url, closeEngine);
  }

  /** Does several things or none. */
  async transaction<T>(work: (client: Queryable) => Promise<T>): Promise<T> {
    const client = await this.pool.connect();
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

  /** Wakes a worker for a job, when the transaction is through. */
  async announce(client: Queryable, jobId: string): Promise<void> {
    const db = { executeSql: (text: string, values: unknown[]) => client.query(text, values) };
    await this.boss.send(QUEUE, { jobId }, { db, retentionDays: MESSAGE_DAYS });
  }

  /** A job that waits, if there is one. `done` says that the message has served. */
  async nextAnnounced(): Promise<{ readonly jobId: string; readonly done: () => Promise<void> } | undefined> {
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

/** `socket:DIRECTORY` is PGlite of another process, on a socket in a directory that only its owner may enter. */
export const connectionOf = (url: string): pg.PoolConfig =>
  url.startsWith("socket:")
    ? { host: url.slice("socket:".length), port: 5432, database: "postgres", user: "postgres" }
    : { connectionString: url };

/** Starts PGlite, and lets this process and its workers reach it like any PostgreSQL. */
async function startEmbedded(directory: string) {
  const [files, sockets] = [path.join(directory, "database"), path.join(directory, "socket")];
  for (const one of [directory, files, sockets]) mkdirSync(one, { recursive: true, mode: 0o700 });
  const lock = await lockDirectory(directory);
  const { PGlite } = await import("@electric-sql/pglite");
  const { PGLiteSocketServer } = await import("@electric-sql/pglite-socket");
  const db = await PGlite.create(files);
  const socket = path.join(sockets, ".s.PGSQL.5432");
  rmSync(socket, { force: true }); // of one that was killed: the lock says that no other uses it
  const server = new PGLiteSocketServer({ db: turnsByQuery(db), path: socket, maxConnections: 64 });
  await server.start();
  const close = async () => {
    await server.stop();
    await db.close();
    lock.close();
  };
  return { url: `socket:${sockets}`, close };
}

/** Messages of PostgreSQL's extended protocol that others follow up to a Sync: Parse, Bind, Describe, Execute, Close, Flush. */
const CONTINUED = new Set([..."PBDECH"].map((letter) => letter.charCodeAt(0)));
const SYNC = Uint8Array.of("S".charCodeAt(0), 0, 0, 0, 4);

/**
 * Connections share PGlite's one session, and the socket's server gives them turns by message: another's Parse may come between a
 * Parse and its Bind, which then means the wrong statement. It keeps a turn for a connection within a transaction; here it also
 * counts as one until its query's Sync.
 */
function turnsByQuery(db: PGlite): PGlite {
  let within = false;
  const own: Partial<PGlite> = {
    isInTransaction: () => within || db.isInTransaction(),
    execProtocolRawStream: (message, options) => {
      within = CONTINUED.has(message[0] ?? 0);
      return db.execProtocolRawStream(message, options);
    },
    // what is done when a connection breaks off: what came of its query is ended, too
    exec: async (sql, options) => {
      if (within) await db.execProtocolRaw(SYNC);
      within = false;
      return db.exec(sql, options);
    },
  };
  return new Proxy(db, {
    get: (target, name) => {
      const value: unknown = Reflect.get(name in own ? own : target, name);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** Two processes with one PGlite would destroy it: a socket that only one can listen on tells. */
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
    const alive = await Promise.race([
      new Promise<boolean>((resolve) => {
        const socket = connect(file, () => {
          socket.destroy();
          resolve(true);
        });
        socket.once("error", () => resolve(false));
      }),
      wait(2000, true),
    ]);
    if (alive) throw new CoppiceError(`${directory} is used by another foundry: end that, or choose another --data`);
    rmSync(file, { force: true }); // of one that was killed
    return (await listen()).unref();
  }
}

/** Brings the schema up to date; several processes may try at once. */
async function migrate(pool: pg.Pool): Promise<void> {
  const client = await pool.connect();
  try {
    await client.query("begin");
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
    await client.query("commit");
  } catch (error) {
    await client.query("rollback").catch(() => {});
    throw error;
  } finally {
    client.release();
  }
}
