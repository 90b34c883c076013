import { randomUUID } from "node:crypto";
import { closeSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import type { Logger } from "pino";
import type { JobOptions, ProgressEvent } from "../jobs/index.js";
import { CoppiceError } from "../system/errors.js";
import type { Database } from "./database.js";
import { keys, type Materials } from "./materials.js";
import { runJob } from "./run-job.js";
import type { Storage, Workspace } from "./storage.js";
import { type Job, type JobProgress, Jobs, type StageSummary } from "./store/jobs.js";
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
const TICK_MILLISECONDS = 1000;
/** A job that was told to stop and did not is left, and the process with it. */
export const STOP_SECONDS = 20;
/** How often what was done is kept where other machines find it, within a stage. */
const SAVE_SECONDS = 10;

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
    const abort = new AbortController();
    const stop = () => abort.abort();
    signal.addEventListener("abort", stop, { once: true });
    const workspace = await storage.workspace(keys.workspace(job.id), job.attempts);
    const reporter = new Reporter(this.jobs, job, workspace);
    let standing: "held" | "cancelled" | "lost" = "held";
    let stopAsked = 0;
    let stageEnded = false;
    let lastSave = performance.now();
    let saving: Promise<void> | undefined;
    /** May take minutes: not waited for while the job runs, so that it hears of its end in seconds. */
    const save = () => {
      stageEnded = false;
      saving = workspace
        .save()
        .catch((error: unknown) => logger.error({ job: job.id, error: String(error) }, "cannot save"))
        .finally(() => {
          lastSave = performance.now();
          saving = undefined;
        });
    };
    let ticking: Promise<void> | undefined;
    const tick = async () => {
      try {
        stageEnded = (await reporter.report()) || stageEnded;
        standing = await this.jobs.standing(job);
        if (standing !== "held") abort.abort();
        const due = stageEnded || performance.now() - lastSave > 1000 * SAVE_SECONDS;
        if (due && standing === "held" && saving === undefined) save();
        if (abort.signal.aborted) {
          stopAsked ||= performance.now();
          if (performance.now() - stopAsked > 1000 * STOP_SECONDS) await this.abandon(job, standing);
        }
      } catch (error) {
        logger.error({ job: job.id, error: String(error) }, "cannot report");
      }
    };
    const timer = setInterval(() => {
      ticking ??= tick().finally(() => {
        ticking = undefined;
      });
    }, TICK_MILLISECONDS);
    /** Nothing is reported or saved any more. */
    const settled = async () => {
      clearInterval(timer);
      await ticking;
      await saving;
    };
    try {
      const { model, dataset } = await this.inputs(job);
      const outcome = await runJob({
        ...{ job, model, dataset, storage, workspace, library, materials },
        options: { ...this.options.compute, signal: abort.signal, onProgress: (event) => reporter.progress(event) },
        log: (text) => reporter.log(text),
      });
      await reporter.report();
      const counted = await this.jobs.finish(
        job,
        { state: "done", result: outcome.result, artifacts: outcome.artifacts },
        async (client) => {
          const { made } = outcome;
          if (made === undefined) return;
          const { name, facts, licence, bytes, key } = made;
          await library.addModel(
            {
              tenant: job.tenant,
              name,
              source: { kind: "job", key },
              state: "ready",
              facts,
              licence,
              bytes,
              job_id: job.id,
            },
            client,
          );
        },
      );
      await settled();
      if (counted) await workspace.discard();
      logger.info({ job: job.id, seconds: (performance.now() - started) / 1000, counted }, "job done");
    } catch (error) {
      if (!abort.signal.aborted) standing = await this.jobs.standing(job);
      if (standing === "cancelled") await this.jobs.finish(job, { state: "cancelled" });
      else if (signal.aborted && standing === "held") {
        await settled();
        await workspace.save();
        await this.jobs.giveBack(job);
      } else if (standing === "held") {
        await settled();
        await reporter.report().catch(() => {});
        await workspace.save().catch(() => {}); // for when it is tried again
        const said = error instanceof Error ? error.message : String(error);
        await this.jobs.finish(job, {
          state: "failed",
          error: materials.withoutPlaces(said.replaceAll(workspace.path, "the job's directory")),
        });
      }
      logger.info(
        { job: job.id, standing, error: error instanceof CoppiceError ? error.message : String(error) },
        "job ended",
      );
    } finally {
      clearInterval(timer);
      signal.removeEventListener("abort", stop);
    }
  }

  /** Ends the process: what computes there cannot be stopped otherwise. */
  private async abandon(job: Job, standing: "held" | "cancelled" | "lost"): Promise<void> {
    if (standing === "cancelled") await this.jobs.finish(job, { state: "cancelled" });
    else if (standing === "held") await this.jobs.giveBack(job);
    process.exit(75);
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

/** Tells the database what a job does: its stage and progress, and the lines of metrics since the last time. */
class Reporter {
  private stage: string | null = null;
  private stageBegan = 0;
  private latest: JobProgress | null = null;
  private logs: object[] = [];
  private begun: object[] = [];
  private metricsRead: number;
  private stagesStamp = "";
  private stages: readonly StageSummary[];

  constructor(
    private readonly jobs: Jobs,
    private readonly job: Job,
    private readonly workspace: Workspace,
  ) {
    this.stages = job.stages;
    const { size = 0 } = statSync(this.file("metrics.jsonl"), { throwIfNoEntry: false }) ?? {};
    this.metricsRead = size; // what was there before was told by who was there before
  }

  private file(name: string): string {
    return path.join(this.workspace.path, name);
  }

  log(text: string): void {
    this.logs.push({ text });
  }

  progress({ stage, done, total, unit, detail }: ProgressEvent): void {
    if (stage !== this.stage) {
      this.stage = stage;
      this.stageBegan = performance.now();
      this.begun.push({ stage });
    }
    const seconds = (performance.now() - this.stageBegan) / 1000;
    const secondsLeft = done > 0 && seconds > 1 ? (seconds * (total - done)) / done : undefined;
    this.latest = { stage, done, total, unit, detail, secondsLeft };
  }

  /** @returns whether a stage was finished since the last time */
  async report(): Promise<boolean> {
    const before = this.stages.length;
    const stamp = statSync(this.file("stages.json"), { throwIfNoEntry: false })?.mtimeMs;
    if (stamp !== undefined && `${stamp}` !== this.stagesStamp) {
      this.stagesStamp = `${stamp}`;
      const all = JSON.parse(readFileSync(this.file("stages.json"), "utf8")) as StageSummary[];
      if (all.length > this.stages.length) await this.jobs.survived(this.job);
      this.stages = all.map(({ name, seconds, peakMemoryBytes }) => ({ name, seconds, peakMemoryBytes }));
    }
    const { job, jobs } = this;
    await jobs.report(job, { stage: this.stage, progress: this.latest, stages: this.stages });
    await jobs.note(job, "stage", this.begun.splice(0));
    await jobs.note(job, "log", this.logs.splice(0));
    await jobs.note(job, "metrics", this.newMetrics());
    return this.stages.length > before;
  }

  /** At most so many points at once: a tiny model takes thousands of steps in a second. */
  private newMetrics(): object[] {
    const lines = this.newLines(this.file("metrics.jsonl"));
    const every = Math.ceil(lines.length / MOST_POINTS);
    return lines
      .filter((line, i) => i % every === every - 1 || line.includes('"validationLoss"'))
      .map((line) => {
        const { step, tokens, loss, learningRate, tokensPerSecond, validationLoss } = JSON.parse(line) as Record<
          string,
          number
        >;
        return {
          step,
          tokens,
          loss,
          learningRate,
          tokensPerSecond,
          validationLoss,
        };
      });
  }

  /** Whole lines since the last time: the file may be long. */
  private newLines(file: string): string[] {
    const { size } = statSync(file, { throwIfNoEntry: false }) ?? {};
    if (size === undefined) return [];
    if (size < this.metricsRead) this.metricsRead = 0; // cut back to a checkpoint
    const bytes = Buffer.alloc(Math.min(size - this.metricsRead, MOST_BYTES));
    const fd = openSync(file, "r");
    try {
      const read = readSync(fd, bytes, 0, bytes.length, this.metricsRead);
      const end = bytes.subarray(0, read).lastIndexOf(10) + 1;
      this.metricsRead += end;
      return bytes.toString("utf8", 0, end).split("\n").filter(Boolean);
    } finally {
      closeSync(fd);
    }
  }
}

const MOST_POINTS = 20;
/** What is read at once of the lines that a job wrote. */
const MOST_BYTES = 4 << 20;
