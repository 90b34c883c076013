import { setMaxListeners } from "node:events";
import path from "node:path";
import { type Listening, listen } from "../serve/listen.js";
import { UsageError } from "../system/errors.js";
import { packageRoot } from "../system/package-root.js";
import type { Database } from "./database.js";
import { type FoundryServices, foundryApp } from "./http.js";
import { factsOf, Materials } from "./materials.js";
import { DEFAULTS, type FoundryOptions } from "./options.js";
import { Playground } from "./playground.js";
import { newLogger, openState } from "./state.js";
import { Jobs } from "./store/jobs.js";
import { Library } from "./store/library.js";
import type { Tenants } from "./store/tenants.js";
import { WorkerPool } from "./worker-pool.js";

export interface RunningFoundry {
  readonly url: string;
  /** Process ids of the workers beside the service. */
  readonly workerPids: () => readonly number[];
  close(): Promise<void>;
}

/** Seconds that an upload may take. */
const UPLOAD_SECONDS = 6 * 3600;
/** Seconds that requests under way have when the service ends. */
const DRAIN_SECONDS = 10;

/** Starts the service: its API, its pages and its workers. @throws UsageError for a public address without keys */
export async function startFoundry(options: FoundryOptions = {}): Promise<RunningFoundry> {
  const host = options.host ?? DEFAULTS.host;
  const deadAfterSeconds = options.deadAfterSeconds ?? DEFAULTS.deadAfterSeconds;
  const logger = newLogger(options.logLevel);
  const state = await openState(options);
  const { db, storage, tenants, hubCache } = state;
  const library = new Library(db);
  await addEmbeddedModel(library, db);
  const ending = new AbortController();
  setMaxListeners(0, ending.signal); // one for each event stream
  const services: FoundryServices = {
    db,
    storage,
    tenants,
    library,
    jobs: new Jobs(db),
    logger,
    materials: new Materials(storage, tenants, library, hubCache),
    playground: new Playground(options),
    maxUploadBytes: options.maxUploadBytes ?? DEFAULTS.maxUploadBytes,
    corsOrigins: options.corsOrigins ?? [],
    isLocal: isLoopback(host),
    ending: ending.signal,
  };
  if (!services.isLocal && !(await tenants.anyKeys()))
    throw new UsageError(
      `other machines can reach ${host}, and there are no API keys: create one first (coppice foundry keys add NAME --role admin), or listen on 127.0.0.1`,
    );
  let listening: Listening;
  try {
    const port = options.port ?? DEFAULTS.port;
    listening = await listen(foundryApp(services), { host, port, receiveSeconds: UPLOAD_SECONDS });
  } catch (error) {
    await db.close();
    throw error;
  }
  const workers = new WorkerPool({ ...options, deadAfterSeconds }, state, logger);
  workers.start(options.workers ?? DEFAULTS.workers);
  const sweepMilliseconds = 500 * deadAfterSeconds;
  let lastSweep = performance.now();
  const sweep = setInterval(() => {
    const late = performance.now() - lastSweep - sweepMilliseconds;
    lastSweep = performance.now();
    // a database in this process has not heard the workers while the process was busy
    if (late < sweepMilliseconds) void services.jobs.recoverFromDeadWorkers(deadAfterSeconds).catch(() => {});
  }, sweepMilliseconds);
  const database = options.databaseUrl === undefined ? "PGlite" : "PostgreSQL";
  logger.info({ url: listening.url, data: state.directory, database }, "foundry");
  return {
    url: listening.url,
    workerPids: () => workers.pids,
    close: async () => {
      clearInterval(sweep);
      await workers.stop();
      ending.abort();
      await listening.close(DRAIN_SECONDS);
      await services.playground.close();
      await db.close();
    },
  };
}

export const isLoopback = (host: string): boolean => host === "localhost" || host === "::1" || /^127\./.test(host);

/** Adds the model that comes with the package, for everybody to start with. */
async function addEmbeddedModel(library: Library, db: Database): Promise<void> {
  await db.transaction(async (client) => {
    await client.query("select pg_advisory_xact_lock(77013)");
    const { rows } = await client.query("select 1 from foundry.models where tenant is null");
    if (rows.length > 0) return;
    const facts = factsOf(path.join(packageRoot, "examples/tiny-teacher"));
    await library.addModel(
      {
        tenant: null,
        name: "Tiny teacher",
        source: { kind: "embedded", path: "tiny-teacher" },
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
  const { db, tenants } = await openState(options);
  try {
    return await work(tenants);
  } finally {
    await db.close();
  }
}
