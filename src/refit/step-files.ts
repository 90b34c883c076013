import { existsSync } from "node:fs";
import path from "node:path";
import { openSafetensors, writeSafetensors } from "../checkpoint/safetensors.js";
import { floatSource, type TensorSource } from "../checkpoint/tensor-source.js";
import { bytesOf, type FloatDType } from "../ggml/dtype.js";
import { type Model, shapeOf } from "../models/index.js";
import { joinedSource } from "../models/sources.js";
import { readMatrix } from "../prune/matrices.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import type { Values } from "./start.js";

/** Finished parts of a model on disk, a file each: work that was killed goes on after the last of them. */
export class StepFiles {
  private readonly shapes: ReadonlyMap<string, readonly number[]>;

  /** @param place the path of a file in the directory, by its name */
  constructor(
    private readonly place: (name: string) => string,
    model: Model,
  ) {
    this.shapes = new Map(model.parameters.map((spec) => [spec.name, shapeOf(spec, model.sizes)]));
  }

  /** A finished part's values. @throws FormatError when they are another cut's */
  read(part: string): Values | undefined {
    const file = this.fileOf(part);
    if (!existsSync(file)) return undefined;
    const source = openSafetensors(file);
    for (const [name, { shape }] of source.tensors) {
      const wanted = this.shapes.get(name);
      if (wanted?.join() !== shape.join())
        throw new FormatError(
          `${file}: ${name} has the shape [${shape.join(", ")}], in this cut it is [${wanted?.join(", ") ?? "absent"}]: the file is another cut's; delete it`,
        );
    }
    return new Map([...source.tensors.keys()].map((name) => [name, readMatrix(source, name).data]));
  }

  /** @throws CoppiceError when a value is not finite */
  write(part: string, values: Values): void {
    for (const [name, data] of values)
      if (!data.every(Number.isFinite))
        throw new CoppiceError(
          `the cut model's ${name} came out with values that are not finite (NaN or infinite): its regression or its rotation overflows f32`,
        );
    const tensors = [...values].map(([name, data]) => ({
      name,
      dtype: "f32" as const,
      shape: this.shapes.get(name) ?? [data.length],
      chunks: () => [bytesOf(data)],
    }));
    writeSafetensors(this.fileOf(part), tensors, { kind: "coppice refit" });
  }

  /** A part's values, computed and written unless they are there. */
  async once(part: string, compute: () => Promise<Values>): Promise<Values> {
    const known = this.read(part);
    if (known !== undefined) return known;
    const values = await compute();
    this.write(part, values);
    return values;
  }

  /** The tensors of all parts. */
  source(parts: readonly string[]): TensorSource<FloatDType> {
    return parts
      .map((part) => floatSource(openSafetensors(this.fileOf(part))))
      .reduce((joined, part) => joinedSource(joined, part));
  }

  private fileOf(part: string): string {
    return path.resolve(this.place(`${part}.safetensors`));
  }
}
