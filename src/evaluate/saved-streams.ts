import { existsSync, rmSync } from "node:fs";
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
import type { TensorStore } from "../tensor/index.js";

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
  private savedAt = performance.now();

  constructor(
    private readonly file: string,
    private readonly everySeconds = 20,
  ) {}

  /** Saves streams after so many steps, with sums that belong to them. @param notes are kept with them */
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
    await streamSafetensors(path.resolve(this.file), tensors, {
      ...notes,
      kind: "coppice streams",
      steps: String(steps),
    });
    this.savedAt = performance.now();
  }

  /** What was saved last. A damaged file, which no interruption leaves, counts as none. */
  read(): Saved | undefined {
    if (!existsSync(this.file)) return undefined;
    try {
      const file = openSafetensors(path.resolve(this.file));
      const steps = Number(file.metadata.steps);
      return Number.isSafeInteger(steps) && steps > 0 ? { steps, file } : undefined;
    } catch {
      return undefined;
    }
  }

  delete(): void {
    rmSync(this.file, { force: true });
  }
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
