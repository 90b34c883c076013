import { fromFloat32, toFloat32 } from "../ggml/convert.js";
import type { FloatDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { FormatError, required } from "../system/errors.js";
import { FLOAT8, type Float8 } from "./float8.js";
import { METHODS, methodOf, type Scheme, SUPPORTED_METHODS, schemeOf } from "./quantization-scheme.js";
import type { SafetensorsFile } from "./safetensors.js";
import { readTensor, rowCount, type TensorInfo, type TensorSource, tensorInfo } from "./tensor-source.js";

/**
 * Checkpoints that other tools have quantized. Those of 8-bit floats (transformers' `fp8`, FBGEMM, ModelOpt, DeepSeek's) and
 * compressed-tensors' simple formats are dequantized as they are read; others are rejected by name.
 */

type ConfigJson = Readonly<Record<string, unknown>>;

/** A quantized checkpoint as it is read. */
export interface Dequantized {
  /** Without the fields on quantization: the weights are no longer quantized. */
  readonly config: ConfigJson;
  readonly source: TensorSource;
  readonly notes: readonly string[];
}

/** Tensors beside the weights: scales of activations and caches, and what is needed to read the weights. */
const AUXILIARY =
  /(?:^|\.)(?:weight_scale|weight_scale_inv|weight_zero_point|weight_shape|weight_g_idx|input_scale|input_zero_point|activation_scale|output_scale|[qkv]_scale|[qkv]_zero_point)$/;

/**
 * A checkpoint with its quantized weights dequantized; undefined for one that has none.
 * @param plain the tensors that are floats of 16 bits and more
 * @throws CoppiceError naming the method, where it is not supported
 */
export function dequantized(
  directory: string,
  config: ConfigJson,
  plain: TensorSource,
  files: readonly SafetensorsFile[],
): Dequantized | undefined {
  const others = new Map(files.flatMap((file) => [...file.others].map(([name, info]) => [name, { file, ...info }])));
  const quantization = config.quantization_config ?? config.compression_config;
  const method = methodOf(quantization, [...others.keys()]);
  const weights = [...others].flatMap(([name, { type }]) => (isWeight(name, type, others, plain) ? [name] : []));
  const isUnsupported = method !== undefined && !SUPPORTED_METHODS.includes(method) && others.size > 0;
  if (weights.length === 0 && !isUnsupported && quantization === undefined) return undefined;
  const { quantization_config: _, compression_config: __, ...rest } = config;
  if (weights.length === 0 && !isUnsupported)
    return {
      config: rest,
      source: plain,
      notes: ["config.json mentions quantization, but the weights are not quantized: they are read as they are"],
    };
  const scheme = schemeOf(directory, quantization, method);
  const source = new DequantizedSource(directory, plain, others, weights, scheme);
  const types = [...new Set(weights.map((name) => others.get(name)?.type))].join(" and ");
  const name = scheme.method === undefined ? types : (METHODS[scheme.method] ?? scheme.method);
  const format = scheme.format === undefined ? "" : `, ${scheme.format}`;
  return {
    config: rest,
    source,
    notes: [`${weights.length} matrices are quantized (${name}${format}): they are read as ${source.dtypeName}`],
  };
}

/** Whether a tensor without plain floats is a quantized matrix. Other tensors of whole numbers are buffers that nothing needs. */
function isWeight(
  name: string,
  type: string,
  others: ReadonlyMap<string, unknown>,
  { tensors }: Pick<TensorSource, "tensors">,
): boolean {
  if (AUXILIARY.test(name)) return false;
  if (type in FLOAT8 || name.endsWith(PACKED)) return true;
  return type === "I8" && (tensors.has(`${name}_scale`) || others.has(`${name}_scale`));
}

const elementsIn = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);
const PACKED = ".weight_packed";

interface StoredTensor {
  readonly file: SafetensorsFile;
  readonly type: string;
  readonly shape: readonly number[];
}

/** Scales or zero points of a matrix, one for each block of it. */
interface BlockValues {
  readonly values: Float32Array;
  /** How many blocks lie beside each other. */
  readonly columns: number;
  /** Rows and columns of a block. */
  readonly block: readonly [number, number];
}

/** A quantized matrix. */
interface QuantizedMatrix {
  readonly stored: StoredTensor;
  readonly storedName: string;
  readonly shape: readonly number[];
  readonly scale: BlockValues | undefined;
  readonly zero: BlockValues | undefined;
  /** Bits of each element where several are packed into 32. */
  readonly packedBits: number | undefined;
}

/** Tensors of which quantized ones are dequantized: those of 8-bit floats to bf16, those of whole numbers to f16. */
class DequantizedSource implements TensorSource<FloatDType> {
  readonly tensors: ReadonlyMap<string, TensorInfo<FloatDType>>;
  private readonly matrices = new Map<string, QuantizedMatrix>();

  constructor(
    private readonly directory: string,
    private readonly plain: TensorSource,
    private readonly others: ReadonlyMap<string, StoredTensor>,
    weights: readonly string[],
    private readonly scheme: Scheme,
  ) {
    const tensors = new Map<string, TensorInfo<FloatDType>>();
    for (const [name, info] of plain.tensors)
      if (!AUXILIARY.test(name)) tensors.set(name, info as TensorInfo<FloatDType>);
    for (const storedName of weights) {
      const stored = required(others.get(storedName), `${directory} has no tensor ${storedName}`);
      const name = storedName.endsWith(PACKED) ? storedName.replace(/_packed$/, "") : storedName;
      const matrix = this.matrixOf(name, storedName, stored);
      this.matrices.set(name, matrix);
      tensors.set(name, { dtype: stored.type in FLOAT8 ? "bf16" : "f16", shape: matrix.shape });
    }
    this.tensors = tensors;
  }

  /** The types that the matrices are read as. */
  get dtypeName(): string {
    return [...new Set([...this.matrices.keys()].map((name) => tensorInfo(this, name).dtype))].join(" and ");
  }

  /** @param problem completes a sentence that begins with the tensor's name */
  private error(name: string, problem: string): FormatError {
    return new FormatError(`${this.directory}: ${name} ${problem}`);
  }

  private matrixOf(name: string, storedName: string, stored: StoredTensor): QuantizedMatrix {
    const { bits, isSymmetric, method } = this.scheme;
    const isPacked = storedName.endsWith(PACKED);
    if (isPacked && stored.type !== "I32")
      throw this.error(storedName, `has the type ${stored.type}, which is not supported for a weight`);
    const scaleName = [`${name}_scale_inv`, `${name}_scale`].find((one) => this.has(one));
    if (scaleName === undefined && (method !== undefined || !(stored.type in FLOAT8)))
      throw this.error(name, `is quantized (${stored.type}), but there is no ${name}_scale`);
    const zeroName = this.has(`${name}_zero_point`) ? `${name}_zero_point` : undefined;
    if (isPacked && (zeroName !== undefined || !isSymmetric))
      throw this.error(name, "is packed with zero points, which is not supported: use the original model");
    if (isPacked && this.has(`${name}_g_idx`))
      throw this.error(
        name,
        "has its columns in another order (g_idx), which is not supported: use the original model",
      );
    if (isPacked && bits !== 4 && bits !== 8)
      throw this.error(name, `is packed in ${bits} bits; only 4 and 8 are supported`);
    const shape = isPacked ? this.packedShape(name, stored, bits ?? 4) : stored.shape;
    return {
      stored,
      storedName,
      shape,
      scale: scaleName === undefined ? undefined : this.blockValues(scaleName, name, shape),
      zero: zeroName === undefined ? undefined : this.blockValues(zeroName, name, shape),
      packedBits: isPacked ? bits : undefined,
    };
  }

  private has(name: string): boolean {
    return this.plain.tensors.has(name) || this.others.has(name);
  }

  private packedShape(name: string, { shape }: StoredTensor, bits: number): readonly number[] {
    const stated = this.others.get(`${name}_shape`);
    const [rows, words] = shape;
    if (stated?.type !== "I64" || elementsIn(stated.shape) !== 2 || rows === undefined || words === undefined)
      throw this.error(name, `is packed, but ${name}_shape does not state its size`);
    const bytes = readWhole(stated, `${name}_shape`).slice();
    const [height, width] = Array.from(new BigInt64Array(bytes.buffer), Number);
    if (height !== rows || width === undefined || Math.ceil((width * bits) / 32) !== words || shape.length !== 2)
      throw this.error(
        name,
        `is stated to be [${height}, ${width}], which does not fit its [${shape.join(", ")}] words`,
      );
    return [height, width];
  }

  /**
   * Reads scales or zero points.
   * @param matrix the matrix they belong to, and its shape
   */
  private blockValues(name: string, matrix: string, shape: readonly number[]): BlockValues {
    const { values, shape: own } = this.numbers(name);
    const [rows, columns] = shape;
    if (shape.length !== 2 || rows === undefined || columns === undefined)
      throw this.error(matrix, `is quantized, but has ${shape.length} axes`);
    if (values.length === 1) return { values, columns: 1, block: [rows, columns] };
    const [high = 1, wide = 1] = own;
    if (own.length <= 2 && high === rows && wide === 1) return { values, columns: 1, block: [1, columns] };
    const { block } = this.scheme; // it cannot follow from the shapes: the last blocks may be smaller than the others
    if (own.length !== 2 || block === undefined)
      throw this.error(name, `is [${own.join(", ")}], and nothing says how that scales [${shape.join(", ")}]`);
    const blocks = [Math.ceil(rows / block[0]), Math.ceil(columns / block[1])];
    if (blocks[0] !== high || blocks[1] !== wide)
      throw this.error(
        name,
        `is [${own.join(", ")}], but [${shape.join(", ")}] has [${blocks.join(", ")}] blocks of [${block.join(", ")}]`,
      );
    return { values, columns: wide, block };
  }

  private numbers(name: string): { readonly values: Float32Array; readonly shape: readonly number[] } {
    if (this.plain.tensors.has(name)) {
      const { dtype, shape } = tensorInfo(this.plain, name);
      return { values: toFloat32(loadFunctions(), readTensor(this.plain, name), dtype).slice(), shape };
    }
    const other = this.others.get(name);
    if (other === undefined) throw this.error(name, "is missing");
    const bytes = readWhole(other, name);
    if (other.type === "I8")
      return { values: Float32Array.from(new Int8Array(bytes.slice().buffer)), shape: other.shape };
    // powers of two (OCP Microscaling 1.0, section 5.4.1)
    if (other.type === "F8_E8M0")
      return {
        values: Float32Array.from(bytes, (code) => (code === 255 ? Number.NaN : 2 ** (code - 127))),
        shape: other.shape,
      };
    throw this.error(name, `has the type ${other.type}, which is not supported for a scale`);
  }

  readRows(name: string, from: number, to: number): Uint8Array {
    const matrix = this.matrices.get(name);
    if (matrix === undefined) return this.plain.readRows(name, from, to);
    const bytes = matrix.stored.file.readOther(matrix.storedName, from, to);
    const columns = matrix.shape.slice(1).reduce((product, size) => product * size, 1);
    const values = elementsOf(bytes, matrix, columns, to - from);
    rescale(values, matrix, columns, from);
    return fromFloat32(loadFunctions(), values, tensorInfo(this, name).dtype);
  }

  releaseRows(name: string, from: number, to: number): void {
    if (!this.matrices.has(name)) this.plain.releaseRows(name, from, to);
  }
}

/** All bytes of a tensor. */
const readWhole = (tensor: StoredTensor, name: string): Uint8Array => tensor.file.readOther(name, 0, rowCount(tensor));

/** The elements of some rows, before they are scaled. */
function elementsOf(
  bytes: Uint8Array,
  { stored, packedBits }: QuantizedMatrix,
  columns: number,
  rows: number,
): Float32Array {
  const values = new Float32Array(rows * columns);
  if (packedBits !== undefined) {
    unpack(new Uint32Array(bytes.slice().buffer), packedBits, columns, values);
    return values;
  }
  if (stored.type === "I8") {
    values.set(new Int8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength));
    return values;
  }
  const meaning = FLOAT8[stored.type as Float8];
  for (let i = 0; i < values.length; i++) values[i] = meaning[bytes[i] as number] as number;
  return values;
}

/** Unpacks integers from words: the first in the lowest bits, each with half its range added; every row begins at a word. */
function unpack(words: Uint32Array, bits: number, columns: number, values: Float32Array): void {
  const perWord = 32 / bits;
  const wordsPerRow = Math.ceil(columns / perWord);
  const [mask, offset] = [2 ** bits - 1, 2 ** (bits - 1)];
  for (let i = 0; i < values.length; i++) {
    const column = i % columns;
    const word = words[((i - column) / columns) * wordsPerRow + Math.floor(column / perWord)] as number;
    values[i] = ((word >>> (bits * (column % perWord))) & mask) - offset;
  }
}

/** Subtracts zero points and multiplies by scales, in place. @param from the number of the first row */
function rescale(values: Float32Array, { scale, zero }: QuantizedMatrix, columns: number, from: number): void {
  if (scale === undefined) return;
  const width = Math.min(columns, scale.block[1], zero?.block[1] ?? columns); // of runs that share both
  for (let start = 0; start < values.length; start += columns) {
    const row = from + start / columns;
    for (let column = 0; column < columns; column += width) {
      const factor = at(scale, row, column);
      const offset = zero === undefined ? 0 : at(zero, row, column);
      const end = start + Math.min(columns, column + width);
      for (let i = start + column; i < end; i++) values[i] = ((values[i] as number) - offset) * factor;
    }
  }
}

/** The value for an element. */
const at = ({ values, columns, block: [high, wide] }: BlockValues, row: number, column: number): number =>
  values[Math.floor(row / high) * columns + (columns === 1 ? 0 : Math.floor(column / wide))] as number;
