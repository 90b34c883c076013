import { type FileHandle, mkdir, open, rm } from "node:fs/promises";
import path from "node:path";
import { DTYPE_ID } from "../ggml/dtype.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { checkSpace, moveIntoPlace, temporaryBeside, writingError } from "../system/files.js";
import { removeAbandonedCopies } from "../system/scratch.js";
import {
  alignmentOf,
  type GgufKind,
  type GgufMetadata,
  type GgufScalar,
  type GgufTensor,
  type GgufValue,
  KIND_BYTES,
  KINDS,
  MAGIC,
  MAX_TENSOR_NAME,
  shardName,
} from "./gguf-format.js";
import { splitIntoShards, tensorBytes } from "./tensor-source.js";

const VERSION = 3;

/** How to write a GGUF file, and what to do meanwhile. */
export interface WriteGgufOptions {
  /** Weights are split into files of at most about this size; one file by default. */
  readonly shardBytes?: number | undefined;
  /** Called with the first of the files when all are written, before they are renamed; throws to reject them. */
  readonly verify?: ((file: string) => void) | undefined;
  /** Called with the files' names before any is written; may throw. */
  readonly onFiles?: ((files: readonly string[]) => void) | undefined;
  /** Called with the number of bytes of the elements that were just written. */
  readonly onBytes?: ((count: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Writes a model, streaming: only chunks of one tensor are in memory at a time. Each file is written to a temporary folder
 * beside its place and moved when all are complete, the first one last.
 * @returns the files' names: `file` itself, or NAME-00001-of-00003.gguf and so on
 * @throws FormatError when a tensor's chunks do not add up to its shape
 */
export async function writeGguf(
  file: string,
  metadata: GgufMetadata,
  tensors: readonly GgufTensor[],
  options: WriteGgufOptions = {},
): Promise<string[]> {
  for (const { name } of tensors)
    if (Buffer.byteLength(name) > MAX_TENSOR_NAME)
      throw new FormatError(`the tensor name ${name} is too long for GGUF`);
  const shards = splitIntoShards(tensors, options.shardBytes ?? Number.POSITIVE_INFINITY);
  const base = file.replace(/\.gguf$/, "");
  removeAbandonedCopies(file);
  const folder = temporaryBeside(path.resolve(file));
  const files = shards.map((shard, i) => {
    const name = shards.length === 1 ? file : shardName(base, i, shards.length);
    return { shard, name, temporary: path.join(folder, path.basename(name)) };
  });
  const names = files.map(({ name }) => name);
  options.onFiles?.(names);
  const total = tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), 0);
  checkSpace(file, total, "its tensors");
  try {
    await mkdir(folder, { recursive: true });
    for (const [index, { shard, temporary }] of files.entries()) {
      const entries = index === 0 ? [...metadata].filter(([key]) => !key.startsWith("split.")) : [];
      if (files.length > 1) entries.push(...splitMetadata(index, files.length, tensors.length));
      await writeFile(temporary, new Map(entries), shard, options);
    }
    const [first] = files;
    if (first !== undefined) verifyAs(first.name, first.temporary, options.verify);
    // an older first file would make a model with new ones behind it
    if (files.length > 1 && first !== undefined) await rm(first.name, { force: true });
    for (const { name, temporary } of files.toReversed()) moveIntoPlace(temporary, name);
  } catch (error) {
    throw writingError(error, file, total);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  return names;
}

/** What each file of a split model says of its place among the others. */
const splitMetadata = (index: number, files: number, tensors: number): [string, GgufValue][] => [
  ["split.no", { kind: "uint16", value: index }],
  ["split.count", { kind: "uint16", value: files }],
  ["split.tensors.count", { kind: "int32", value: tensors }],
];

/** Verifies a temporary file; errors call it by its final name. */
function verifyAs(name: string, temporary: string, verify: WriteGgufOptions["verify"]): void {
  try {
    verify?.(temporary);
  } catch (error) {
    if (!(error instanceof CoppiceError)) throw error;
    throw new FormatError(error.message.replaceAll(temporary, name));
  }
}

/** The size of a single file of this metadata and these tensors. */
export function ggufBytes(metadata: GgufMetadata, tensors: readonly Omit<GgufTensor, "chunks">[]): number {
  const alignment = alignmentOf(metadata);
  const padded = (bytes: number) => Math.ceil(bytes / alignment) * alignment;
  const header = encodeHeader(metadata, tensors, alignment).byteLength;
  return tensors.reduce((sum, tensor) => sum + padded(tensorBytes(tensor)), padded(header));
}

async function writeFile(
  file: string,
  metadata: GgufMetadata,
  tensors: readonly GgufTensor[],
  options: WriteGgufOptions,
): Promise<void> {
  const alignment = alignmentOf(metadata);
  const padding = (length: number): Uint8Array => new Uint8Array((alignment - (length % alignment)) % alignment);
  const handle = await open(file, "w");
  try {
    const header = encodeHeader(metadata, tensors, alignment);
    await writeAll(handle, header);
    await writeAll(handle, padding(header.byteLength));
    for (const tensor of tensors) {
      let written = 0;
      for await (const chunk of tensor.chunks()) {
        options.signal?.throwIfAborted();
        await writeAll(handle, chunk);
        written += chunk.byteLength;
        options.onBytes?.(chunk.byteLength);
      }
      if (written !== tensorBytes(tensor))
        throw new FormatError(
          `${tensor.name}: its chunks have ${written} bytes, its shape needs ${tensorBytes(tensor)}`,
        );
      await writeAll(handle, padding(written));
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function writeAll(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.byteLength; ) {
    const { bytesWritten } = await handle.write(bytes, done, Math.min(bytes.byteLength - done, 1 << 30));
    done += bytesWritten;
  }
}

/** Writes the values of a header one after another, into a buffer that grows. */
class Encoder {
  private buffer = Buffer.alloc(1 << 16);
  private length = 0;

  /** Makes room for `count` more bytes. @returns where they begin */
  private reserve(count: number): number {
    const start = this.length;
    this.length += count;
    if (this.length > this.buffer.byteLength) {
      const larger = Buffer.alloc(Math.max(this.length, 2 * this.buffer.byteLength));
      larger.set(this.buffer);
      this.buffer = larger;
    }
    return start;
  }

  uint32(value: number): void {
    const at = this.reserve(4);
    this.buffer.writeUInt32LE(value, at);
  }

  uint64(value: number | bigint): void {
    const at = this.reserve(8);
    this.buffer.writeBigUInt64LE(BigInt(value), at);
  }

  string(value: string): void {
    const count = Buffer.byteLength(value);
    this.uint64(count);
    const at = this.reserve(count);
    this.buffer.write(value, at);
  }

  scalar(kind: GgufKind, value: GgufScalar): void {
    if (kind === "string") {
      this.string(String(value));
      return;
    }
    const at = this.reserve(KIND_BYTES[kind]);
    const view = new DataView(this.buffer.buffer, this.buffer.byteOffset + at, KIND_BYTES[kind]);
    if (kind === "uint64" || kind === "int64") view.setBigInt64(0, BigInt.asIntN(64, BigInt(value)), true);
    else if (kind === "float64") view.setFloat64(0, Number(value), true);
    else if (kind === "float32") view.setFloat32(0, Number(value), true);
    else if (KIND_BYTES[kind] === 4) view.setInt32(0, Number(value) | 0, true);
    else if (KIND_BYTES[kind] === 2) view.setInt16(0, Number(value), true);
    else view.setInt8(0, Number(value));
  }

  get bytes(): Uint8Array {
    return this.buffer.subarray(0, this.length);
  }
}

function encodeHeader(
  metadata: GgufMetadata,
  tensors: readonly Omit<GgufTensor, "chunks">[],
  alignment: number,
): Uint8Array {
  const out = new Encoder();
  out.uint32(MAGIC);
  out.uint32(VERSION);
  out.uint64(tensors.length);
  out.uint64(metadata.size);
  for (const [key, entry] of metadata) {
    out.string(key);
    out.uint32(KINDS.indexOf(entry.kind));
    if (entry.kind !== "array") {
      out.scalar(entry.kind, entry.value);
      continue;
    }
    out.uint32(KINDS.indexOf(entry.of));
    out.uint64(entry.value.length);
    for (const value of entry.value) out.scalar(entry.of, value);
  }
  let offset = 0;
  for (const tensor of tensors) {
    out.string(tensor.name);
    out.uint32(tensor.shape.length);
    for (const size of [...tensor.shape].reverse()) out.uint64(size);
    out.uint32(DTYPE_ID[tensor.dtype]);
    out.uint64(offset);
    offset += Math.ceil(tensorBytes(tensor) / alignment) * alignment;
  }
  return out.bytes;
}
