import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { FormatError } from "../system/errors.js";
import { pathsBelow, writeJson } from "../system/files.js";
import { logOf } from "../system/log.js";
import { PeakMemory } from "../system/memory.js";

const log = logOf("jobs");

/** A finished part of a job. */
export interface StageRecord {
  readonly name: string;
  readonly seconds: number;
  /** Highest resident memory of the process while it ran. */
  readonly peakMemoryBytes: number;
  readonly result: unknown;
}

/** On disk, begins paths below the directory that the record lies in. */
const HERE = "\0here/";

/**
 * The finished parts of a job on disk, so that a job that was killed goes on where it was. Paths below the record's directory are
 * kept as such: the directory may lie elsewhere when the job goes on.
 */
export class Stages {
  private records: StageRecord[];
  private readonly directory: string;

  constructor(private readonly file: string) {
    this.directory = path.dirname(file);
    const found = (_: string, value: unknown) =>
      typeof value === "string" && value.startsWith(HERE) ? path.join(this.directory, value.slice(HERE.length)) : value;
    this.records = existsSync(file) ? parse(file, found) : [];
  }

  get all(): readonly StageRecord[] {
    return this.records;
  }

  /** Does a part, or returns what it returned when it was done before. Its result must survive JSON. */
  async once<T>(name: string, work: () => Promise<T>): Promise<T> {
    const known = this.records.find((record) => record.name === name);
    if (known !== undefined) {
      log.debug("stage known", { stage: name, file: this.file });
      return known.result as T;
    }
    log.debug("stage begun", { stage: name });
    const memory = new PeakMemory();
    const started = performance.now();
    try {
      const result = await work();
      const seconds = (performance.now() - started) / 1000;
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
    throw new FormatError(`${file} is damaged, so what the run has done is not known: --restart begins anew`);
  }
}
