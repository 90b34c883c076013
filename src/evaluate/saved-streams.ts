import { existsSync, readdirSync, rmSync } from "node:fs";
import path from "node:path";
import {
  openSafetensors,
  type SafetensorsFile,
  streamSafetensors,
  type TensorToStream,
} from "../checkpoint/safetensors.js";
import { readTensor } from "../checkpoint/tensor-source.js";
import { toFloat32 } from "../ggml/convert.js";
import { bytesOf } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { CoppiceError } from "../system/errors.js";
import { logOf } from "../system/log.js";
import type { TensorStore } from "../tensor/index.js";

const log = logOf("engine");

/** What goes on after so many steps of a model: its residual streams, by name. */
export type StreamsByName = Readonly<Record<string, { readonly saved: (name: string) => TensorToStream[] }>>;

/** What was saved after a number of steps. */
export interface Saved {
  readonly steps: number;
  readonly file: SafetensorsFile;
}

/**
 * A file with residual streams, so that work that is killed goes on from the steps that it had done. Streams are as large as the data's
 * hidden states: they are saved when some time has passed since they were saved last.
 */
export class SavedStreams {
  private readonly file: string;
  private savedAt = performance.now();

  constructor(
    file: string,
    private readonly everySeconds = 20,
  ) {
    this.file = path.resolve(file);
  }

  /**
   * Saves streams after so many steps, with sums that belong to them. Where the disk has too little room for them, work goes on all the
   * same: it could only not be gone on with.
   * @param notes are kept with them
   */
  async save(
    steps: number,
    streams: StreamsByName,
    { sums, notes = {} }: { readonly sums?: TensorStore | undefined; readonly notes?: Record<string, string> } = {},
  ): Promise<void> {
    if (performance.now() - this.savedAt < 1000 * this.everySeconds) return;
    const tensors = [
      ...Object.entries(streams).flatMap(([name, stream]) => stream.saved(name)),
      ...(sums === undefined ? [] : [...sums].map((tensor) => storedSum(sums, tensor.name, tensor.shape))),
    ];
    try {
      await streamSafetensors(this.file, tensors, { ...notes, kind: "coppice streams", steps: String(steps) });
    } catch (error) {
      if (!(error instanceof CoppiceError)) throw error;
      log.warn(`progress could not be saved: ${error.message}`);
    }
    this.savedAt = performance.now();
  }

  /**
   * Goes on from what was saved last. A damaged file, which no interruption leaves, counts as none.
   * @param restore is given the saved file, to be read at once
   */
  resume<T>(restore: (saved: Saved) => T | undefined): { readonly steps: number; readonly restored: T } | undefined {
    for (const abandoned of abandonedCopies(this.file)) rmSync(abandoned, { force: true });
    const file = openIfSound(this.file);
    if (file === undefined) return undefined;
    try {
      const steps = Number(file.metadata.steps);
      const restored = Number.isSafeInteger(steps) && steps > 0 ? restore({ steps, file }) : undefined;
      return restored === undefined ? undefined : { steps, restored };
    } finally {
      file.close();
    }
  }

  delete(): void {
    rmSync(this.file, { force: true });
  }
}

function openIfSound(file: string): SafetensorsFile | undefined {
  try {
    return existsSync(file) ? openSafetensors(file) : undefined;
  } catch {
    return undefined;
  }
}

/** What processes that were killed while they wrote a file have left of it. */
function abandonedCopies(file: string): string[] {
  const directory = path.dirname(file);
  if (!existsSync(directory)) return [];
  return readdirSync(directory)
    .filter((name) => name.startsWith(`${path.basename(file)}.partial-`))
    .map((name) => path.join(directory, name));
}

const SUMS = "sums.";

const storedSum = (sums: TensorStore, name: string, shape: readonly number[]): TensorToStream => ({
  name: `${SUMS}${name}`,
  dtype: "f32",
  shape,
  async *chunks() {
    yield bytesOf(sums.read(sums.get(name)));
  },
});

/** Sets sums to what was saved with streams. @returns whether all are there */
export function restoreSums({ file }: Saved, sums: TensorStore): boolean {
  const all = [...sums];
  const isThere = ({ name, shape }: (typeof all)[number]) =>
    file.tensors.get(`${SUMS}${name}`)?.shape.join() === shape.join();
  if (!all.every(isThere)) return false;
  for (const tensor of all)
    sums.write(tensor, toFloat32(loadFunctions(), readTensor(file, `${SUMS}${tensor.name}`), "f32"));
  return true;
}
