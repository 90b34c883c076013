import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { FormatError } from "../system/errors.js";
import { pathsBelow, writeJson } from "../system/files.js";
import { logOf } from "../system/log.js";
import { PeakMemory } from "../system/memory.js";

const log = logOf("jobs");

/** A finished stage of a job. */
export interface StageRecord {
  readonly name: string;
  /** Without those of stages that ran within it, so that the seconds of all stages add up to the job's. */
  readonly seconds: number;
  /** Peak resident memory of the process during the stage. */
  readonly peakMemoryBytes: number;
  readonly result: unknown;
}

/** Stands in the file for the directory that it lies in. */
const HERE = "\0here/";

/**
 * The finished stages of a job, kept in a file so that a job that was killed continues where it stopped. Paths below the file's
 * directory are stored relative to it, because the directory may have moved when the job continues.
 */
export class Stages {
  private records: StageRecord[];
  private readonly directory: string;
  /** How long the stages within the present one have taken. */
  private innerSeconds = 0;

  constructor(private readonly file: string) {
    this.directory = path.dirname(file);
    const resolvePaths = (_: string, value: unknown) =>
      typeof value === "string" && value.startsWith(HERE) ? path.join(this.directory, value.slice(HERE.length)) : value;
    this.records = existsSync(file) ? parse(file, resolvePaths) : [];
  }

  get all(): readonly StageRecord[] {
    return this.records;
  }

  /** Runs a stage, or returns its result if it is finished already. The result must survive JSON. */
  async once<T>(name: string, work: () => Promise<T>): Promise<T> {
    const known = this.records.find((record) => record.name === name);
    if (known !== undefined) {
      log.debug("stage known", { stage: name, file: this.file });
      return known.result as T;
    }
    log.debug("stage begun", { stage: name });
    const memory = new PeakMemory();
    const started = performance.now();
    const earlierSeconds = this.innerSeconds;
    this.innerSeconds = 0;
    try {
      const result = await work();
      const elapsedSeconds = (performance.now() - started) / 1000;
      const seconds = elapsedSeconds - this.innerSeconds;
      this.innerSeconds = earlierSeconds + elapsedSeconds;
      this.records = [...this.records, { name, seconds, peakMemoryBytes: memory.stop(), result: result ?? null }];
      this.write();
      log.debug("stage ended", { stage: name, seconds, peakMemoryBytes: this.records.at(-1)?.peakMemoryBytes });
      return result;
    } finally {
      memory.stop();
    }
  }

  private write(): void {
    writeJson(this.file, this.records, pathsBelow(this.directory, HERE));
  }
}

const recordsSchema = z.array(
  z.object({ name: z.string(), seconds: z.number(), peakMemoryBytes: z.number(), result: z.unknown() }),
);

function parse(file: string, reviver: (key: string, value: unknown) => unknown): StageRecord[] {
  try {
    return recordsSchema.parse(JSON.parse(readFileSync(file, "utf8"), reviver));
  } catch {
    throw new FormatError(`${file} is damaged, so the run cannot be continued: --restart begins anew`);
  }
}
