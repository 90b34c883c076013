import { existsSync } from "node:fs";
import { type FileHandle, mkdir, open, rm } from "node:fs/promises";
import path from "node:path";
import { blockSize, DTYPE_ID, dtypeOfId } from "../ggml/dtype.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { checkSpace, moveIntoPlace, temporaryBeside, writingError } from "../system/files.js";
import { type MappedFile, mapFile } from "../system/mapped-file.js";
import { rowBytes, type TensorInfo, type TensorSource, tensorBytes } from "./tensor-source.js";

/**
 * GGUF, the file format of ggml's models: metadata, a table of tensors, and their elements, in one file or several. See
 * https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
 */

/** Kinds of metadata values, in the order of their numbers in a file. */
const KINDS = [
  ...(["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string"] as const),
  ...(["array", "uint64", "int64", "float64"] as const),
] as const;
export type GgufKind = Exclude<(typeof KINDS)[number], "array">;

/** Integers past 2^53 come as bigint. */
export type GgufScalar = number | bigint | boolean | string;

/** A metadata value with its kind. */
export type GgufValue =
  | { readonly kind: GgufKind; readonly value: GgufScalar }
  | { readonly kind: "array"; readonly of: GgufKind; readonly value: readonly GgufScalar[] };

export type GgufMetadata = ReadonlyMap<string, GgufValue>;

const BYTES: Readonly<Record<Exclude<GgufKind, "string">, number>> = {
  ...{ uint8: 1, int8: 1, uint16: 2, int16: 2, uint32: 4, int32: 4, float32: 4, bool: 1 },
  ...{ uint64: 8, int64: 8, float64: 8 },
};

const MAGIC = 0x46554747;
const VERSION = 3;
const DEFAULT_ALIGNMENT = 32;
/** ggml keeps names in fields of 64 bytes, the closing zero included. */
const MAX_TENSOR_NAME = 63;
const MAX_KEY = 65535;
/** Far above what any model has; a header that claims more lies. */
const MAX_ENTRIES = 1 << 20;
const MAX_ARRAY = 1 << 26;
const MAX_STRING = 64 << 20;
const MAX_ALIGNMENT = 1 << 20;

interface Entry extends TensorInfo {
  readonly file: MappedFile;
  readonly offset: number;
}

/** A GGUF model, opened: its headers checked, its elements left on disk. Shapes are outermost first, as everywhere here. */
export interface GgufFile extends TensorSource {
  readonly path: string;
  readonly files: readonly string[];
  readonly metadata: GgufMetadata;
}

const SHARD = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/;

/** The name of one file of a split model. */
const shardName = (base: string, index: number, count: number): string =>
  `${base}-${String(index + 1).padStart(5, "0")}-of-${String(count).padStart(5, "0")}.gguf`;

/**
 * Opens a GGUF file, or all files of a split model given any of them, and checks everything their headers say before it is
 * believed: counts, lengths, types, shapes, offsets inside the file and apart from one another.
 * @throws FormatError saying what is wrong with the file
 */
export function openGguf(file: string): GgufFile {
  const [, base, , total] = SHARD.exec(file) ?? [];
  const files =
    base === undefined ? [file] : Array.from({ length: Number(total) }, (_, i) => shardName(base, i, Number(total)));
  if (files.length === 0 || files.length > 9999)
    throw new FormatError(`${file}: its name says that it is one of ${files.length} files`);
  const missing = files.find((name) => !existsSync(name));
  if (missing !== undefined) throw new CoppiceError(`${missing} is missing`);
  const tensors = new Map<string, Entry>();
  let metadata: GgufMetadata | undefined;
  for (const name of files) {
    const header = readHeader(mapFile(name));
    metadata ??= header.metadata;
    for (const [tensor, entry] of header.tensors) {
      if (tensors.has(tensor)) throw new FormatError(`${name}: tensor ${tensor} is there twice`);
      tensors.set(tensor, entry);
    }
  }
  checkSplit(file, files.length, tensors.size, metadata ?? new Map());
  return new OpenGguf(file, files, metadata ?? new Map(), tensors);
}

/** The numbers that a split model's first file says of the whole must hold. */
function checkSplit(file: string, files: number, tensors: number, metadata: GgufMetadata): void {
  const said = (key: string, otherwise: number): number => Number(metadata.get(key)?.value ?? otherwise);
  if (said("split.count", 1) !== files && said("split.count", 1) > 1)
    throw new FormatError(
      `${file} is one of ${said("split.count", 1)} files of a model; give the first, named ...-00001-of-${String(said("split.count", 1)).padStart(5, "0")}.gguf`,
    );
  if (said("split.tensors.count", tensors) !== tensors)
    throw new FormatError(
      `${file}: there should be ${said("split.tensors.count", 0)} tensors, its files have ${tensors}`,
    );
}

class OpenGguf implements GgufFile {
  constructor(
    readonly path: string,
    readonly files: readonly string[],
    readonly metadata: GgufMetadata,
    readonly tensors: ReadonlyMap<string, Entry>,
  ) {}

  private range(name: string, from: number, to: number): readonly [MappedFile, number, number] {
    const entry = this.tensors.get(name);
    if (entry === undefined) throw new FormatError(`${this.path} has no tensor ${name}`);
    const width = rowBytes(entry);
    return [entry.file, entry.offset + from * width, (to - from) * width];
  }

  readRows(name: string, from: number, to: number): Uint8Array {
    const [file, offset, length] = this.range(name, from, to);
    return file.bytes(offset, length);
  }

  releaseRows(name: string, from: number, to: number): void {
    const [file, offset, length] = this.range(name, from, to);
    file.release(offset, length);
  }
}

/** Reads the header's values one after another, never past the end of the file. */
class Cursor {
  position = 0;
  private start = 0;
  private window: Uint8Array = new Uint8Array();
  private view: DataView = new DataView(new ArrayBuffer(0));
  private readonly text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

  constructor(readonly file: MappedFile) {}

  get left(): number {
    return this.file.byteLength - this.position;
  }

  fail(what: string): never {
    throw new FormatError(`${this.file.path}: ${what} (at byte ${this.position}); it is damaged or no GGUF file`);
  }

  /** Where the next `count` bytes are in the window over the file. */
  private take(count: number): number {
    if (count > this.left)
      this.fail(`it ends inside its header: ${count} more bytes were expected, ${this.left} are there`);
    const at = this.position - this.start;
    this.position += count;
    if (at + count <= this.window.byteLength) return at;
    this.start = this.position - count;
    this.window = this.file.bytes(this.start, Math.min(this.file.byteLength - this.start, Math.max(count, 1 << 20)));
    this.view = new DataView(this.window.buffer, this.window.byteOffset, this.window.byteLength);
    return 0;
  }

  uint32(): number {
    const at = this.take(4);
    return this.view.getUint32(at, true);
  }

  /** A 64-bit count or length. */
  count(what: string, limit: number): number {
    const at = this.take(8);
    const value = this.view.getBigUint64(at, true);
    if (value > BigInt(limit)) this.fail(`${what} is ${value}, at most ${limit} makes sense`);
    return Number(value);
  }

  string(what: string, limit = MAX_STRING): string {
    const length = this.count(`the length of ${what}`, limit);
    const at = this.take(length);
    try {
      return this.text.decode(this.window.subarray(at, at + length));
    } catch {
      return this.fail(`${what} is no valid UTF-8`);
    }
  }

  scalar(kind: GgufKind, what: string): GgufScalar {
    if (kind === "string") return this.string(what);
    const at = this.take(BYTES[kind]);
    switch (kind) {
      case "uint8":
        return this.view.getUint8(at);
      case "int8":
        return this.view.getInt8(at);
      case "uint16":
        return this.view.getUint16(at, true);
      case "int16":
        return this.view.getInt16(at, true);
      case "uint32":
        return this.view.getUint32(at, true);
      case "int32":
        return this.view.getInt32(at, true);
      case "float32":
        return this.view.getFloat32(at, true);
      case "float64":
        return this.view.getFloat64(at, true);
      case "bool":
        return this.view.getUint8(at) !== 0;
      case "uint64":
        return narrowed(this.view.getBigUint64(at, true));
      case "int64":
        return narrowed(this.view.getBigInt64(at, true));
    }
  }
}

const narrowed = (value: bigint): number | bigint => (Number.isSafeInteger(Number(value)) ? Number(value) : value);

function readHeader(file: MappedFile): { readonly metadata: GgufMetadata; readonly tensors: Map<string, Entry> } {
  const cursor = new Cursor(file);
  if (file.byteLength < 24 || cursor.uint32() !== MAGIC) throw new FormatError(`${file.path} is no GGUF file`);
  const version = cursor.uint32();
  if (version !== 2 && version !== 3)
    throw new FormatError(`${file.path}: GGUF version ${version} is not read, only 2 and 3 of little-endian files`);
  const tensorCount = cursor.count("the number of tensors", MAX_ENTRIES);
  const keyCount = cursor.count("the number of metadata keys", MAX_ENTRIES);
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < keyCount; i++) {
    const key = cursor.string("a metadata key", MAX_KEY);
    if (metadata.has(key)) cursor.fail(`the key ${key} is there twice`);
    metadata.set(key, readValue(cursor, key));
  }
  const alignment = alignmentOf(metadata);
  if (!(alignment >= 1 && alignment <= MAX_ALIGNMENT && Number.isInteger(Math.log2(alignment))))
    cursor.fail(`general.alignment is ${alignment}, a power of two was expected`);
  const described = Array.from({ length: tensorCount }, () => readTensorInfo(cursor));
  const dataStart = Math.ceil(cursor.position / alignment) * alignment;
  const tensors = new Map<string, Entry>();
  for (const { name, offset, ...info } of described) {
    if (tensors.has(name)) cursor.fail(`tensor ${name} is there twice`);
    if (offset % alignment !== 0) cursor.fail(`tensor ${name} begins at ${offset}, no multiple of ${alignment}`);
    if (dataStart + offset + tensorBytes(info) > file.byteLength)
      cursor.fail(
        `tensor ${name} ends at byte ${dataStart + offset + tensorBytes(info)} of a file of ${file.byteLength}: it is truncated or its header lies`,
      );
    tensors.set(name, { ...info, file, offset: dataStart + offset });
  }
  checkApart(cursor, tensors);
  return { metadata, tensors };
}

function readValue(cursor: Cursor, key: string): GgufValue {
  const kind = readKind(cursor, key);
  if (kind !== "array") return { kind, value: cursor.scalar(kind, key) };
  const of = readKind(cursor, key);
  if (of === "array") return cursor.fail(`${key} is an array of arrays`);
  const count = cursor.count(`the length of ${key}`, MAX_ARRAY);
  const least = of === "string" ? 8 : BYTES[of];
  if (count * least > cursor.left) cursor.fail(`${key} has ${count} elements, the file has ${cursor.left} more bytes`);
  return { kind, of, value: Array.from({ length: count }, () => cursor.scalar(of, key)) };
}

function readKind(cursor: Cursor, key: string): (typeof KINDS)[number] {
  const number = cursor.uint32();
  return KINDS[number] ?? cursor.fail(`${key} has a value of the unknown kind ${number}`);
}

function readTensorInfo(cursor: Cursor): TensorInfo & { readonly name: string; readonly offset: number } {
  const name = cursor.string("a tensor's name", MAX_TENSOR_NAME);
  const dimensions = cursor.uint32();
  if (!(dimensions >= 1 && dimensions <= 4)) cursor.fail(`tensor ${name} has ${dimensions} dimensions`);
  const sizes = Array.from({ length: dimensions }, () => cursor.count(`a size of ${name}`, 2 ** 40));
  const elements = sizes.reduce((product, size) => product * size, 1);
  if (elements === 0 || !Number.isSafeInteger(elements * 8)) cursor.fail(`tensor ${name} has the shape [${sizes}]`);
  const number = cursor.uint32();
  const dtype = dtypeOfId(number);
  if (dtype === undefined || dtype === "i32")
    return cursor.fail(`tensor ${name} has the element type ${number}, which is not read`);
  if ((sizes[0] ?? 0) % blockSize(dtype) !== 0)
    cursor.fail(`tensor ${name} has rows of ${sizes[0]} elements, ${dtype} comes in blocks of ${blockSize(dtype)}`);
  const offset = cursor.count(`the offset of ${name}`, 2 ** 52);
  return { name, dtype, shape: sizes.reverse(), offset };
}

function checkApart(cursor: Cursor, tensors: ReadonlyMap<string, Entry>): void {
  let end = 0;
  for (const [name, entry] of [...tensors].sort(([, a], [, b]) => a.offset - b.offset)) {
    if (entry.offset < end) cursor.fail(`tensor ${name} overlaps the one before it`);
    end = entry.offset + tensorBytes(entry);
  }
}

/** A tensor to be written: its elements come in pieces, in order. */
export interface GgufTensor extends TensorInfo {
  readonly name: string;
  readonly chunks: () => Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
}

export interface WriteGgufOptions {
  /** Weights are split into files of at most about this size; one file by default. */
  readonly shardBytes?: number | undefined;
  /** Looks at the first of the files when all are written, before they get their names; throws to refuse them. */
  readonly verify?: ((file: string) => void) | undefined;
  /** Hears the files' names before any is written, and may throw. */
  readonly onFiles?: ((files: readonly string[]) => void) | undefined;
  readonly onBytes?: ((count: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Writes a model, streaming: only pieces of one tensor are in memory at a time. Each file is written beside its place and moved
 * there when all are whole, the first one last.
 * @returns the files' names: `file` itself, or NAME-00001-of-00003.gguf and so on
 * @throws FormatError when a tensor's pieces do not add up to its shape
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
  const shards = splitInto(tensors, options.shardBytes ?? Number.POSITIVE_INFINITY);
  const base = file.replace(/\.gguf$/, "");
  const names = shards.length === 1 ? [file] : shards.map((_, i) => shardName(base, i, shards.length));
  options.onFiles?.(names);
  const total = tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), 0);
  checkSpace(file, total, "its tensors");
  const folder = temporaryBeside(path.resolve(file));
  const temporaries = names.map((name) => path.join(folder, path.basename(name)));
  try {
    await mkdir(folder, { recursive: true });
    for (const [i, shard] of shards.entries()) {
      const split: [string, GgufValue][] = [
        ["split.no", { kind: "uint16", value: i }],
        ["split.count", { kind: "uint16", value: shards.length }],
        ["split.tensors.count", { kind: "int32", value: tensors.length }],
      ];
      const own = i === 0 ? [...metadata].filter(([key]) => !key.startsWith("split.")) : [];
      await writeFile(temporaries[i] ?? "", new Map([...own, ...(shards.length > 1 ? split : [])]), shard, options);
    }
    verified(temporaries[0] ?? "", names[0] ?? "", options.verify);
    for (const [i, name] of [...names.entries()].reverse()) moveIntoPlace(temporaries[i] ?? "", name);
  } catch (error) {
    throw writingError(error, file, total);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  return names;
}

/** Lets someone look at a file before it gets its name, by which it is called where it is refused. */
function verified(temporary: string, name: string, verify: WriteGgufOptions["verify"]): void {
  try {
    verify?.(temporary);
  } catch (error) {
    if (!(error instanceof CoppiceError)) throw error;
    throw new FormatError(error.message.replaceAll(temporary, name));
  }
}

function splitInto(tensors: readonly GgufTensor[], limit: number): GgufTensor[][] {
  const shards: GgufTensor[][] = [[]];
  let size = 0;
  for (const tensor of tensors) {
    if (size > 0 && size + tensorBytes(tensor) > limit) {
      shards.push([]);
      size = 0;
    }
    shards.at(-1)?.push(tensor);
    size += tensorBytes(tensor);
  }
  return shards;
}

/** The size that a single file of these would have. */
export function ggufBytes(metadata: GgufMetadata, tensors: readonly Omit<GgufTensor, "chunks">[]): number {
  const alignment = alignmentOf(metadata);
  const padded = (bytes: number) => Math.ceil(bytes / alignment) * alignment;
  const header = encodeHeader(metadata, tensors, alignment).byteLength;
  return tensors.reduce((sum, tensor) => sum + padded(tensorBytes(tensor)), padded(header));
}

const alignmentOf = (metadata: GgufMetadata): number =>
  Number(metadata.get("general.alignment")?.value ?? DEFAULT_ALIGNMENT);

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
        throw new FormatError(`${tensor.name}: ${written} bytes came for a shape of ${tensorBytes(tensor)}`);
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

/** Collects a header piece by piece. */
class Encoder {
  private readonly parts: Uint8Array[] = [];

  private number(bytes: number, set: (view: DataView) => void): void {
    const part = new Uint8Array(bytes);
    set(new DataView(part.buffer));
    this.parts.push(part);
  }

  uint32(value: number): void {
    this.number(4, (view) => view.setUint32(0, value, true));
  }

  uint64(value: number | bigint): void {
    this.number(8, (view) => view.setBigUint64(0, BigInt(value), true));
  }

  string(value: string): void {
    const bytes = Buffer.from(value, "utf8");
    this.uint64(bytes.byteLength);
    this.parts.push(bytes);
  }

  scalar(kind: GgufKind, value: GgufScalar): void {
    if (kind === "string") {
      this.string(String(value));
      return;
    }
    this.number(BYTES[kind], (view) => {
      if (kind === "uint64" || kind === "int64") view.setBigInt64(0, BigInt.asIntN(64, BigInt(value)), true);
      else if (kind === "float64") view.setFloat64(0, Number(value), true);
      else if (kind === "float32") view.setFloat32(0, Number(value), true);
      else if (BYTES[kind] === 4) view.setInt32(0, Number(value) | 0, true);
      else if (BYTES[kind] === 2) view.setInt16(0, Number(value), true);
      else view.setInt8(0, Number(value));
    });
  }

  get bytes(): Uint8Array {
    return Buffer.concat(this.parts);
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

/** Short ways to write metadata values. */
export const gguf = {
  string: (value: string): GgufValue => ({ kind: "string", value }),
  bool: (value: boolean): GgufValue => ({ kind: "bool", value }),
  uint32: (value: number): GgufValue => ({ kind: "uint32", value }),
  float32: (value: number): GgufValue => ({ kind: "float32", value }),
  strings: (value: readonly string[]): GgufValue => ({ kind: "array", of: "string", value }),
  numbers: (of: "int32" | "uint32" | "float32", value: readonly number[]): GgufValue => ({ kind: "array", of, value }),
};
