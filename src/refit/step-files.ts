import { existsSync } from "node:fs";
import path from "node:path";
import { areFinite } from "../checkpoint/finite.js";
import { openSafetensors, streamSafetensors } from "../checkpoint/safetensors.js";
import { floatSource, type TensorSource } from "../checkpoint/tensor-source.js";
import { SavedStreams } from "../evaluate/saved-streams.js";
import { fromFloat32, toFloat32 } from "../ggml/convert.js";
import type { FloatDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { type Model, shapeOf } from "../models/index.js";
import { joinedSource } from "../models/sources.js";
import { readMatrix } from "../prune/matrices.js";
import { CoppiceError, FormatError, required } from "../system/errors.js";
import type { MatrixRows } from "./matrix-rows.js";
import type { Values } from "./start.js";

/** What a part consists of. */
export interface PartContent {
  readonly values?: Values | undefined;
  /** Is computed while it is written. */
  readonly matrices?: readonly MatrixRows[] | undefined;
}

const ROUNDED_AT_ONCE = 1 << 20;

export interface StepFilesOptions {
  /** Identifies the cut. */
  readonly identity: string;
  /** In which numbers are kept. */
  readonly dtype: FloatDType;
  /** Streams are saved that often, 20 by default. */
  readonly saveEverySeconds?: number | undefined;
}

/** Finished parts of a model on disk, a file each: work that was killed goes on after the last of them. */
export class StepFiles {
  private readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** Of the cut: parts of another one are refused. */
  /** Of the cut and what it is fitted to. */
  readonly identity: string;
  private readonly dtype: FloatDType;
  /** Both models' streams between two steps. */
  readonly streams: SavedStreams;

  /** @param place the path of a file in the directory, by its name */
  constructor(
    private readonly place: (name: string) => string,
    model: Model,
    { identity, dtype, saveEverySeconds }: StepFilesOptions,
  ) {
    this.identity = identity;
    this.dtype = dtype;
    this.streams = new SavedStreams(path.resolve(place("streams.safetensors")), saveEverySeconds);
    this.shapes = new Map(model.parameters.map((spec) => [spec.name, shapeOf(spec, model.sizes)]));
  }

  /** A finished part's values. @param names only these @throws FormatError when they are another cut's */
  read(part: string, names?: readonly string[]): Values | undefined {
    const file = this.fileOf(part);
    if (!existsSync(file)) return undefined;
    const source = openSafetensors(file);
    const isOwn = [...source.tensors].every(([name, { shape }]) => this.shapes.get(name)?.join() === shape.join());
    if (!isOwn || source.metadata.cut !== this.identity)
      throw new FormatError(
        `${file} is of another cut, or was fitted to other scores or data: begin anew with --restart`,
      );
    return new Map((names ?? [...source.tensors.keys()]).map((name) => [name, readMatrix(source, name).data]));
  }

  /** @throws CoppiceError when a value is not finite */
  async write(part: string, { values = new Map(), matrices = [] }: PartContent): Promise<void> {
    const kept = [...values].map(
      ([name, data]): MatrixRows => ({
        name,
        async *blocks() {
          yield data;
        },
      }),
    );
    const { dtype } = this;
    const tensors = [...kept, ...matrices].map(({ name, blocks }) => ({
      name,
      dtype,
      shape: required(this.shapes.get(name), `the cut model has no parameter ${name}`),
      async *chunks() {
        for await (const block of blocks()) {
          if (!areFinite(block)) throw notFinite(name);
          const bytes = fromFloat32(loadFunctions(), block, dtype);
          yield bytes;
        }
      },
    }));
    await streamSafetensors(this.fileOf(part), tensors, { kind: "coppice refit", cut: this.identity });
  }

  /** Rounds numbers to those that are kept of them, in place. */
  round(values: Float32Array): void {
    if (this.dtype === "f32") return;
    const f = loadFunctions();
    for (let from = 0; from < values.length; from += ROUNDED_AT_ONCE) {
      const block = values.subarray(from, from + ROUNDED_AT_ONCE);
      block.set(toFloat32(f, fromFloat32(f, block, this.dtype), this.dtype));
    }
  }

  /** @throws FormatError when the file is another cut's */
  has(part: string): boolean {
    return this.read(part, []) !== undefined;
  }

  /** Computes and writes a part unless it is there. */
  async once(part: string, compute: () => PartContent | Promise<PartContent>): Promise<void> {
    if (!this.has(part)) await this.write(part, await compute());
  }

  /** The tensors of all parts. @throws FormatError when one is of another cut */
  source(parts: readonly string[]): TensorSource<FloatDType> {
    for (const part of parts) this.has(part);
    return parts
      .map((part) => floatSource(openSafetensors(this.fileOf(part))))
      .reduce((joined, part) => joinedSource(joined, part));
  }

  private fileOf(part: string): string {
    return path.resolve(this.place(`${part}.safetensors`));
  }
}

const notFinite = (name: string) =>
  new CoppiceError(
    `the cut model's ${name} came out with values that are not finite (NaN or infinite): its regression or its rotation overflows f32`,
  );
