import { appendFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import path from "node:path";
import { openSafetensors, readTensor, type TensorToWrite, writeSafetensors } from "../checkpoint/index.js";
import { FormatError, UsageError } from "../system/errors.js";
import { moveIntoPlace, syncDirectory, temporaryBeside, writeFileAtomic, writeJson } from "../system/files.js";
import { elementCount, type Tensor, type TensorStore } from "../tensor/index.js";

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
  readonly validationLoss?: number;
}

/** What a checkpoint holds beside tensors. */
export interface TrainerState {
  readonly step: number;
  readonly seconds: number;
}

const KEPT_CHECKPOINTS = 2;

/**
 * The directory of a long job: `run.json` (its configuration), `metrics.jsonl`, `checkpoints/`. Killed at any moment, the
 * same job goes on from the last checkpoint.
 */
export class RunDirectory {
  constructor(readonly path: string) {
    mkdirSync(path, { recursive: true });
  }

  file(...names: string[]): string {
    return path.join(this.path, ...names);
  }

  /**
   * Claims the directory for a configuration: writes `run.json`, or checks the one that is there.
   * @throws UsageError naming what differs when it belongs to another job
   */
  claim(configuration: Readonly<Record<string, unknown>>): void {
    const file = this.file("run.json");
    const plain = JSON.parse(JSON.stringify(configuration)) as Record<string, unknown>;
    if (!existsSync(file)) {
      writeJson(file, plain);
      return;
    }
    const before = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
    const names = [...new Set([...Object.keys(before), ...Object.keys(plain)])];
    const differing = names.filter((name) => JSON.stringify(before[name]) !== JSON.stringify(plain[name]));
    if (differing.length > 0) {
      const changes = differing.map(
        (name) => `${name} ${JSON.stringify(before[name])} -> ${JSON.stringify(plain[name])}`,
      );
      throw new UsageError(
        `${this.path} holds a run with other settings (${changes.join("; ")}): choose another --out, or --restart to discard it`,
      );
    }
  }

  /** Deletes everything of the run. */
  discard(): void {
    rmSync(this.path, { recursive: true, force: true });
    mkdirSync(this.path, { recursive: true });
  }

  /** All metrics so far. A line cut short by a kill is dropped. */
  readMetrics(): MetricsRecord[] {
    const file = this.file("metrics.jsonl");
    if (!existsSync(file)) return [];
    return readFileSync(file, "utf8")
      .split("\n")
      .flatMap((line) => {
        try {
          return [JSON.parse(line) as MetricsRecord];
        } catch {
          return [];
        }
      });
  }

  appendMetrics(record: MetricsRecord): void {
    appendFileSync(this.file("metrics.jsonl"), `${JSON.stringify(record)}\n`);
  }

  /** Forgets metrics past a step: they are computed again after a resume. */
  truncateMetrics(step: number): void {
    const kept = this.readMetrics().filter((record) => record.step <= step);
    writeFileAtomic(this.file("metrics.jsonl"), kept.map((record) => `${JSON.stringify(record)}\n`).join(""));
  }

  private checkpoints(): string[] {
    const directory = this.file("checkpoints");
    if (!existsSync(directory)) return [];
    return readdirSync(directory)
      .filter((name) => /^step-\d+$/.test(name))
      .sort();
  }

  /** Saves tensors and state as one checkpoint, whole or not at all, and drops old ones. */
  save(state: TrainerState, stores: readonly TensorStore[]): void {
    const directory = this.file("checkpoints", `step-${String(state.step).padStart(9, "0")}`);
    const temporary = temporaryBeside(directory);
    mkdirSync(temporary, { recursive: true });
    const tensors = stores.flatMap((store) => [...store].map((tensor) => storedTensor(store, tensor)));
    writeSafetensors(path.join(temporary, "state.safetensors"), tensors);
    writeJson(path.join(temporary, "state.json"), state);
    syncDirectory(temporary);
    rmSync(directory, { recursive: true, force: true });
    moveIntoPlace(temporary, directory);
    for (const old of this.checkpoints().slice(0, -KEPT_CHECKPOINTS))
      rmSync(this.file("checkpoints", old), { recursive: true, force: true });
  }

  /** Restores the newest checkpoint into the stores. @returns its state, or undefined when there is none */
  restore(stores: readonly TensorStore[]): TrainerState | undefined {
    const newest = this.checkpoints().at(-1);
    if (newest === undefined) return undefined;
    const directory = this.file("checkpoints", newest);
    const source = openSafetensors(path.join(directory, "state.safetensors"));
    for (const store of stores)
      for (const tensor of store) {
        const bytes = readTensor(source, tensor.name);
        if (bytes.byteLength !== elementCount(tensor.shape) * 4)
          throw new FormatError(`${directory}: ${tensor.name} is not of the run's shape [${tensor.shape.join(", ")}]`);
        store.write(tensor, bytes);
      }
    return JSON.parse(readFileSync(path.join(directory, "state.json"), "utf8")) as TrainerState;
  }

  /** Deletes the checkpoints of a run that has ended. */
  dropCheckpoints(): void {
    rmSync(this.file("checkpoints"), { recursive: true, force: true });
  }
}

function storedTensor(store: TensorStore, tensor: Tensor): TensorToWrite {
  const chunks = () => [new Uint8Array(store.read(tensor).buffer)];
  return { name: tensor.name, dtype: "f32", shape: tensor.shape, chunks };
}
