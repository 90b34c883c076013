import { Backend } from "../ggml/index.js";
import type { Ranks } from "../ranks/index.js";
import { UsageError } from "../system/errors.js";
import { startHeartbeat } from "./heartbeat.js";
import { STOP_SECONDS } from "./job-watch.js";
import { Materials } from "./materials.js";
import { DEFAULTS, type FoundryOptions } from "./options.js";
import { newLogger, openState } from "./state.js";
import type { WorkerFacts } from "./store/jobs.js";
import { Library } from "./store/library.js";
import { Worker } from "./worker.js";

const HEARTBEAT_SECONDS = 2;
/** Seconds after those that a job has to stop, before its worker counts as unresponsive. */
const UNRESPONSIVE_SECONDS = 5;

/** How a worker runs, and for which foundry. */
export interface WorkerProcessOptions extends FoundryOptions {
  /** Whether to exit with the process that started it. */
  readonly attached?: boolean | undefined;
  /** Processes that share each job, started by MPI. */
  readonly ranks?: Ranks | undefined;
}

/** What this process has for jobs. @throws UsageError where there is no such device */
function factsOf({ device, threads, ranks }: WorkerProcessOptions): WorkerFacts {
  const backend = Backend.open({ device, threads, instance: ranks?.local.rank });
  const { kind, memoryTotalBytes } = backend.device;
  backend.free();
  return { device: kind, memoryBytes: memoryTotalBytes, ranks: ranks?.size ?? 1 };
}

/** Runs jobs in this process until the signal. @throws UsageError without a database */
export async function runWorker(options: WorkerProcessOptions, signal: AbortSignal): Promise<void> {
  if (options.databaseUrl === undefined)
    throw new UsageError("a worker needs a database: --database postgres://..., or DATABASE_URL");
  const logger = newLogger(options.logLevel);
  const deadAfterSeconds = options.deadAfterSeconds ?? DEFAULTS.deadAfterSeconds;
  const { db, storage, tenants, hubCache } = await openState(options);
  if (options.attached)
    process.stdin
      .on("end", () => process.exit(1))
      .on("error", () => {})
      .resume();
  const { device, threads, ranks } = options;
  const facts = factsOf(options);
  const library = new Library(db);
  const materials = new Materials(storage, tenants, library, hubCache);
  const compute = { device, threads, ranks };
  const worker = new Worker({ db, storage, library, materials, logger, deadAfterSeconds, compute, facts });
  const endHeartbeat = await startHeartbeat({
    url: db.url,
    workerId: worker.id,
    facts,
    intervalSeconds: Math.min(HEARTBEAT_SECONDS, deadAfterSeconds / 4),
    unresponsiveSeconds: STOP_SECONDS + UNRESPONSIVE_SECONDS,
  });
  logger.info({ worker: worker.id, pid: process.pid, ...facts }, "worker");
  try {
    await worker.run(signal);
  } finally {
    await endHeartbeat();
    await db.close();
    if (options.attached) process.stdin.destroy(); // an open stdin keeps the process alive
  }
}
