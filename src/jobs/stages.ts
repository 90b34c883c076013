import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { FormatError } from "../system/errors.js";
import { pathsBelow, writeJson } from "../system/files.js";
import { logOf } from "../system/log.js";
import { PeakMemory } from "../system/memory.js";

const log = logOf("jobs");

/** A stage of a job. */
export interface StageRecord {
  readonly name: string;
  /** In all attempts, without those of stages that ran within it, so that the seconds of all stages add up to the job's. */
  readonly seconds: number;
  /** Peak resident memory of the process during the stage. */
  readonly peakMemoryBytes: number;
  readonly result: unknown;
  /** Whether it was begun only, by a process that was stopped or killed, or that is at it. */
  readonly unfinished?: boolean | undefined;
}

/** A stage that is being run. Times are in milliseconds. */
interface RunningStage {
  readonly name: string;
  readonly startedAt: number;
  readonly memory: PeakMemory;
  /** What stages within it have taken. */
  inner: number;
}

/** Stands in the file for the directory that it lies in. */
const HERE = "\0here/";
/** What a stage has taken is noted this often, so that a killed process's time is not lost. */
const NOTE_EVERY_MILLISECONDS = 60_000;

/** Of stages as they are recorded, those that are finished. */
export const finishedStages = <T extends Pick<StageRecord, "unfinished">>(records: readonly T[]): T[] =>
  records.filter(({ unfinished }) => unfinished !== true);

/**
 * The finished stages of a job, kept in a file so that a job that was killed continues where it stopped. Paths below the file's
 * directory are stored relative to it, because the directory may have moved when the job continues.
 */
export class Stages {
  private finished: StageRecord[];
  /** What earlier attempts have taken, by the stage's name. */
  private readonly earlier: Map<string, StageRecord>;
  /** Each within the one before. */
  private readonly running: RunningStage[] = [];
  private readonly directory: string;

  constructor(private readonly file: string) {
    this.directory = path.dirname(file);
    const resolvePaths = (_: string, value: unknown) =>
      typeof value === "string" && value.startsWith(HERE) ? path.join(this.directory, value.slice(HERE.length)) : value;
    const records = existsSync(file) ? parse(file, resolvePaths) : [];
    this.finished = finishedStages(records);
    this.earlier = new Map(records.filter(({ unfinished }) => unfinished).map((record) => [record.name, record]));
  }

  /** Those that are finished. */
  get all(): readonly StageRecord[] {
    return this.finished;
  }

  /** Whether a stage is finished. */
  has(name: string): boolean {
    return this.finished.some((record) => record.name === name);
  }

  /** Runs a stage, or returns its result if it is finished already. The result must survive JSON. */
  async once<T>(name: string, work: () => Promise<T>): Promise<T> {
    const known = this.finished.find((record) => record.name === name);
    if (known !== undefined) {
      log.debug("stage known", { stage: name, file: this.file });
      return known.result as T;
    }
    log.debug("stage begun", { stage: name });
    const stage: RunningStage = { name, startedAt: performance.now(), memory: new PeakMemory(), inner: 0 };
    this.running.push(stage);
    const timer = setInterval(() => this.note(), NOTE_EVERY_MILLISECONDS).unref();
    try {
      const result = await work();
      const record = { ...this.soFar(stage), result: result ?? null };
      this.end(stage);
      this.earlier.delete(name);
      this.finished = [...this.finished, record];
      this.write();
      log.debug("stage ended", { stage: name, seconds: record.seconds, peakMemoryBytes: record.peakMemoryBytes });
      return result;
    } catch (error) {
      this.earlier.set(name, { ...this.soFar(stage), unfinished: true });
      this.end(stage);
      this.note();
      throw error;
    } finally {
      clearInterval(timer);
      stage.memory.stop();
    }
  }

  /** What a stage has taken, in this attempt and in earlier ones. */
  private soFar(stage: RunningStage): StageRecord {
    const { name, startedAt, inner, memory } = stage;
    const within = this.running[this.running.indexOf(stage) + 1];
    const own = (within?.startedAt ?? performance.now()) - startedAt - inner;
    const before = this.earlier.get(name);
    return {
      name,
      seconds: (before?.seconds ?? 0) + own / 1000,
      peakMemoryBytes: Math.max(before?.peakMemoryBytes ?? 0, memory.soFar()),
      result: null,
    };
  }

  private end(stage: RunningStage): void {
    this.running.splice(this.running.indexOf(stage), 1);
    const outer = this.running.at(-1);
    if (outer !== undefined) outer.inner += performance.now() - stage.startedAt;
  }

  /** Writes what unfinished stages have taken, if it can be written: nothing depends on it. */
  private note(): void {
    try {
      this.write();
    } catch (error) {
      log.warn("times not noted", { file: this.file, error: String(error) });
    }
  }

  private write(): void {
    const unfinished = new Map(this.earlier);
    for (const stage of this.running) unfinished.set(stage.name, { ...this.soFar(stage), unfinished: true });
    writeJson(this.file, [...this.finished, ...unfinished.values()], pathsBelow(this.directory, HERE));
  }
}

const recordsSchema = z.array(
  z.object({
    name: z.string(),
    seconds: z.number(),
    peakMemoryBytes: z.number(),
    result: z.unknown(),
    unfinished: z.boolean().optional(),
  }),
);

function parse(file: string, reviver: (key: string, value: unknown) => unknown): StageRecord[] {
  try {
    return recordsSchema.parse(JSON.parse(readFileSync(file, "utf8"), reviver));
  } catch {
    throw new FormatError(`${file} is damaged, so the run cannot be continued: --restart begins anew`);
  }
}
