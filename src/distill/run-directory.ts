import { appendFileSync, existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { openSafetensors, readTensor, type TensorToWrite, writeSafetensors } from "../checkpoint/index.js";
import { readJsonObject } from "../checkpoint/json.js";
import { FormatError } from "../system/errors.js";
import { checkSpace, writeFileAtomic, writeJson, writingError } from "../system/files.js";
import { logOf } from "../system/log.js";
import { RunFiles } from "../system/run-files.js";
import { describeSchemaError } from "../system/schema.js";
import { elementCount } from "../tensor/index.js";
import type { SavedTensor } from "./saved-tensor.js";

const log = logOf("training");

/** One line of `metrics.jsonl`. */
export interface MetricsRecord {
  readonly step: number;
  /** Tokens trained on so far. */
  readonly tokens: number;
  readonly loss: number;
  readonly learningRate: number;
  /** Global norm of the gradient before clipping. */
  readonly gradientNorm: number;
  readonly tokensPerSecond: number;
  /** Since the start, including the time before resumes. */
  readonly seconds: number;
  /** The loss's terms. */
  readonly terms: Readonly<Record<string, number>>;
  /** Mean nats per token on the validation data, where it was measured. */
  readonly validationLoss?: number | undefined;
}

/** The lines of a `metrics.jsonl`. One that was cut short by a kill is left out. */
export const parseMetrics = (text: string): MetricsRecord[] =>
  text.split("\n").flatMap((line) => {
    try {
      const record = JSON.parse(line) as MetricsRecord | null;
      return typeof record?.step === "number" && typeof record.loss === "number" ? [record] : [];
    } catch {
      return [];
    }
  });

/** The state in a checkpoint, beside tensors. */
export interface TrainerState {
  /** How many steps were done. */
  readonly step: number;
  /** How long they took. */
  readonly seconds: number;
}

const stateSchema: z.ZodType<TrainerState> = z.object({
  step: z.number().int().min(0),
  seconds: z.number().min(0),
});

const KEPT_CHECKPOINTS = 2;
/** A checkpoint holds each weight and its two moments. */
const [COPIES, F32_BYTES] = [3, 4];

const METRICS = "metrics.jsonl";
const CHECKPOINTS = "checkpoints";
/** The files of a checkpoint. */
const [TENSORS_FILE, STATE_FILE] = ["state.safetensors", "state.json"] as const;
const CHECKPOINT_FILES = [TENSORS_FILE, STATE_FILE];

/**
 * The directory of a long job: `run.json` (its configuration and the files that it wrote), `metrics.jsonl`, `checkpoints/`. A job
 * that is killed at any moment resumes from the last checkpoint.
 */
export class RunDirectory {
  private readonly files: RunFiles;

  /**
   * Opens the directory of a run, for this process alone.
   * @param folder for metrics and checkpoints within it, when a run has several parts
   * @throws UsageError when it holds something other than a run, CoppiceError when another process uses it
   */
  constructor(
    directory: string | RunFiles,
    private readonly folder = "",
  ) {
    this.files = typeof directory === "string" ? new RunFiles(directory) : directory;
  }

  get path(): string {
    return path.join(this.files.directory, this.folder);
  }

  /** A part of the run with metrics and checkpoints of its own. */
  part(folder: string): RunDirectory {
    return new RunDirectory(this.files, this.relative(folder));
  }

  file(...names: string[]): string {
    return path.join(this.path, ...names);
  }

  /** A path within the run's directory. */
  private relative(...names: readonly string[]): string {
    return path.posix.join(this.folder, ...names);
  }

  /**
   * The path of a file that the run is about to write.
   * @throws CoppiceError when the file exists and the run did not write it
   */
  own(...names: readonly string[]): string {
    this.files.own(this.relative(...names));
    return this.file(...names);
  }

  /**
   * Claims the directory for a configuration: writes `run.json`, or checks the one that is there.
   * @param changeable settings that may change
   * @throws UsageError naming what differs, when it belongs to another job
   */
  claim(configuration: Readonly<Record<string, unknown>>, origin?: unknown, changeable?: readonly string[]): void {
    this.files.claim(configuration, origin, changeable);
  }

  /** Whether the run has finished. */
  get finished(): boolean {
    return this.files.finished;
  }

  /** The result that {@link finish} recorded. */
  get result(): unknown {
    return this.files.result;
  }

  /**
   * Records that the run has finished.
   * @param result of it, which must be expressible in JSON
   * @param workFolder what the run wrote to it is deleted
   */
  finish(result?: unknown, workFolder?: string): void {
    this.files.finish(result, workFolder === undefined ? undefined : this.relative(workFolder));
  }

  /** Deletes what the run wrote, and nothing else. */
  discard(): void {
    this.files.discard();
  }

  /** Releases the directory to other processes. */
  close(): void {
    this.files.close();
  }

  /** All metrics so far. A line that a kill cut short is dropped. */
  readMetrics(): MetricsRecord[] {
    const file = this.file(METRICS);
    if (!existsSync(file)) return [];
    return parseMetrics(readFileSync(file, "utf8"));
  }

  appendMetrics(record: MetricsRecord): void {
    const file = this.own(METRICS);
    try {
      appendFileSync(file, `${JSON.stringify(record)}\n`);
    } catch (error) {
      throw writingError(error, file);
    }
  }

  /** Removes the metrics past a step: a resumed run computes them again. */
  truncateMetrics(step: number): void {
    const kept = this.readMetrics().filter((record) => record.step <= step);
    writeFileAtomic(this.own(METRICS), kept.map((record) => `${JSON.stringify(record)}\n`).join(""));
  }

  /** Names of the run's checkpoints, oldest first. */
  private checkpoints(): string[] {
    const own = this.files
      .below(this.relative(CHECKPOINTS))
      .map((name) => path.posix.basename(path.posix.dirname(name)));
    return [...new Set(own)]
      .filter((name) => CHECKPOINT_FILES.every((file) => existsSync(this.file(CHECKPOINTS, name, file))))
      .sort();
  }

  /** Whether training has begun. */
  get hasCheckpoint(): boolean {
    return this.checkpoints().length > 0;
  }

  private removeCheckpoint(name: string): void {
    this.files.remove(CHECKPOINT_FILES.map((file) => this.relative(CHECKPOINTS, name, file)));
  }

  /**
   * Checks that there is room for the checkpoints and the model of a training run, before it begins.
   * @param parameters number of trained parameters
   * @throws CoppiceError saying how much room is needed
   */
  checkRoom(parameters: number): void {
    const existing = this.checkpoints().length;
    const checkpointBytes = parameters * F32_BYTES * COPIES;
    const bytes = checkpointBytes * Math.max(1, KEPT_CHECKPOINTS + 1 - existing) + parameters * F32_BYTES;
    checkSpace(this.path, bytes, "the run's checkpoints and its model");
  }

  /** Saves tensors and state as a checkpoint, and removes old ones. A checkpoint that is cut short is ignored. */
  save(state: TrainerState, tensors: readonly SavedTensor[]): void {
    const name = `step-${String(state.step).padStart(9, "0")}`;
    this.removeCheckpoint(name);
    this.files.own(...CHECKPOINT_FILES.map((file) => this.relative(CHECKPOINTS, name, file)));
    const tensorsFile = this.file(CHECKPOINTS, name, TENSORS_FILE);
    writeSafetensors(tensorsFile, tensors.map(toWrite));
    writeJson(this.file(CHECKPOINTS, name, STATE_FILE), state); // written last: it makes the checkpoint complete
    log.debug("checkpoint saved", { file: tensorsFile, step: state.step });
    for (const old of this.checkpoints().slice(0, -KEPT_CHECKPOINTS)) this.removeCheckpoint(old);
  }

  /**
   * Restores the newest intact checkpoint.
   * @param onNote called with a note on each damaged one
   * @returns its state, or undefined when there is no checkpoint
   * @throws FormatError when all are damaged
   */
  restore(tensors: readonly SavedTensor[], onNote?: (text: string) => void): TrainerState | undefined {
    const names = this.checkpoints().reverse();
    for (const [i, name] of names.entries()) {
      try {
        return this.restoreOne(name, tensors);
      } catch (error) {
        if (!(error instanceof FormatError)) throw error;
        if (i === names.length - 1)
          throw new FormatError(`${error.message}: no checkpoint is whole; --restart begins anew`);
        onNote?.(`a checkpoint is damaged (${error.message}): going on from the one before`);
      }
    }
    return undefined;
  }

  private restoreOne(name: string, tensors: readonly SavedTensor[]): TrainerState {
    const directory = this.file(CHECKPOINTS, name);
    const stateFile = path.join(directory, STATE_FILE);
    const stored = readJsonObject(stateFile);
    const state = stateSchema.safeParse(stored);
    if (!state.success) throw new FormatError(`${stateFile} ${describeSchemaError(state.error, stored)}`);
    const source = openSafetensors(path.join(directory, TENSORS_FILE));
    log.debug("checkpoint restored", { directory, step: state.data.step });
    for (const tensor of tensors) {
      const bytes = readTensor(source, tensor.name);
      if (bytes.byteLength !== elementCount(tensor.shape) * F32_BYTES)
        throw new FormatError(
          `${directory}: ${tensor.name} does not have the run's shape [${tensor.shape.join(", ")}]`,
        );
      tensor.write(bytes);
    }
    return state.data;
  }

  /** Deletes the checkpoints of a finished run. */
  dropCheckpoints(): void {
    this.drop(CHECKPOINTS);
  }

  /** Deletes what the run wrote to a folder; to all of them for "". */
  drop(folder: string): void {
    this.files.remove(this.files.below(this.relative(folder)));
  }
}

const toWrite = ({ name, shape, read }: SavedTensor): TensorToWrite => ({
  name,
  dtype: "f32",
  shape,
  chunks: () => [read()],
});
