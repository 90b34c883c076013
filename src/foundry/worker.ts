import { randomUUID } from "node:crypto";
import { setTimeout as wait } from "node:timers/promises";
import type { Logger } from "pino";
import type { JobOptions } from "../jobs/index.js";
import { CoppiceError } from "../system/errors.js";
import type { Database } from "./database.js";
import { JobWatch } from "./job-watch.js";
import { keys, type Materials } from "./materials.js";
import { Reporter } from "./reporter.js";
import { type JobOutcome, runJob } from "./run-job.js";
import type { Storage, Workspace } from "./storage.js";
import { type Job, Jobs, type WorkerFacts } from "./store/jobs.js";
import type { Library } from "./store/library.js";

export interface WorkerOptions {
  readonly db: Database;
  readonly storage: Storage;
  readonly library: Library;
  readonly materials: Materials;
  readonly logger: Logger;
  /** The device and threads of jobs. */
  readonly compute: Pick<JobOptions, "device" | "threads" | "ranks">;
  readonly facts: WorkerFacts;
  /** Seconds without a heartbeat after which a worker counts as dead. */
  readonly deadAfterSeconds: number;
}

const IDLE_MILLISECONDS = 500;

/** A job that runs here. */
interface RunningJob {
  readonly job: Job;
  readonly watch: JobWatch;
  readonly workspace: Workspace;
  readonly reporter: Reporter;
}

/** PostgreSQL's classes of errors of a connection, of resources, and of a server that is stopped or started. */
const PASSING_SQL = /^(08|53|57)/;

/** Whether an error is one of the network, the database or the store that may pass, rather than of the job. */
function isPassing(error: unknown): boolean {
  if (error instanceof CoppiceError || !(error instanceof Error)) return false;
  const { code, $metadata, message } = error as Error & {
    readonly code?: unknown;
    readonly $metadata?: { readonly httpStatusCode?: number };
  };
  if (($metadata?.httpStatusCode ?? 0) >= 500) return true;
  if (typeof code !== "string") return /^Connection terminated/.test(message); // as node-postgres says it
  return PASSING_SQL.test(code) || /^E(CONN|PIPE|TIMEDOUT|AI_AGAIN|HOSTUNREACH|NETUNREACH)/.test(code);
}

/** Runs jobs from the queue, one at a time. */
export class Worker {
  readonly id = randomUUID();
  private readonly jobs: Jobs;

  constructor(private readonly options: WorkerOptions) {
    this.jobs = new Jobs(options.db);
  }

  /** Runs jobs until the signal; a job that is running then goes back to the queue. */
  async run(signal: AbortSignal): Promise<void> {
    const { db, logger, deadAfterSeconds } = this.options;
    let lastSweep = Number.NEGATIVE_INFINITY;
    while (!signal.aborted) {
      try {
        if (performance.now() - lastSweep > 500 * deadAfterSeconds) {
          lastSweep = performance.now();
          const requeued = await this.jobs.recoverFromDeadWorkers(deadAfterSeconds, this.id);
          if (requeued > 0) logger.info({ jobs: requeued }, "recovered jobs from dead workers");
        }
        const message = await db.dequeue();
        if (message === undefined) {
          await wait(IDLE_MILLISECONDS * (0.5 + Math.random()), undefined, { signal }).catch(() => {});
          continue;
        }
        const job = await this.jobs.claim(message.jobId, this.id, this.options.facts);
        if (job === undefined && (await this.jobs.waits(message.jobId))) await db.postpone(message.jobId);
        await message.done();
        if (job !== undefined) await this.work(job, signal);
      } catch (error) {
        logger.error({ error: String(error) }, "worker error");
        lastSweep = Number.NEGATIVE_INFINITY; // a job that it was working on is still this worker's
        await wait(2000, undefined, { signal }).catch(() => {});
      }
    }
  }

  private async work(job: Job, signal: AbortSignal): Promise<void> {
    const { logger, storage, library, materials } = this.options;
    const started = performance.now();
    logger.info({ job: job.id, attempt: job.attempts }, "job started");
    const workspace = await storage.workspace(keys.workspace(job.id), job.attempts);
    const reporter = new Reporter(this.jobs, job, workspace);
    const watch = new JobWatch({ job, jobs: this.jobs, workspace, reporter, logger, workerSignal: signal });
    try {
      const { model, dataset } = await this.inputs(job);
      const outcome = await runJob({
        job,
        model,
        dataset,
        storage,
        workspace,
        library,
        materials,
        options: {
          ...this.options.compute,
          signal: watch.signal,
          onProgress: (event) => reporter.progress(event),
          onNote: (text) => reporter.log(text),
        },
        log: (text) => reporter.log(text),
      });
      await reporter
        .report()
        .catch((error: unknown) => logger.warn({ job: job.id, error: String(error) }, "no report"));
      const wasHeld = await this.finish(job, outcome);
      await watch.settle();
      if (wasHeld) {
        await workspace.discard();
        // what attempts left whose workers died while they stored their results
        await storage.removeAllBut(keys.results(job.tenant, job.id), keys.attempt(job.lease ?? ""));
      }
      logger.info({ job: job.id, seconds: (performance.now() - started) / 1000, wasHeld }, "job done");
    } catch (error) {
      try {
        if (!watch.signal.aborted) watch.lease = await this.jobs.leaseState(job);
        if (watch.lease === "held" && isPassing(error)) throw error; // the job is done again, as after a worker's death
        await this.endUnfinished({ job, watch, workspace, reporter }, error, signal.aborted);
        const message = error instanceof CoppiceError ? error.message : String(error);
        logger.info({ job: job.id, lease: watch.lease, error: message }, "job ended");
      } finally {
        // the other processes wait for what this one has left: whoever started them starts them again
        if (this.options.compute.ranks?.busy) this.options.compute.ranks.abort(1);
      }
    } finally {
      watch.close();
    }
  }

  /** Records the outcome of a job. @returns whether this worker still held its lease */
  private finish(job: Job, { result, artifacts, model }: JobOutcome): Promise<boolean> {
    return this.jobs.finish(job, { state: "done", result, artifacts }, async (client) => {
      if (model === undefined) return;
      const { name, facts, licence, bytes, key } = model;
      const source = { kind: "job", key } as const;
      const row = { tenant: job.tenant, name, source, state: "ready", facts, licence, bytes, job_id: job.id } as const;
      await this.options.library.addModel(row, client);
    });
  }

  /** Records a job that did not finish: it was cancelled, goes back to the queue because the worker stops, or failed. */
  private async endUnfinished(
    { job, watch, workspace, reporter }: RunningJob,
    error: unknown,
    isWorkerStopping: boolean,
  ): Promise<void> {
    if (watch.lease === "cancelled") await this.jobs.finish(job, { state: "cancelled" });
    if (watch.lease !== "held") return;
    await watch.settle();
    if (isWorkerStopping) {
      await workspace.save();
      await this.jobs.release(job);
      return;
    }
    await reporter.report().catch(() => {});
    await workspace.save().catch(() => {}); // for a retry
    const message = (error instanceof Error ? error.message : String(error)).replaceAll(
      workspace.path,
      "the job's directory",
    );
    await this.jobs.finish(job, { state: "failed", error: this.options.materials.withoutPaths(message) });
  }

  private async inputs({ tenant, spec }: Job) {
    const { library } = this.options;
    const model = await library.model(tenant, spec.model);
    if (model === undefined) throw new CoppiceError("the job's model has been deleted");
    const datasetId = spec.kind === "compress" ? spec.dataset : undefined;
    const dataset = datasetId === undefined ? undefined : await library.dataset(tenant, datasetId);
    if (datasetId !== undefined && dataset === undefined) throw new CoppiceError("the job's data set has been deleted");
    return { model, dataset };
  }
}
