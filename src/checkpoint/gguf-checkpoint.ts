import { existsSync } from "node:fs";
import path from "node:path";
import type { GgufLayout } from "../models/gguf-layout.js";
import { configFromGguf, modelFromConfig } from "../models/registry.js";
import { FormatError } from "../system/errors.js";
import { cacheDirectory, hashBytes, writeJson } from "../system/files.js";
import type { Checkpoint } from "./directory.js";
import { type GgufFile, openGguf } from "./gguf.js";
import { tokenizerFiles } from "./gguf-tokenizer.js";
import { rowBytes, sourceBytes, type TensorInfo, type TensorSource, tensorInfo } from "./tensor-source.js";

/**
 * Opens a GGUF file as a model like any other: the configuration, names and order of a Hugging Face checkpoint, the elements
 * as they are stored.
 * @throws FormatError when the file is damaged or its model is not known here
 */
export function openGgufCheckpoint(file: string): Checkpoint {
  const opened = openGguf(file);
  const config = configFromGguf(opened);
  const source = new GgufSource(opened, modelFromConfig(config).gguf());
  let directory: string | undefined;
  return {
    path: file,
    get directory() {
      directory ??= tokenizerDirectory(opened);
      return directory;
    },
    config,
    source,
    bytes: sourceBytes(source),
    files: opened.files,
  };
}

/** The file's tokenizer as files, in the cache. */
function tokenizerDirectory(file: GgufFile): string {
  const files = tokenizerFiles(file.path, file.metadata);
  const directory = path.join(cacheDirectory(), "gguf", hashBytes(JSON.stringify(files)).slice(0, 32));
  for (const [name, content] of Object.entries(files))
    if (!existsSync(path.join(directory, name))) writeJson(path.join(directory, name), content);
  return directory;
}

/** A file's tensors under the names and in the row order of a checkpoint. */
class GgufSource implements TensorSource {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  private readonly homes = new Map<string, { readonly name: string; readonly rows: Uint32Array | undefined }>();

  constructor(
    private readonly file: GgufFile,
    layout: GgufLayout,
  ) {
    const tensors = new Map<string, TensorInfo>();
    for (const { name, parameter, rows } of layout.parameters) {
      const info = file.tensors.get(name);
      if (info === undefined) continue; // said when the weights are asked for
      if (rows !== undefined && rows.length !== info.shape[0])
        throw new FormatError(`${file.path}: ${name} has ${info.shape[0]} rows, its heads make ${rows.length}`);
      tensors.set(parameter, { dtype: info.dtype, shape: info.shape });
      this.homes.set(parameter, { name, rows: rows && inverted(rows) });
    }
    this.tensors = tensors;
  }

  private home(name: string) {
    const home = this.homes.get(name);
    if (home === undefined) throw new FormatError(`${this.file.path} has no tensor for ${name}`);
    return home;
  }

  readRows(name: string, from: number, to: number): Uint8Array {
    const home = this.home(name);
    if (home.rows === undefined) return this.file.readRows(home.name, from, to);
    return gatherRows(this.file, home.name, home.rows.subarray(from, to));
  }

  releaseRows(name: string, from: number, to: number): void {
    this.file.releaseRows(this.home(name).name, from, to); // rows move within their heads, which lie side by side
  }
}

function inverted(rows: Uint32Array): Uint32Array {
  const result = new Uint32Array(rows.length);
  rows.forEach((row, i) => {
    result[row] = i;
  });
  return result;
}

/** Rows of a tensor in another order. */
export function gatherRows(source: TensorSource, name: string, order: Uint32Array): Uint8Array {
  const width = rowBytes(tensorInfo(source, name));
  const lowest = order.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY);
  const highest = order.reduce((a, b) => Math.max(a, b), 0);
  const rows = source.readRows(name, lowest, highest + 1);
  const result = new Uint8Array(order.length * width);
  order.forEach((row, i) => {
    result.set(rows.subarray((row - lowest) * width, (row - lowest + 1) * width), i * width);
  });
  return result;
}
