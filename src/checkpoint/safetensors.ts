import { closeSync, fsyncSync, mkdirSync, openSync, rmSync } from "node:fs";
import path from "node:path";
import { bytesOf, type FloatDType } from "../ggml/dtype.js";
import { FormatError } from "../system/errors.js";
import { checkSpace, moveIntoPlace, temporaryBeside, writeAll, writingError } from "../system/files.js";
import { type MappedFile, mapFile } from "../system/mapped-file.js";
import { removeAbandonedCopies } from "../system/scratch.js";
import { rowBytes, type TensorInfo, type TensorSource, tensorBytes } from "./tensor-source.js";

/**
 * The safetensors format: 8 bytes header length (little-endian), a JSON header, then the elements. See
 * https://huggingface.co/docs/safetensors.
 */

/** The format's own limit. */
const MAX_HEADER_BYTES = 100_000_000;

const DTYPES: Readonly<Record<string, { readonly bytes: number; readonly dtype?: FloatDType | undefined }>> = {
  F64: { bytes: 8, dtype: "f32" },
  F32: { bytes: 4, dtype: "f32" },
  F16: { bytes: 2, dtype: "f16" },
  BF16: { bytes: 2, dtype: "bf16" },
  I64: { bytes: 8 },
  U64: { bytes: 8 },
  I32: { bytes: 4 },
  U32: { bytes: 4 },
  I16: { bytes: 2 },
  U16: { bytes: 2 },
  I8: { bytes: 1 },
  U8: { bytes: 1 },
  BOOL: { bytes: 1 },
  F8_E4M3: { bytes: 1 },
  F8_E5M2: { bytes: 1 },
  F8_E8M0: { bytes: 1 },
};
/** The type of floats that a name of the format stands for; undefined for what is no plain floats. */
export const floatTypeOf = (name: string): FloatDType | undefined =>
  Object.hasOwn(DTYPES, name) ? DTYPES[name]?.dtype : undefined;
const NAMES: Record<FloatDType, string> = { f32: "F32", f16: "F16", bf16: "BF16" };

interface Entry extends TensorInfo<FloatDType> {
  readonly offset: number;
  /** Stored as 64-bit floats, which are read as 32-bit ones. */
  readonly isDouble: boolean;
}

/** A tensor that holds no plain floats: quantized weights, or whole numbers. */
export interface OtherTensor {
  /** As the format names it, for example `F8_E4M3`. */
  readonly type: string;
  readonly shape: readonly number[];
}

interface OtherEntry extends OtherTensor {
  readonly offset: number;
  readonly elementBytes: number;
}

/** An open safetensors file: its header is checked, its elements stay on disk. */
export interface SafetensorsFile extends TensorSource<FloatDType> {
  readonly path: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** Bytes of all its tensors. */
  readonly dataBytes: number;
  /** Tensors of other element types, which have a meaning only together with others. */
  readonly others: ReadonlyMap<string, OtherTensor>;
  /** The bytes of rows [from, to) of one of the others. */
  readOther(name: string, from: number, to: number): Uint8Array;
  /** Lets another file take its name, which some systems refuse while it is open. It must not be read after that. */
  close(): void;
}

/**
 * Opens a file. Its whole header is checked before it is used: lengths, types, shapes, and offsets, which must lie inside the
 * file and leave neither overlaps nor holes.
 * @throws FormatError saying what is wrong with the file
 */
export function openSafetensors(file: string): SafetensorsFile {
  const mapped = mapFile(file);
  const { header, dataStart } = readHeader(mapped);
  const tensors = new Map<string, Entry>();
  const others = new Map<string, OtherEntry>();
  const ranges: { readonly name: string; readonly begin: number; readonly end: number }[] = [];
  let metadata: Readonly<Record<string, string>> = {};
  for (const [name, value] of Object.entries(header)) {
    if (name === "__metadata__") {
      metadata = parseMetadata(file, value);
      continue;
    }
    const { type, shape, begin, end } = parseEntry(file, name, value);
    const kind = Object.hasOwn(DTYPES, type) ? DTYPES[type] : undefined;
    if (kind === undefined) throw new FormatError(`${file}: tensor ${name} has the unknown type ${type}`);
    const expected = shape.reduce((product, size) => product * size, kind.bytes);
    if (!Number.isSafeInteger(expected) || end - begin !== expected)
      throw new FormatError(
        `${file}: tensor ${name} of ${type} [${shape.join(", ")}] needs ${expected} bytes, its offsets span ${end - begin}`,
      );
    if (dataStart + end > mapped.byteLength)
      throw new FormatError(
        `${file}: tensor ${name} ends at byte ${dataStart + end} of a file of ${mapped.byteLength}; it is truncated or its header is wrong`,
      );
    ranges.push({ name, begin, end });
    const offset = dataStart + begin;
    if (kind.dtype === undefined) others.set(name, { type, shape, offset, elementBytes: kind.bytes });
    else tensors.set(name, { dtype: kind.dtype, shape, offset, isDouble: type === "F64" });
  }
  const dataBytes = mapped.byteLength - dataStart;
  checkCoverage(file, ranges, dataBytes);
  return new OpenFile(mapped, { metadata, dataBytes, tensors, others });
}

/**
 * Checks that what was measured of a model is used for that model.
 * @param identity of the model, from its contents
 * @param content what the file holds, for the message
 * @throws FormatError when the file says that it belongs to another model
 */
export function checkOwner(
  { path: file, metadata }: SafetensorsFile,
  identity: string | undefined,
  content: string,
): void {
  const { model } = metadata;
  if (identity !== undefined && model !== undefined && model !== identity)
    throw new FormatError(
      `${file} has the ${content} of another model of the same sizes: name another file, or delete it to measure this model's`,
    );
}

/** What a file's header says. */
interface Contents {
  readonly metadata: Readonly<Record<string, string>>;
  readonly dataBytes: number;
  readonly tensors: ReadonlyMap<string, Entry>;
  readonly others: ReadonlyMap<string, OtherEntry>;
}

class OpenFile implements SafetensorsFile {
  readonly path: string;
  readonly metadata: Contents["metadata"];
  readonly dataBytes: number;
  readonly tensors: Contents["tensors"];
  readonly others: Contents["others"];

  constructor(
    private readonly mapped: MappedFile,
    { metadata, dataBytes, tensors, others }: Contents,
  ) {
    this.path = mapped.path;
    this.metadata = metadata;
    this.dataBytes = dataBytes;
    this.tensors = tensors;
    this.others = others;
  }

  private range(name: string, from: number, to: number): [offset: number, length: number] {
    const entry = this.tensors.get(name);
    if (entry === undefined) throw new FormatError(`${this.path} has no tensor ${name}`);
    const width = rowBytes(entry) * (entry.isDouble ? 2 : 1);
    return [entry.offset + from * width, (to - from) * width];
  }

  readRows(name: string, from: number, to: number): Uint8Array {
    const bytes = this.mapped.bytes(...this.range(name, from, to));
    if (this.tensors.get(name)?.isDouble !== true) return bytes;
    return bytesOf(Float32Array.from(new Float64Array(bytes.slice().buffer)));
  }

  readOther(name: string, from: number, to: number): Uint8Array {
    const entry = this.others.get(name);
    if (entry === undefined) throw new FormatError(`${this.path} has no tensor ${name}`);
    const width = entry.shape.slice(1).reduce((product, size) => product * size, entry.elementBytes);
    return this.mapped.bytes(entry.offset + from * width, (to - from) * width);
  }

  releaseRows(name: string, from: number, to: number): void {
    this.mapped.release(...this.range(name, from, to));
  }

  close(): void {
    this.mapped.close();
  }
}

function readHeader(mapped: MappedFile): {
  readonly header: Readonly<Record<string, unknown>>;
  readonly dataStart: number;
} {
  const { path: file, byteLength } = mapped;
  if (byteLength < 10) throw new FormatError(`${file}: ${byteLength} bytes are too few for a safetensors file`);
  const start = mapped.bytes(0, 8);
  const length = new DataView(start.buffer, start.byteOffset, 8).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES) || length > BigInt(byteLength - 8) || length < 2n)
    throw new FormatError(
      `${file}: its header claims ${length} bytes, the file has ${byteLength}; it is truncated or not a safetensors file`,
    );
  const text = new TextDecoder("utf-8", { fatal: true });
  let header: unknown;
  try {
    header = JSON.parse(text.decode(mapped.bytes(8, Number(length))));
  } catch (error) {
    throw new FormatError(`${file}: its header is not valid JSON (${error instanceof Error ? error.message : error})`);
  }
  if (typeof header !== "object" || header === null || Array.isArray(header))
    throw new FormatError(`${file}: its header is not a JSON object`);
  return { header: header as Record<string, unknown>, dataStart: 8 + Number(length) };
}

function parseMetadata(file: string, value: unknown): Record<string, string> {
  const valid =
    typeof value === "object" && value !== null && Object.values(value).every((item) => typeof item === "string");
  if (!valid) throw new FormatError(`${file}: __metadata__ is not a map of strings`);
  return value as Record<string, string>;
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

function parseEntry(file: string, name: string, value: unknown) {
  const { dtype, shape, data_offsets: offsets } = (value ?? {}) as Record<string, unknown>;
  const [begin, end] = Array.isArray(offsets) ? offsets : [];
  const valid =
    typeof dtype === "string" &&
    Array.isArray(shape) &&
    shape.length <= 8 &&
    shape.every(isCount) &&
    (offsets as unknown[] | undefined)?.length === 2 &&
    isCount(begin) &&
    isCount(end) &&
    begin <= end;
  if (!valid)
    throw new FormatError(
      `${file}: tensor ${name} has no valid dtype, shape and data_offsets (${JSON.stringify(value)?.slice(0, 200)})`,
    );
  return { type: dtype as string, shape: shape as number[], begin: begin as number, end: end as number };
}

/** Checks that the tensors fill the file: the format allows neither overlaps nor holes. */
function checkCoverage(
  file: string,
  ranges: { readonly name: string; readonly begin: number; readonly end: number }[],
  dataBytes: number,
): void {
  let position = 0;
  for (const { name, begin, end } of ranges.sort((a, b) => a.begin - b.begin || a.end - b.end)) {
    if (begin !== position)
      throw new FormatError(
        `${file}: tensor ${name} begins at ${begin}, ${begin < position ? "inside" : "with a hole after"} the tensor before it, which ends at ${position}`,
      );
    position = end;
  }
  if (position !== dataBytes)
    throw new FormatError(
      `${file}: its tensors end at byte ${position} of ${dataBytes}; it is truncated or has trailing bytes`,
    );
}

interface NamedTensor extends TensorInfo<FloatDType> {
  readonly name: string;
}

/** A tensor to write: its elements come in chunks, in order. */
export interface TensorToWrite extends NamedTensor {
  readonly chunks: () => Iterable<Uint8Array>;
}

/** The same where chunks take time to compute. */
export interface TensorToStream extends NamedTensor {
  readonly chunks: () => AsyncIterable<Uint8Array>;
}

/**
 * Writes a safetensors file atomically, streaming: only one chunk of one tensor is in memory at a time.
 * @throws FormatError when a tensor's chunks do not add up to its shape
 */
export function writeSafetensors(
  file: string,
  tensors: readonly TensorToWrite[],
  metadata: Readonly<Record<string, string>> = {},
  onBytes: (count: number) => void = () => {},
): void {
  const growing = new GrowingFile(file, tensors, metadata);
  try {
    for (const tensor of tensors) {
      for (const chunk of tensor.chunks()) {
        growing.append(chunk);
        onBytes(chunk.byteLength);
      }
      growing.endTensor(tensor);
    }
    growing.moveIntoPlace();
  } catch (error) {
    throw growing.abandon(error);
  }
}

/** The same where chunks take time to compute. */
export async function streamSafetensors(
  file: string,
  tensors: readonly TensorToStream[],
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const growing = new GrowingFile(file, tensors, metadata);
  try {
    for (const tensor of tensors) {
      for await (const chunk of tensor.chunks()) growing.append(chunk);
      growing.endTensor(tensor);
    }
    growing.moveIntoPlace();
  } catch (error) {
    throw growing.abandon(error);
  }
}

/** A safetensors file while it is written, under another name. */
class GrowingFile {
  private readonly temporary: string;
  private readonly bytes: number;
  private readonly handle: number;
  private tensorBytes = 0;
  private isClosed = false;

  /** @throws CoppiceError when the disk has too little room, or the file cannot be made */
  constructor(
    private readonly file: string,
    tensors: readonly NamedTensor[],
    metadata: Readonly<Record<string, string>>,
  ) {
    mkdirSync(path.dirname(path.resolve(file)), { recursive: true });
    removeAbandonedCopies(file);
    this.temporary = temporaryBeside(file);
    const header = encodeHeader(tensors, metadata);
    this.bytes = tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), header.byteLength);
    checkSpace(file, this.bytes, "its tensors");
    try {
      this.handle = openSync(this.temporary, "w");
    } catch (error) {
      throw writingError(error, file, this.bytes);
    }
    try {
      writeAll(this.handle, header);
    } catch (error) {
      throw this.abandon(error);
    }
  }

  append(chunk: Uint8Array): void {
    writeAll(this.handle, chunk);
    this.tensorBytes += chunk.byteLength;
  }

  /** @throws FormatError when its chunks do not add up to its shape */
  endTensor(tensor: NamedTensor): void {
    if (this.tensorBytes !== tensorBytes(tensor))
      throw new FormatError(
        `${tensor.name}: its chunks have ${this.tensorBytes} bytes, its shape needs ${tensorBytes(tensor)}`,
      );
    this.tensorBytes = 0;
  }

  moveIntoPlace(): void {
    fsyncSync(this.handle);
    this.close();
    moveIntoPlace(this.temporary, this.file);
  }

  private close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    closeSync(this.handle);
  }

  /** Deletes what was written. @returns the error to throw */
  abandon(error: unknown): unknown {
    this.close();
    rmSync(this.temporary, { force: true });
    return writingError(error, this.file, this.bytes);
  }
}

function encodeHeader(tensors: readonly NamedTensor[], metadata: Readonly<Record<string, string>>): Uint8Array {
  const header: Record<string, unknown> = Object.create(null); // any name is a tensor's, also __proto__
  header.__metadata__ = { format: "pt", ...metadata };
  let offset = 0;
  for (const tensor of tensors) {
    const end = offset + tensorBytes(tensor);
    header[tensor.name] = { dtype: NAMES[tensor.dtype], shape: tensor.shape, data_offsets: [offset, end] };
    offset = end;
  }
  const text = JSON.stringify(header);
  const padded = Buffer.from(text + " ".repeat((8 - (Buffer.byteLength(text) % 8)) % 8)); // elements start aligned
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  return Buffer.concat([length, padded]);
}
