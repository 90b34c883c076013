import type { TensorInfo, TensorSource } from "./tensor-source.js";

/**
 * GGUF, the file format of ggml's models: metadata, a table of tensors, and their elements, in one file or several. See
 * https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
 */

/** Kinds of metadata values, in the order of their numbers in a file. */
export const KINDS = [
  "uint8",
  "int8",
  "uint16",
  "int16",
  "uint32",
  "int32",
  "float32",
  "bool",
  "string",
  "array",
  "uint64",
  "int64",
  "float64",
] as const;
/**
 * The kind of a metadata value that is not a list.
 * @useDeclaredType
 */
export type GgufKind = Exclude<(typeof KINDS)[number], "array">;

/** A metadata value that is not a list. Integers past 2^53 are bigints. */
export type GgufScalar = number | bigint | boolean | string;

/** A metadata value with its kind. */
export type GgufValue =
  | { readonly kind: GgufKind; readonly value: GgufScalar }
  | { readonly kind: "array"; readonly of: GgufKind; readonly value: readonly GgufScalar[] };

export type GgufMetadata = ReadonlyMap<string, GgufValue>;

/** Bytes of a value of each kind. */
export const KIND_BYTES: Readonly<Record<Exclude<GgufKind, "string">, number>> = {
  uint8: 1,
  int8: 1,
  uint16: 2,
  int16: 2,
  uint32: 4,
  int32: 4,
  float32: 4,
  bool: 1,
  uint64: 8,
  int64: 8,
  float64: 8,
};

export const MAGIC = 0x46554747;
/** ggml keeps names in fields of 64 bytes, including the terminating zero. */
export const MAX_TENSOR_NAME = 63;
const DEFAULT_ALIGNMENT = 32;

/** What the offset of every tensor is a multiple of. */
export const alignmentOf = (metadata: GgufMetadata): number =>
  Number(metadata.get("general.alignment")?.value ?? DEFAULT_ALIGNMENT);

/** An open GGUF model: its headers are checked, its elements stay on disk. Shapes are outermost axis first, as everywhere here. */
export interface GgufFile extends TensorSource {
  readonly path: string;
  readonly files: readonly string[];
  readonly metadata: GgufMetadata;
}

/** A tensor to write: its elements come in chunks, in order. */
export interface GgufTensor extends TensorInfo {
  readonly name: string;
  readonly chunks: () => Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
}

const SHARD = /^(.*)-\d{5}-of-(\d{5})\.gguf$/;

const digits = (n: number): string => String(n).padStart(5, "0");

/** The name of one file of a split model. @param index from 0 */
export const shardName = (base: string, index: number, count: number): string =>
  `${base}-${digits(index + 1)}-of-${digits(count)}.gguf`;

/** The names of all files of a split model, from that of any; just the name itself for a single file. */
export function shardNames(file: string): string[] {
  const [, base, total] = SHARD.exec(file) ?? [];
  if (base === undefined) return [file];
  return Array.from({ length: Number(total) }, (_, i) => shardName(base, i, Number(total)));
}

/** Short constructors of metadata values. */
export const gguf = {
  string: (value: string): GgufValue => ({ kind: "string", value }),
  bool: (value: boolean): GgufValue => ({ kind: "bool", value }),
  uint32: (value: number): GgufValue => ({ kind: "uint32", value }),
  float32: (value: number): GgufValue => ({ kind: "float32", value }),
  strings: (value: readonly string[]): GgufValue => ({ kind: "array", of: "string", value }),
  numbers: (of: "int32" | "uint32" | "float32", value: readonly number[]): GgufValue => ({ kind: "array", of, value }),
};
