import { existsSync } from "node:fs";
import { blockSize, dtypeOfId } from "../ggml/dtype.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { type MappedFile, mapFile } from "../system/mapped-file.js";
import {
  alignmentOf,
  type GgufFile,
  type GgufKind,
  type GgufMetadata,
  type GgufScalar,
  type GgufValue,
  KIND_BYTES,
  KINDS,
  MAGIC,
  MAX_TENSOR_NAME,
  shardName,
  shardNames,
} from "./gguf-format.js";
import { rowBytes, type TensorInfo, tensorBytes } from "./tensor-source.js";

const MAX_KEY = 65535;
/** Limits far above what any model has: a header that claims more is wrong. */
const MAX_ENTRIES = 1 << 20;
/** Of all lists together: a vocabulary and its merges have a few million, and each takes up to a hundred bytes here. */
const MAX_ELEMENTS = 1 << 23;
const MAX_STRING = 64 << 20;
const MAX_ALIGNMENT = 1 << 20;
const MAX_FILES = 9999;

interface Entry extends TensorInfo {
  readonly file: MappedFile;
  readonly offset: number;
}

/**
 * Opens a GGUF file, or all files of a split model from any one of them. Everything that the headers say is checked before it
 * is used: counts, lengths, types, shapes, and offsets, which must lie inside the file and not overlap.
 * @throws FormatError saying what is wrong with the file, CoppiceError when one is missing
 */
export function openGguf(file: string): GgufFile {
  const files = shardNames(file);
  if (files.length === 0 || files.length > MAX_FILES)
    throw new FormatError(`${file}: by its name it is one of ${files.length} files`);
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

/** Checks what a split model's first file says of the whole. */
function checkSplit(file: string, files: number, tensors: number, metadata: GgufMetadata): void {
  const numberAt = (key: string, fallback: number): number => Number(metadata.get(key)?.value ?? fallback);
  const fileCount = numberAt("split.count", 1);
  if (fileCount !== files && fileCount > 1)
    throw new FormatError(
      `${file} is one of ${fileCount} files of a model; give the first, named ${shardName("...", 0, fileCount)}`,
    );
  const tensorCount = numberAt("split.tensors.count", tensors);
  if (tensorCount !== tensors)
    throw new FormatError(`${file}: there should be ${tensorCount} tensors, its files have ${tensors}`);
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
  /** How many more elements the metadata's lists may have. */
  elementsLeft = MAX_ELEMENTS;
  private start = 0;
  private window: Uint8Array = new Uint8Array();
  private view: DataView = new DataView(new ArrayBuffer(0));
  private readonly text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

  constructor(readonly file: MappedFile) {}

  get left(): number {
    return this.file.byteLength - this.position;
  }

  fail(problem: string): never {
    throw new FormatError(`${this.file.path}: ${problem} (at byte ${this.position}); it is damaged or not a GGUF file`);
  }

  /** Advances by `count` bytes. @returns where they begin in the window over the file */
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

  /** A 64-bit count or length. @param what it counts, for the message */
  count(what: string, limit: number): number {
    const at = this.take(8);
    const value = this.view.getBigUint64(at, true);
    if (value > BigInt(limit)) this.fail(`${what} is ${value}, the limit is ${limit}`);
    return Number(value);
  }

  string(what: string, limit = MAX_STRING): string {
    const length = this.count(`the length of ${what}`, limit);
    const at = this.take(length);
    try {
      return this.text.decode(this.window.subarray(at, at + length));
    } catch {
      return this.fail(`${what} is not valid UTF-8`);
    }
  }

  scalar(kind: GgufKind, what: string): GgufScalar {
    if (kind === "string") return this.string(what);
    const at = this.take(KIND_BYTES[kind]);
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
  if (file.byteLength < 24 || cursor.uint32() !== MAGIC) throw new FormatError(`${file.path} is not a GGUF file`);
  const version = cursor.uint32();
  if (version !== 2 && version !== 3)
    throw new FormatError(
      `${file.path}: GGUF version ${version} is not supported, only 2 and 3 of little-endian files`,
    );
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
    cursor.fail(`general.alignment is ${alignment}, not a power of two`);
  const described = Array.from({ length: tensorCount }, () => readTensorInfo(cursor));
  const dataStart = Math.ceil(cursor.position / alignment) * alignment;
  const tensors = new Map<string, Entry>();
  for (const { name, offset, ...info } of described) {
    if (tensors.has(name)) cursor.fail(`tensor ${name} is there twice`);
    if (offset % alignment !== 0) cursor.fail(`tensor ${name} begins at ${offset}, not a multiple of ${alignment}`);
    if (dataStart + offset + tensorBytes(info) > file.byteLength)
      cursor.fail(
        `tensor ${name} ends at byte ${dataStart + offset + tensorBytes(info)} of a file of ${file.byteLength}: it is truncated or its header is wrong`,
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
  const count = cursor.count(`the length of ${key}`, MAX_ELEMENTS);
  const least = of === "string" ? 8 : KIND_BYTES[of];
  if (count * least > cursor.left) cursor.fail(`${key} has ${count} elements, the file has ${cursor.left} more bytes`);
  cursor.elementsLeft -= count;
  if (cursor.elementsLeft < 0) cursor.fail(`with ${key} its lists have more than ${MAX_ELEMENTS} elements together`);
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
    return cursor.fail(`tensor ${name} has the element type ${number}, which is not supported`);
  if ((sizes[0] as number) % blockSize(dtype) !== 0)
    cursor.fail(`tensor ${name} has rows of ${sizes[0]} elements, ${dtype} comes in blocks of ${blockSize(dtype)}`);
  const offset = cursor.count(`the offset of ${name}`, 2 ** 52);
  return { name, dtype, shape: sizes.reverse(), offset };
}

/** Checks that no two tensors overlap. */
function checkApart(cursor: Cursor, tensors: ReadonlyMap<string, Entry>): void {
  let end = 0;
  for (const [name, entry] of [...tensors].sort(([, a], [, b]) => a.offset - b.offset)) {
    if (entry.offset < end) cursor.fail(`tensor ${name} overlaps the one before it`);
    end = entry.offset + tensorBytes(entry);
  }
}
