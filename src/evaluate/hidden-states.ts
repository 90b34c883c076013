import { closeSync, openSync, rmSync } from "node:fs";
import path from "node:path";
import { bytesOf } from "../ggml/dtype.js";
import { checkSpace, readAll, writeAll, writingError } from "../system/files.js";
import { scratchDirectory } from "../system/scratch.js";

export interface StatesOptions {
  /** Values in a batch. */
  readonly length: number;
  readonly batches: number;
  /** Kept in memory up to so many bytes, else in a scratch file. */
  readonly memoryBytes: number;
}

/** The residual stream of calibration data between two steps of a model, f32, a batch at a time. */
export class HiddenStates {
  private readonly inMemory: Float32Array[] | undefined;
  private readonly scratch: { readonly directory: string; readonly file: number } | undefined;

  /** @throws CoppiceError when the disk has too little room */
  constructor(readonly options: StatesOptions) {
    const { length, batches, memoryBytes } = options;
    const bytes = length * batches * Float32Array.BYTES_PER_ELEMENT;
    if (bytes <= memoryBytes) {
      this.inMemory = [];
      return;
    }
    const directory = scratchDirectory("states");
    try {
      checkSpace(path.join(directory, "states.bin"), bytes, "the data's hidden states");
      this.scratch = { directory, file: openSync(path.join(directory, "states.bin"), "w+") };
    } catch (error) {
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
    try {
      // an open file lives on without its name, so that a process that is killed leaves nothing
      rmSync(directory, { recursive: true, force: true });
    } catch {} // Windows and NFS do not permit that: it goes when it is closed
  }

  /** The states of a batch that was set before. They may be a view that the next call overwrites. */
  get(batch: number): Float32Array {
    if (this.inMemory !== undefined) return this.inMemory[batch] ?? new Float32Array(this.options.length);
    const states = new Float32Array(this.options.length);
    if (this.scratch !== undefined)
      readAll(this.scratch.file, bytesOf(states), batch * states.byteLength, "the file of hidden states");
    return states;
  }

  set(batch: number, states: Float32Array): void {
    if (this.inMemory !== undefined) {
      this.inMemory[batch] = states;
      return;
    }
    if (this.scratch === undefined) return;
    try {
      writeAll(this.scratch.file, bytesOf(states), batch * states.byteLength);
    } catch (error) {
      throw writingError(error, path.join(this.scratch.directory, "states.bin"));
    }
  }

  free(): void {
    if (this.scratch === undefined) return;
    closeSync(this.scratch.file);
    rmSync(this.scratch.directory, { recursive: true, force: true });
  }
}
