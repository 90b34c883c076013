import { appendFileSync, existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { openSafetensors, readTensor, type TensorToWrite, writeSafetensors } from "../checkpoint/index.js";
import { readJsonObject } from "../checkpoint/json.js";
import { FormatError } from "../system/errors.js";
import { checkSpace, writeFileAtomic, writeJson, writingError } from "../system/files.js";
import { logOf } from "../system/log.js";
import { RunFiles } from "../system/run-files.js";
import { complaint } from "../system/schema.js";
import { elementCount, type Tensor, type TensorStore } from "../tensor/index.js";

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
  /** Of this and earlier sittings together. */
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

const stateSchema = z.object({ step: z.number().int().min(0), seconds: z.number().min(0) });

/** What a checkpoint holds beside tensors. */
export type TrainerState = Readonly<z.infer<typeof stateSchema>>;

const KEPT_CHECKPOINTS = 2;
/** A checkpoint has each weight and its two moments. */
const [COPIES, F32_BYTES] = [3, 4];

const METRICS = "metrics.jsonl";
const CHECKPOINTS = "checkpoints";
/** What a checkpoint's directory holds. */
const STATE = ["state.safetensors", "state.json"] as const;

/**
 * The directory of a long job: `run.json` (its configuration and the files that it wrote), `metrics.jsonl`, `checkpoints/`. Killed
 * at any moment, the same job goes on from the last checkpoint.
 */
export class RunDirectory {
  private readonly files: RunFiles;

  /**
   * Opens the directory of a run, for this process alone.
   * @param folder where in it metrics and checkpoints go, where a run has several parts
   * @throws UsageError when it holds something else than a run, CoppiceError when another process has it
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
    return new RunDirectory(this.files, this.named(folder));
  }

  file(...names: string[]): string {
    return path.join(this.path, ...names);
  }

  private named(...names: readonly string[]): string {
    return path.posix.join(this.folder, ...names);
  }

  /**
   * The path of a file that the run is about to write.
   * @throws CoppiceError when there is one that it did not write
   */
  own(...names: readonly string[]): string {
    this.files.own(this.named(...names));
    return this.file(...names);
  }

  /**
   * Claims the directory for a configuration: writes `run.json`, or checks the one that is there.
   * @throws UsageError naming what differs when it belongs to another job
   */
  claim(configuration: Readonly<Record<string, unknown>>, origin?: unknown): void {
    this.files.claim(configuration, origin);
  }

  /** Whether the run came to its end. */
  get finished(): boolean {
    return this.files.finished;
  }

  /** What {@link finish} was given. */
  get result(): unknown {
    return this.files.result;
  }

  /** Says that the run came to its end. @param result of it, which must survive JSON */
  finish(result?: unknown): void {
    this.files.finish(result);
  }

  /** Deletes what the run wrote, and nothing else. */
  discard(): void {
    this.files.discard();
  }

  /** Lets other processes have the directory. */
  close(): void {
    this.files.close();
  }

  /** All metrics so far. A line cut short by a kill is dropped. */
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

  /** Forgets metrics past a step: they are computed again after a resume. */
  truncateMetrics(step: number): void {
    const kept = this.readMetrics().filter((record) => record.step <= step);
    writeFileAtomic(this.own(METRICS), kept.map((record) => `${JSON.stringify(record)}\n`).join(""));
  }

  /** Names of the run's checkpoints, oldest first. */
  private checkpoints(): string[] {
    const own = this.files.below(this.named(CHECKPOINTS)).map((name) => path.posix.basename(path.posix.dirname(name)));
    return [...new Set(own)]
      .filter((name) => STATE.every((file) => existsSync(this.file(CHECKPOINTS, name, file))))
      .sort();
  }

  private removeCheckpoint(name: string): void {
    this.files.remove(STATE.map((file) => this.named(CHECKPOINTS, name, file)));
  }

  /**
   * Makes sure that the checkpoints and the model of a training run have room, before it begins.
   * @param parameters that are trained
   * @throws CoppiceError saying how much is needed
   */
  checkRoom(parameters: number): void {
    const there = this.checkpoints().length;
    const checkpointBytes = parameters * F32_BYTES * COPIES;
    const bytes = checkpointBytes * Math.max(1, KEPT_CHECKPOINTS + 1 - there) + parameters * F32_BYTES;
    checkSpace(this.path, bytes, "the run's checkpoints and its model");
  }

  /** Saves tensors and state as one checkpoint, and drops old ones. One that is cut short does not count. */
  save(state: TrainerState, stores: readonly TensorStore[]): void {
    const name = `step-${String(state.step).padStart(9, "0")}`;
    this.removeCheckpoint(name);
    this.files.own(...STATE.map((file) => this.named(CHECKPOINTS, name, file)));
    const [tensorsFile, stateFile] = STATE.map((file) => this.file(CHECKPOINTS, name, file)) as [string, string];
    const tensors = stores.flatMap((store) => [...store].map((tensor) => storedTensor(store, tensor)));
    writeSafetensors(tensorsFile, tensors);
    writeJson(stateFile, state); // says that it is whole
    log.debug("checkpoint saved", { file: tensorsFile, step: state.step });
    for (const old of this.checkpoints().slice(0, -KEPT_CHECKPOINTS)) this.removeCheckpoint(old);
  }

  /**
   * Restores the newest checkpoint that is whole into the stores.
   * @param onNote hears of those that are not
   * @returns its state, or undefined when there is none
   * @throws FormatError when all are damaged
   */
  restore(stores: readonly TensorStore[], onNote?: (text: string) => void): TrainerState | undefined {
    const names = this.checkpoints().reverse();
    for (const [i, name] of names.entries()) {
      try {
        return this.restoreOne(name, stores);
      } catch (error) {
        if (!(error instanceof FormatError)) throw error;
        if (i === names.length - 1)
          throw new FormatError(`${error.message}: no checkpoint is whole; --restart begins anew`);
        onNote?.(`a checkpoint is damaged (${error.message}): going on from the one before`);
      }
    }
    return undefined;
  }

  private restoreOne(name: string, stores: readonly TensorStore[]): TrainerState {
    const directory = this.file(CHECKPOINTS, name);
    const stateFile = path.join(directory, STATE[1]);
    const stored = readJsonObject(stateFile);
    const state = stateSchema.safeParse(stored);
    if (!state.success) throw new FormatError(`${stateFile} ${complaint(state.error, stored)}`);
    const source = openSafetensors(path.join(directory, STATE[0]));
    log.debug("checkpoint restored", { directory, step: state.data.step });
    for (const store of stores)
      for (const tensor of store) {
        const bytes = readTensor(source, tensor.name);
        if (bytes.byteLength !== elementCount(tensor.shape) * 4)
          throw new FormatError(`${directory}: ${tensor.name} is not of the run's shape [${tensor.shape.join(", ")}]`);
        store.write(tensor, bytes);
      }
    return state.data;
  }

  /** Deletes the checkpoints of a run that has ended. */
  dropCheckpoints(): void {
    this.files.remove(this.files.below(this.named(CHECKPOINTS)));
  }
}

function storedTensor(store: TensorStore, tensor: Tensor): TensorToWrite {
  const chunks = () => [new Uint8Array(store.read(tensor).buffer)];
  return { name: tensor.name, dtype: "f32", shape: tensor.shape, chunks };
}
