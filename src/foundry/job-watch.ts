import type { Logger } from "pino";
import type { Reporter } from "./reporter.js";
import type { Workspace } from "./storage.js";
import type { Job, Jobs, LeaseState } from "./store/jobs.js";

const TICK_MILLISECONDS = 1000;
/** Seconds that a job has to stop, before its process exits. */
export const STOP_SECONDS = 20;
/** Seconds between saves of the workspace within a stage. */
const SAVE_SECONDS = 10;

export interface WatchOptions {
  readonly job: Job;
  readonly jobs: Jobs;
  readonly workspace: Workspace;
  readonly reporter: Reporter;
  readonly logger: Logger;
  /** Aborted when the worker is to stop. */
  readonly workerSignal: AbortSignal;
}

/** Watches a running job: reports its progress, saves its workspace, and stops it when it is cancelled or another worker has it. */
export class JobWatch {
  lease: LeaseState = "held";
  private readonly abort = new AbortController();
  private readonly timer: NodeJS.Timeout;
  private ticking: Promise<void> | undefined;
  private saving: Promise<void> | undefined;
  private lastSave = performance.now();
  private stageEnded = false;
  private stopRequestedAt: number | undefined;

  constructor(private readonly options: WatchOptions) {
    const { workerSignal } = options;
    if (workerSignal.aborted) this.abort.abort();
    workerSignal.addEventListener("abort", this.stop, { once: true });
    this.timer = setInterval(() => {
      this.ticking ??= this.tick().finally(() => {
        this.ticking = undefined;
      });
    }, TICK_MILLISECONDS);
  }

  /** Aborted when the job is to stop. */
  get signal(): AbortSignal {
    return this.abort.signal;
  }

  private readonly stop = (): void => this.abort.abort();

  private async tick(): Promise<void> {
    const { job, jobs, reporter, logger } = this.options;
    try {
      this.stageEnded = (await reporter.report()) || this.stageEnded;
      this.lease = await jobs.leaseState(job);
      if (this.lease !== "held") this.stop();
      const isDue = this.stageEnded || performance.now() - this.lastSave > 1000 * SAVE_SECONDS;
      if (isDue && this.lease === "held" && this.saving === undefined) this.save();
      if (!this.signal.aborted) return;
      this.stopRequestedAt ??= performance.now();
      if (performance.now() - this.stopRequestedAt > 1000 * STOP_SECONDS) await this.abandon();
    } catch (error) {
      logger.error({ job: job.id, error: String(error) }, "could not report progress");
    }
  }

  /** Saves the workspace in the background: it may take minutes, and a job is to stop within seconds. */
  private save(): void {
    const { job, workspace, logger } = this.options;
    this.stageEnded = false;
    this.saving = workspace
      .save()
      .catch((error: unknown) => logger.error({ job: job.id, error: String(error) }, "could not save the workspace"))
      .finally(() => {
        this.lastSave = performance.now();
        this.saving = undefined;
      });
  }

  /** Exits the process: a computation that does not stop by itself cannot be stopped otherwise. */
  private async abandon(): Promise<void> {
    const { job, jobs } = this.options;
    if (this.lease === "cancelled") await jobs.finish(job, { state: "cancelled" });
    else if (this.lease === "held") await jobs.release(job);
    process.exit(75);
  }

  /** Stops reporting and saving, and waits for what is under way. */
  async settle(): Promise<void> {
    clearInterval(this.timer);
    await this.ticking;
    await this.saving;
  }

  close(): void {
    clearInterval(this.timer);
    this.options.workerSignal.removeEventListener("abort", this.stop);
  }
}
