import type { Logger } from "pino";
import type { Reporter } from "./reporter.js";
import type { Workspace } from "./storage.js";
import type { Job, Jobs } from "./store/jobs.js";

const TICK_MILLISECONDS = 1000;
/** A job that was told to stop and did not is left, and the process with it. */
export const STOP_SECONDS = 20;
/** How often what was done is kept where other machines find it, within a stage. */
const SAVE_SECONDS = 10;

/** Whether a job is still this worker's to do. */
export type Standing = "held" | "cancelled" | "lost";

/** Watches a job under way: reports what it does, saves its work from time to time, and stops it when it is not this worker's any more. */
export class JobWatch {
  standing: Standing = "held";
  private readonly abort = new AbortController();
  private readonly timer: NodeJS.Timeout;
  private ticking: Promise<void> | undefined;
  private saving: Promise<void> | undefined;
  private lastSave = performance.now();
  private stageEnded = false;
  private stopAsked = 0;

  constructor(
    private readonly job: Job,
    private readonly jobs: Jobs,
    private readonly workspace: Workspace,
    private readonly reporter: Reporter,
    private readonly logger: Logger,
    /** Told to stop: the worker ends. */
    private readonly ending: AbortSignal,
  ) {
    if (ending.aborted) this.abort.abort();
    ending.addEventListener("abort", this.stop, { once: true });
    this.timer = setInterval(() => {
      this.ticking ??= this.tick().finally(() => {
        this.ticking = undefined;
      });
    }, TICK_MILLISECONDS);
  }

  /** Stops the job. */
  get signal(): AbortSignal {
    return this.abort.signal;
  }

  private readonly stop = (): void => this.abort.abort();

  private async tick(): Promise<void> {
    const { job, jobs, reporter, logger } = this;
    try {
      this.stageEnded = (await reporter.report()) || this.stageEnded;
      this.standing = await jobs.standing(job);
      if (this.standing !== "held") this.stop();
      const isDue = this.stageEnded || performance.now() - this.lastSave > 1000 * SAVE_SECONDS;
      if (isDue && this.standing === "held" && this.saving === undefined) this.save();
      if (!this.signal.aborted) return;
      this.stopAsked ||= performance.now();
      if (performance.now() - this.stopAsked > 1000 * STOP_SECONDS) await this.abandon();
    } catch (error) {
      logger.error({ job: job.id, error: String(error) }, "cannot report");
    }
  }

  /** May take minutes: not waited for while the job runs, so that it hears of its end in seconds. */
  private save(): void {
    const { job, workspace, logger } = this;
    this.stageEnded = false;
    this.saving = workspace
      .save()
      .catch((error: unknown) => logger.error({ job: job.id, error: String(error) }, "cannot save"))
      .finally(() => {
        this.lastSave = performance.now();
        this.saving = undefined;
      });
  }

  /** Ends the process: what computes there cannot be stopped otherwise. */
  private async abandon(): Promise<void> {
    if (this.standing === "cancelled") await this.jobs.finish(this.job, { state: "cancelled" });
    else if (this.standing === "held") await this.jobs.giveBack(this.job);
    process.exit(75);
  }

  /** Nothing is reported or saved any more once this has come to its end. */
  async settled(): Promise<void> {
    clearInterval(this.timer);
    await this.ticking;
    await this.saving;
  }

  close(): void {
    clearInterval(this.timer);
    this.ending.removeEventListener("abort", this.stop);
  }
}
