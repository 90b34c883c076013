import { existsSync, readFileSync } from "node:fs";
import { writeJson } from "../system/files.js";
import { PeakMemory } from "../system/memory.js";

/** A finished part of a job. */
export interface StageRecord {
  readonly name: string;
  readonly seconds: number;
  /** Highest resident memory of the process while it ran. */
  readonly peakMemoryBytes: number;
  readonly result: unknown;
}

/** The finished parts of a job on disk, so that a job that was killed goes on where it was. */
export class Stages {
  private records: StageRecord[];

  constructor(private readonly file: string) {
    this.records = existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as StageRecord[]) : [];
  }

  get all(): readonly StageRecord[] {
    return this.records;
  }

  /** Does a part, or returns what it returned when it was done before. Its result must survive JSON. */
  async once<T>(name: string, work: () => Promise<T>): Promise<T> {
    const known = this.records.find((record) => record.name === name);
    if (known !== undefined) return known.result as T;
    const memory = new PeakMemory();
    const started = performance.now();
    try {
      const result = await work();
      const seconds = (performance.now() - started) / 1000;
      this.records = [...this.records, { name, seconds, peakMemoryBytes: memory.stop(), result: result ?? null }];
      writeJson(this.file, this.records);
      return result;
    } finally {
      memory.stop();
    }
  }
}
