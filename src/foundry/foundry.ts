import { type ChildProcess, spawn } from "node:child_process";
import { setMaxListeners } from "node:events";
import { mkdirSync, readdirSync } from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import type { Logger } from "pino";
import type { JobOptions } from "../jobs/index.js";
import { type Listening, listen } from "../serve/listen.js";
import { UsageError } from "../system/errors.js";
import { serviceLogger } from "../system/log.js";
import { packageRoot } from "../system/package-root.js";
import { checkWritable, statOf } from "../system/places.js";
import { Database } from "./database.js";
import { startHeartbeat } from "./heartbeat.js";
import { type FoundryServices, foundryApp } from "./http.js";
import { STOP_SECONDS } from "./job-watch.js";
import { factsOf, Materials } from "./materials.js";
import { Playground } from "./playground.js";
import { Secrets } from "./secrets.js";
import { openStorage, type Storage } from "./storage.js";
import { Jobs } from "./store/jobs.js";
import { Library } from "./store/library.js";
import { type Quota, Tenants } from "./store/tenants.js";
import { Worker } from "./worker.js";

export interface FoundryOptions extends Pick<JobOptions, "device" | "threads"> {
  /** Where the embedded database, files and secrets are. */
  readonly data?: string | undefined;
  /** `postgres://...`; PGlite in the data directory without. */
  readonly databaseUrl?: string | undefined;
  /** A directory or `s3://bucket/prefix`; in the data directory without. */
  readonly storage?: string | undefined;
  readonly host?: string | undefined;
  readonly port?: number | undefined;
  /** Processes that do jobs, beside this one; 1 by default. */
  readonly workers?: number | undefined;
  readonly logLevel?: "silent" | "error" | "info" | undefined;
  readonly maxUploadBytes?: number | undefined;
  /** What each tenant may take unless it has a quota of its own. */
  readonly quota?: Partial<Quota> | undefined;
  readonly deadAfterSeconds?: number | undefined;
  readonly corsOrigins?: readonly string[] | undefined;
}

export interface RunningFoundry {
  readonly url: string;
  /** Processes that do jobs now. */
  readonly workerPids: () => readonly number[];
  close(): Promise<void>;
}

const DEFAULTS = { host: "127.0.0.1", port: 7700, workers: 1, maxUploadBytes: 50e9, deadAfterSeconds: 15 };
/** What a tenant may take where nothing else is said. */
const QUOTA: Quota = { max_bytes: null, max_jobs: 1000, max_tokens: null };
const BEAT_SECONDS = 2;
/** Seconds beyond those that a worker gives its job to stop, after which it is taken to hear nothing. */
const DEAF_SECONDS = 5;
/** Seconds that an upload may take. */
const UPLOAD_SECONDS = 6 * 3600;

/** Where a foundry keeps its data where nothing is said. */
export const defaultDataDirectory = (): string =>
  path.join(process.env.XDG_DATA_HOME ?? path.join(homedir(), ".local", "share"), "coppice", "foundry");

const newLogger = (level: FoundryOptions["logLevel"]): Logger => serviceLogger("foundry", level ?? "info");

interface Common {
  readonly db: Database;
  readonly storage: Storage;
  readonly tenants: Tenants;
  readonly directory: string;
}

async function openCommon(options: FoundryOptions, url: string | undefined): Promise<Common> {
  const directory = path.resolve(options.data ?? defaultDataDirectory());
  checkDataDirectory(directory);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const storage = await openStorage(options.storage ?? path.join(directory, "files"), path.join(directory, "cache"));
  const secrets = Secrets.open(directory);
  const db = url?.startsWith("socket:") ? await Database.connect(url) : await Database.open(url, directory);
  const tenants = new Tenants(db, secrets, { ...QUOTA, ...options.quota });
  return { db, storage, tenants, directory };
}

/** What a foundry keeps in its data directory. */
const OWN = ["database", "socket", "files", "cache", "secret"];

/** A database among someone's own files would be hard to tell from them. @throws UsageError when it is neither empty nor a foundry's */
function checkDataDirectory(directory: string): void {
  const stat = statOf(directory);
  if (stat === undefined) {
    checkWritable(directory, "--data");
    return;
  }
  if (!stat.isDirectory()) throw new UsageError(`${directory} is a file: --data names a directory`);
  const found = readdirSync(directory).filter((name) => !name.startsWith("."));
  if (found.length > 0 && !found.some((name) => OWN.includes(name)))
    throw new UsageError(
      `${directory} is not empty and no foundry's (it has ${found.slice(0, 3).join(", ")}): name another directory with --data`,
    );
}

/** Where what comes from the hub for tenants with keys lies. */
const hubCacheOf = ({ directory }: Common): string => path.join(directory, "cache", "hub");

/** What a request that was taken may still take when the service ends. */
const LAST_SECONDS = 10;

/** Starts the service: its API, its pages and its workers. */
export async function startFoundry(options: FoundryOptions = {}): Promise<RunningFoundry> {
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  const all = { ...DEFAULTS, ...given } as typeof DEFAULTS & FoundryOptions;
  const logger = newLogger(all.logLevel);
  const common = await openCommon(all, all.databaseUrl);
  const { db, storage, tenants } = common;
  const library = new Library(db);
  await seed(library, db);
  const ending = new AbortController();
  setMaxListeners(0, ending.signal); // as many as watch
  const services: FoundryServices = {
    ...{ db, storage, tenants, library, jobs: new Jobs(db), logger },
    materials: new Materials(storage, tenants, library, hubCacheOf(common)),
    ...{ maxUploadBytes: all.maxUploadBytes, corsOrigins: all.corsOrigins ?? [], isLocal: isLoopback(all.host) },
    ...{ playground: new Playground(all), ending: ending.signal },
  };
  if (!services.isLocal && !(await tenants.anyKeys()))
    throw new UsageError(
      `${all.host} can be reached from elsewhere, and there are no keys: make one first (coppice foundry keys add NAME --role admin), or listen on 127.0.0.1`,
    );
  let listening: Listening;
  try {
    listening = await listen(foundryApp(services), { host: all.host, port: all.port, receiveSeconds: UPLOAD_SECONDS });
  } catch (error) {
    await db.close();
    throw error;
  }
  const crew = new Crew(all, common, logger);
  crew.start(all.workers);
  const sweep = setInterval(
    () => void services.jobs.takeFromTheDead(all.deadAfterSeconds).catch(() => {}),
    500 * all.deadAfterSeconds,
  );
  logger.info(
    { url: listening.url, data: common.directory, database: all.databaseUrl === undefined ? "PGlite" : "PostgreSQL" },
    "foundry",
  );
  return {
    url: listening.url,
    workerPids: () => crew.pids,
    close: async () => {
      clearInterval(sweep);
      await crew.stop();
      ending.abort();
      await listening.close(LAST_SECONDS);
      await services.playground.close();
      await db.close();
    },
  };
}

export const isLoopback = (host: string): boolean => host === "localhost" || host === "::1" || /^127\./.test(host);

/** The model that everybody may begin with. */
async function seed(library: Library, db: Database): Promise<void> {
  await db.transaction(async (client) => {
    await client.query("select pg_advisory_xact_lock(77013)");
    const { rows } = await client.query("select 1 from foundry.models where tenant is null");
    if (rows.length > 0) return;
    const facts = factsOf(path.join(packageRoot, "examples/tiny-teacher"));
    const source = { kind: "embedded" as const, path: "tiny-teacher" };
    await library.addModel(
      {
        tenant: null,
        name: "Tiny teacher",
        source,
        state: "ready",
        facts,
        licence: "apache-2.0",
        bytes: 2 * facts.parameters,
      },
      client,
    );
  });
}

/** Works on keys and quotas without starting the service. */
export async function withTenants<T>(options: FoundryOptions, work: (tenants: Tenants) => Promise<T>): Promise<T> {
  const { db, tenants } = await openCommon(options, options.databaseUrl);
  try {
    return await work(tenants);
  } finally {
    await db.close();
  }
}

/** Does jobs until the signal, in this process. @param attached whether to end with the process that started it */
export async function runWorker(
  options: FoundryOptions & { readonly attached?: boolean | undefined },
  signal: AbortSignal,
): Promise<void> {
  const url = options.databaseUrl;
  if (url === undefined)
    throw new UsageError("a worker needs to know the database: --database postgres://... (DATABASE_URL)");
  const logger = newLogger(options.logLevel);
  const deadAfterSeconds = options.deadAfterSeconds ?? DEFAULTS.deadAfterSeconds;
  const common = await openCommon(options, url);
  const { db, storage, tenants } = common;
  const abort = new AbortController();
  const stop = () => abort.abort();
  signal.addEventListener("abort", stop, { once: true });
  if (signal.aborted) stop();
  if (options.attached)
    process.stdin
      .on("end", () => process.exit(1))
      .on("error", () => {})
      .resume();
  const { device, threads } = options;
  const compute = { ...(device && { device }), ...(threads && { threads }) };
  const library = new Library(db);
  const materials = new Materials(storage, tenants, library, hubCacheOf(common));
  const worker = new Worker({ db, storage, library, materials, logger, deadAfterSeconds, compute });
  const endHeartbeat = await startHeartbeat({
    url: db.url,
    id: worker.id,
    seconds: Math.min(BEAT_SECONDS, deadAfterSeconds / 4),
    deafSeconds: STOP_SECONDS + DEAF_SECONDS,
  });
  logger.info({ worker: worker.id, pid: process.pid }, "worker");
  try {
    await worker.run(abort.signal);
  } finally {
    await endHeartbeat();
    await db.close();
    if (options.attached) process.stdin.destroy(); // would keep the process
  }
}

/** Worker processes, started again when they die. */
class Crew {
  private readonly children = new Set<ChildProcess>();
  private stopping = false;

  constructor(
    private readonly options: FoundryOptions,
    private readonly common: Common,
    private readonly logger: Logger,
  ) {}

  get pids(): number[] {
    return [...this.children].flatMap(({ pid }) => pid ?? []);
  }

  start(count: number): void {
    for (let i = 0; i < count; i++) this.spawn();
  }

  private spawn(): void {
    const { device, threads, deadAfterSeconds, logLevel, storage } = this.options;
    const args = [path.join(packageRoot, "bin/coppice.cjs"), "foundry", "worker", "--attached"];
    const flags = Object.entries({
      ...{
        data: this.common.directory,
        device,
        threads,
        "dead-after": deadAfterSeconds,
        "log-level": logLevel,
        storage,
      },
    }).flatMap(([name, value]) => (value === undefined ? [] : [`--${name}`, `${value}`]));
    const child = spawn(process.execPath, [...args, ...flags], {
      stdio: ["pipe", "ignore", "inherit"],
      env: { ...process.env, DATABASE_URL: this.common.db.url }, // not among the arguments, which all may read
    });
    this.children.add(child);
    child.stdin?.on("error", () => {});
    const began = performance.now();
    const again = (code: number | string | null) => {
      if (!this.children.delete(child) || this.stopping) return;
      this.logger.error({ pid: child.pid, code }, "a worker died: starting another");
      setTimeout(() => !this.stopping && this.spawn(), performance.now() - began < 5000 ? 2000 : 100);
    };
    child.once("exit", (code, signal) => again(code ?? signal));
    child.once("error", (error) => again(String(error)));
  }

  /** Lets them give back what they do. */
  async stop(): Promise<void> {
    this.stopping = true;
    await Promise.all(
      [...this.children].map(
        (child) =>
          new Promise<void>((resolve) => {
            if (child.exitCode !== null || child.signalCode !== null) return resolve();
            const late = setTimeout(() => child.kill("SIGKILL"), 30_000);
            child.once("exit", () => {
              clearTimeout(late);
              resolve();
            });
            child.kill("SIGTERM");
          }),
      ),
    );
  }
}
