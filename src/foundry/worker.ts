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
import { type Job, Jobs } from "./store/jobs.js";
import type { Library, ModelRow } from "./store/library.js";

export interface WorkerOptions {
  readonly db: Database;
  readonly storage: Storage;
  readonly library: Library;
  readonly materials: Materials;
  readonly logger: Logger;
  /** Where and how jobs compute. */
  readonly compute: Pick<JobOptions, "device" | "threads">;
  /** A worker that was not heard of for so many seconds is dead. */
  readonly deadAfterSeconds: number;
}

const IDLE_MILLISECONDS = 500;

/** A job under way, and who looks after it. */
interface UnderWay {
  readonly job: Job;
  readonly watch: JobWatch;
  readonly workspace: Workspace;
  readonly reporter: Reporter;
}

/** Takes jobs and does them, one at a time, until it is told to stop. */
export class Worker {
  readonly id = randomUUID();
  private readonly jobs: Jobs;

  constructor(private readonly options: WorkerOptions) {
    this.jobs = new Jobs(options.db);
  }

  /** @param signal to stop: a job that runs is given back, for another worker to go on with */
  async run(signal: AbortSignal): Promise<void> {
    const { db, logger, deadAfterSeconds } = this.options;
    let lastSweep = 0;
    while (!signal.aborted) {
      try {
        if (performance.now() - lastSweep > 500 * deadAfterSeconds) {
          lastSweep = performance.now();
          const taken = await this.jobs.takeFromTheDead(deadAfterSeconds);
          if (taken > 0) logger.info({ jobs: taken }, "took jobs from dead workers");
        }
        const message = await db.nextAnnounced();
        if (message === undefined) {
          await wait(IDLE_MILLISECONDS * (0.5 + Math.random()), undefined, { signal }).catch(() => {});
          continue;
        }
        const job = await this.jobs.claim(message.jobId, this.id);
        await message.done();
        if (job !== undefined) await this.work(job, signal);
      } catch (error) {
        logger.error({ error: String(error) }, "the worker could not go on");
        await wait(2000, undefined, { signal }).catch(() => {});
      }
    }
  }

  private async work(job: Job, signal: AbortSignal): Promise<void> {
    const { logger, storage, library, materials } = this.options;
    const started = performance.now();
    logger.info({ job: job.id, attempt: job.attempts }, "job begins");
    const workspace = await storage.workspace(keys.workspace(job.id), job.attempts);
    const reporter = new Reporter(this.jobs, job, workspace);
    const watch = new JobWatch(job, this.jobs, workspace, reporter, logger, signal);
    try {
      const { model, dataset } = await this.inputs(job);
      const outcome = await runJob({
        ...{ job, model, dataset, storage, workspace, library, materials },
        options: {
          ...this.options.compute,
          signal: watch.signal,
          onProgress: (event) => reporter.progress(event),
          onNote: (text) => reporter.log(text),
        },
        log: (text) => reporter.log(text),
      });
      await reporter.report();
      const counted = await this.finish(job, outcome);
      await watch.settled();
      if (counted) await workspace.discard();
      logger.info({ job: job.id, seconds: (performance.now() - started) / 1000, counted }, "job done");
    } catch (error) {
      if (!watch.signal.aborted) watch.standing = await this.jobs.standing(job);
      await this.leave({ job, watch, workspace, reporter }, error, signal.aborted);
      const said = error instanceof CoppiceError ? error.message : String(error);
      logger.info({ job: job.id, standing: watch.standing, error: said }, "job ended");
    } finally {
      watch.close();
    }
  }

  /** Records what a job came to. @returns whether it was still this worker's */
  private finish(job: Job, { result, artifacts, made }: JobOutcome): Promise<boolean> {
    return this.jobs.finish(job, { state: "done", result, artifacts }, async (client) => {
      if (made === undefined) return;
      const { name, facts, licence, bytes, key } = made;
      const source = { kind: "job", key } as const;
      const row = { tenant: job.tenant, name, source, state: "ready", facts, licence, bytes, job_id: job.id } as const;
      await this.options.library.addModel(row, client);
    });
  }

  /** Of a job that did not come to its end: cancelled, given back where the worker ends, or failed. */
  private async leave({ job, watch, workspace, reporter }: UnderWay, error: unknown, isEnding: boolean): Promise<void> {
    if (watch.standing === "cancelled") await this.jobs.finish(job, { state: "cancelled" });
    if (watch.standing !== "held") return;
    await watch.settled();
    if (isEnding) {
      await workspace.save();
      await this.jobs.giveBack(job);
      return;
    }
    await reporter.report().catch(() => {});
    await workspace.save().catch(() => {}); // for when it is tried again
    const said = (error instanceof Error ? error.message : String(error)).replaceAll(
      workspace.path,
      "the job's directory",
    );
    await this.jobs.finish(job, { state: "failed", error: this.options.materials.withoutPlaces(said) });
  }

  private async inputs({ tenant, spec }: Job) {
    const { library } = this.options;
    const model = await library.model(tenant, spec.model);
    if (model === undefined) throw new CoppiceError("the job's model is no longer there");
    const wanted = spec.kind === "compress" ? spec.dataset : undefined;
    const dataset = wanted === undefined ? undefined : await library.dataset(tenant, wanted);
    if (wanted !== undefined && dataset === undefined) throw new CoppiceError("the job's data is no longer there");
    return { model: model as ModelRow, dataset };
  }
}
