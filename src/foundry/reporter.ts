import { closeSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import path from "node:path";
import type { ProgressEvent } from "../jobs/index.js";
import { finishedStages, type StageRecord } from "../jobs/stages.js";
import type { Workspace } from "./storage.js";
import type { Job, JobProgress, Jobs, StageSummary } from "./store/jobs.js";

/** At most so many points of the loss curve are recorded at once: a tiny model takes thousands of steps a second. */
const MAX_POINTS = 20;
/** Bytes of metrics that are read at once. */
const MAX_BYTES = 4 << 20;

/** Records a running job in the database: its stage and progress, its log, and its new metrics. */
export class Reporter {
  private stage: string | null = null;
  private stageBegan = 0;
  private latest: JobProgress | null = null;
  private logs: object[] = [];
  private startedStages: object[] = [];
  private metricsRead: number;
  private stagesStamp = "";
  private stages: readonly StageSummary[];
  /** Ends when the report that is under way does. */
  private lastReport: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly jobs: Jobs,
    private readonly job: Job,
    private readonly workspace: Workspace,
  ) {
    this.stages = job.stages;
    const { size = 0 } = statSync(this.file("metrics.jsonl"), { throwIfNoEntry: false }) ?? {};
    this.metricsRead = size; // earlier attempts have recorded what is there already
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
      this.startedStages.push({ stage });
    }
    const seconds = (performance.now() - this.stageBegan) / 1000;
    const secondsLeft = done > 0 && seconds > 1 ? (seconds * (total - done)) / done : undefined;
    this.latest = { stage, done, total, unit, detail, secondsLeft };
  }

  /**
   * Records what has happened since the last report. Reports follow one another: a slow one would otherwise overwrite the next.
   * @returns whether a stage has finished since
   */
  report(): Promise<boolean> {
    const report = this.lastReport.then(() => this.reportNow());
    this.lastReport = report.catch(() => {});
    return report;
  }

  private async reportNow(): Promise<boolean> {
    const before = this.stages.length;
    const stamp = statSync(this.file("stages.json"), { throwIfNoEntry: false })?.mtimeMs;
    if (stamp !== undefined && `${stamp}` !== this.stagesStamp) {
      this.stagesStamp = `${stamp}`;
      const all = finishedStages(JSON.parse(readFileSync(this.file("stages.json"), "utf8")) as StageRecord[]);
      if (all.length > this.stages.length) await this.jobs.resetDeaths(this.job);
      this.stages = all.map(({ name, seconds, peakMemoryBytes }) => ({ name, seconds, peakMemoryBytes }));
    }
    const { job, jobs } = this;
    await jobs.report(job, { stage: this.stage, progress: this.latest, stages: this.stages });
    await jobs.addEvents(job, "stage", this.startedStages.splice(0));
    await jobs.addEvents(job, "log", this.logs.splice(0));
    await jobs.addEvents(job, "metrics", this.newMetrics());
    return this.stages.length > before;
  }

  /** New points of the loss curve, evenly thinned; those with a validation loss are all kept. */
  private newMetrics(): object[] {
    const lines = this.newLines(this.file("metrics.jsonl"));
    const every = Math.ceil(lines.length / MAX_POINTS);
    return lines
      .filter((line, i) => i % every === every - 1 || line.includes('"validationLoss"'))
      .map((line) => {
        const metrics = JSON.parse(line) as Record<string, number>;
        const { step, tokens, loss, learningRate, tokensPerSecond, validationLoss } = metrics;
        return { step, tokens, loss, learningRate, tokensPerSecond, validationLoss };
      });
  }

  /** Complete lines since the last report, read in parts: the file may be long. */
  private newLines(file: string): string[] {
    const { size } = statSync(file, { throwIfNoEntry: false }) ?? {};
    if (size === undefined) return [];
    if (size < this.metricsRead) this.metricsRead = 0; // the job went back to a checkpoint
    const bytes = Buffer.alloc(Math.min(size - this.metricsRead, MAX_BYTES));
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
