/** How an element type is stored: its number in ggml, and the elements and bytes of a block. */
interface Layout {
  readonly id: number;
  readonly block: number;
  readonly bytes: number;
}

const PLAIN = {
  f32: { id: 0, block: 1, bytes: 4 },
  f16: { id: 1, block: 1, bytes: 2 },
  i32: { id: 26, block: 1, bytes: 4 },
  bf16: { id: 30, block: 1, bytes: 2 },
} as const satisfies Record<string, Layout>;

/** Quantized types, for weights only. `name` is the type's name in ggml's functions. */
const QUANTIZED = {
  q4_0: { id: 2, block: 32, bytes: 18, name: "q4_0" },
  q4_1: { id: 3, block: 32, bytes: 20, name: "q4_1" },
  q5_0: { id: 6, block: 32, bytes: 22, name: "q5_0" },
  q5_1: { id: 7, block: 32, bytes: 24, name: "q5_1" },
  q8_0: { id: 8, block: 32, bytes: 34, name: "q8_0" },
  q2_k: { id: 10, block: 256, bytes: 84, name: "q2_K" },
  q3_k: { id: 11, block: 256, bytes: 110, name: "q3_K" },
  q4_k: { id: 12, block: 256, bytes: 144, name: "q4_K" },
  q5_k: { id: 13, block: 256, bytes: 176, name: "q5_K" },
  q6_k: { id: 14, block: 256, bytes: 210, name: "q6_K" },
  iq2_xxs: { id: 16, block: 256, bytes: 66, name: "iq2_xxs" },
  iq2_xs: { id: 17, block: 256, bytes: 74, name: "iq2_xs" },
  iq3_xxs: { id: 18, block: 256, bytes: 98, name: "iq3_xxs" },
  iq1_s: { id: 19, block: 256, bytes: 50, name: "iq1_s" },
  iq4_nl: { id: 20, block: 32, bytes: 18, name: "iq4_nl" },
  iq3_s: { id: 21, block: 256, bytes: 110, name: "iq3_s" },
  iq2_s: { id: 22, block: 256, bytes: 82, name: "iq2_s" },
  iq4_xs: { id: 23, block: 256, bytes: 136, name: "iq4_xs" },
  iq1_m: { id: 29, block: 256, bytes: 56, name: "iq1_m" },
  tq1_0: { id: 34, block: 256, bytes: 54, name: "tq1_0" },
  tq2_0: { id: 35, block: 256, bytes: 66, name: "tq2_0" },
  mxfp4: { id: 39, block: 32, bytes: 17, name: "mxfp4" },
  nvfp4: { id: 40, block: 64, bytes: 36, name: "nvfp4" },
  q1_0: { id: 41, block: 128, bytes: 18, name: "q1_0" },
  q2_0: { id: 42, block: 64, bytes: 18, name: "q2_0" },
} as const satisfies Record<string, Layout & { readonly name: string }>;

/** Floating-point types. */
export type FloatDType = "f32" | "f16" | "bf16";
/**
 * Quantized types.
 * @useDeclaredType
 */
export type QuantizedDType = keyof typeof QUANTIZED;
/** Types that weights are stored in. */
export type StoredDType = FloatDType | QuantizedDType;
/** Element types of tensors. */
export type DType = StoredDType | "i32";

const LAYOUTS: Readonly<Record<DType, Layout>> = { ...PLAIN, ...QUANTIZED };

/** A type's number in ggml and in GGUF files. */
export const DTYPE_ID = Object.fromEntries(Object.entries(LAYOUTS).map(([name, { id }]) => [name, id])) as Readonly<
  Record<DType, number>
>;

/** Bytes of an element of the types without blocks. */
export const DTYPE_BYTES: Readonly<Record<FloatDType | "i32", number>> = { f32: 4, f16: 2, bf16: 2, i32: 4 };

export const QUANTIZED_DTYPES = Object.keys(QUANTIZED) as readonly QuantizedDType[];
export const isQuantized = (dtype: DType): dtype is QuantizedDType => dtype in QUANTIZED;
/** A quantized type's name in ggml's function names. */
export const nativeName = (dtype: QuantizedDType): string => QUANTIZED[dtype].name;
/** The number of elements in a block: rows are multiples of it. */
export const blockSize = (dtype: DType): number => LAYOUTS[dtype].block;
/** Bytes of a number of elements, which must be whole blocks. */
export const dataBytes = (dtype: DType, elements: number): number =>
  (elements / LAYOUTS[dtype].block) * LAYOUTS[dtype].bytes;

/** The number of elements in so many bytes, which must be whole blocks. */
export const elementsIn = (dtype: DType, bytes: number): number =>
  (bytes / LAYOUTS[dtype].bytes) * LAYOUTS[dtype].block;

/** The type with a number in GGUF files; undefined when it is not supported. */
export function dtypeOfId(id: number): DType | undefined {
  return (Object.keys(LAYOUTS) as DType[]).find((dtype) => LAYOUTS[dtype].id === id);
}

/** The bytes of `data`, without copying. */
export function bytesOf(data: NodeJS.ArrayBufferView): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** A typed array over bytes; copied only if they are not aligned. */
export function typedView(bytes: Uint8Array, elementBytes: 2): Uint16Array;
export function typedView(bytes: Uint8Array, elementBytes: 4): Uint32Array;
export function typedView(bytes: Uint8Array, elementBytes: 2 | 4): Uint16Array | Uint32Array;
export function typedView(bytes: Uint8Array, elementBytes: 2 | 4): Uint16Array | Uint32Array {
  const aligned = bytes.byteOffset % elementBytes === 0 ? bytes : bytes.slice();
  const count = Math.floor(aligned.byteLength / elementBytes);
  return elementBytes === 2
    ? new Uint16Array(aligned.buffer, aligned.byteOffset, count)
    : new Uint32Array(aligned.buffer, aligned.byteOffset, count);
}
