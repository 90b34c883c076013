import path from "node:path";
import { toFloat32 } from "../ggml/convert.js";
import { bytesOf } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { FormatError } from "../system/errors.js";
import { checkOwner, openSafetensors, writeSafetensors } from "./safetensors.js";
import { readTensor } from "./tensor-source.js";

/** Vectors measured on a model, by name. */
export type Vectors = ReadonlyMap<string, Float32Array>;

/**
 * Writes vectors to a safetensors file, one f32 tensor [length] each.
 * @param kind what the file holds, for its metadata
 * @param identity of the model that they were measured on; see `checkOwner`
 */
export function saveVectors(file: string, vectors: Vectors, kind: string, identity: string | undefined): void {
  const tensors = [...vectors].map(([name, values]) => ({
    name,
    dtype: "f32" as const,
    shape: [values.length],
    chunks: () => [bytesOf(values)],
  }));
  const metadata: Record<string, string> = identity === undefined ? { kind } : { kind, model: identity };
  writeSafetensors(path.resolve(file), tensors, metadata);
}

/**
 * Reads vectors of known lengths.
 * @param what the vectors are, for messages: `scores`
 * @param identity of the model that they are wanted for; tells models of the same sizes apart
 * @throws FormatError when the file belongs to another model
 */
export function loadVectors(
  file: string,
  lengths: Iterable<readonly [name: string, length: number]>,
  what: string,
  identity: string | undefined,
): Map<string, Float32Array> {
  const source = openSafetensors(file);
  try {
    checkOwner(source, identity, what);
    const vectors = new Map<string, Float32Array>();
    for (const [name, length] of lengths) {
      const info = source.tensors.get(name);
      if (info?.shape.join() !== String(length))
        throw new FormatError(`${file} has no ${length} ${what} for ${name}: it was made for another model`);
      vectors.set(name, toFloat32(loadFunctions(), readTensor(source, name), info.dtype).slice());
    }
    return vectors;
  } finally {
    source.close();
  }
}
