import { fromFloat32, toFloat32 } from "../ggml/convert.js";
import type { FloatDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { CoppiceError, FormatError, required } from "../system/errors.js";
import { FLOAT8, type Float8 } from "./float8.js";
import type { SafetensorsFile } from "./safetensors.js";
import { readTensor, type TensorInfo, type TensorSource, tensorInfo } from "./tensor-source.js";

/**
 * Checkpoints that other tools have quantized. Those of 8-bit floats (transformers' `fp8`, FBGEMM, ModelOpt, DeepSeek's) and
 * compressed-tensors' simple forms are read as the numbers they mean; the others are named.
 */

type ConfigJson = Readonly<Record<string, unknown>>;

/** What a quantized checkpoint is read as. */
export interface Dequantized {
  /** Without what says that the weights are quantized: they are not any more. */
  readonly config: ConfigJson;
  readonly source: TensorSource;
  readonly notes: readonly string[];
}

/** What else people call the methods, and what to do about those that are not read. */
const METHODS: Readonly<Record<string, string>> = {
  gptq: "GPTQ",
  awq: "AWQ",
  bitsandbytes: "bitsandbytes",
  "auto-round": "AutoRound",
  hqq: "HQQ",
  aqlm: "AQLM",
  quanto: "Quanto",
  eetq: "EETQ",
  mxfp4: "MXFP4",
  torchao: "torchao",
  fp8: "FP8",
  fbgemm_fp8: "FBGEMM's FP8",
  modelopt: "ModelOpt",
  "compressed-tensors": "compressed-tensors",
};

/** What is in a checkpoint beside the weights: scales of activations and caches, and what the weights are read by. */
const AUXILIARY =
  /(?:^|\.)(?:weight_scale|weight_scale_inv|weight_zero_point|weight_shape|weight_g_idx|input_scale|input_zero_point|activation_scale|output_scale|[qkv]_scale|[qkv]_zero_point)$/;

/** What only some methods write. */
const SIGNS: readonly { readonly sign: RegExp; readonly method: string }[] = [
  { sign: /\.weight\.(?:absmax|quant_map|quant_state)/, method: "bitsandbytes" },
  { sign: /\.weight_format$/, method: "bitsandbytes" },
  { sign: /\.g_idx$/, method: "gptq" },
  { sign: /\.qweight$/, method: "awq" },
  { sign: /(?:_blocks|_scales)$/, method: "mxfp4" },
  { sign: /\.weight_packed$/, method: "compressed-tensors" },
];

/** How the weights of a checkpoint are stored, as its configuration says. */
interface Scheme {
  readonly method: string | undefined;
  /** compressed-tensors' word for it. */
  readonly format: string | undefined;
  /** Rows and columns that share a scale, where the configuration says. */
  readonly block: readonly [number, number] | undefined;
  readonly bits: number | undefined;
  readonly isSymmetric: boolean;
}

/**
 * What a checkpoint means that has quantized weights; undefined for one that has none.
 * @param plain the tensors that are floats of 16 bits and more
 * @throws CoppiceError naming the method, where it is one that is not read
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
  const isForeign = method !== undefined && !READ_METHODS.includes(method) && others.size > 0;
  if (weights.length === 0 && !isForeign && quantization === undefined) return undefined;
  const { quantization_config: _, compression_config: __, ...rest } = config;
  if (weights.length === 0 && !isForeign)
    return {
      config: rest,
      source: plain,
      notes: ["config.json speaks of quantization, but the weights are not quantized: they are read as they are"],
    };
  const scheme = schemeOf(directory, quantization, method);
  const source = new DequantizedSource(directory, plain, others, weights, scheme);
  const kinds = [...new Set(weights.map((name) => others.get(name)?.type))].join(" and ");
  return {
    config: rest,
    source,
    notes: [
      `${weights.length} matrices are quantized (${scheme.method === undefined ? kinds : (METHODS[scheme.method] ?? scheme.method)}${scheme.format === undefined ? "" : `, ${scheme.format}`}): they are read as ${source.dtypeName}`,
    ],
  };
}

function methodOf(quantization: unknown, names: readonly string[]): string | undefined {
  const { quant_method: given } = recordOf(quantization);
  if (typeof given === "string") return given.toLowerCase();
  return SIGNS.find(({ sign }) => names.some((name) => sign.test(name)))?.method;
}

/** Whether a tensor that is no plain float is a matrix all the same. Other whole numbers are buffers that nothing needs. */
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

const sizeOf = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);
const recordOf = (value: unknown): Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};

const PACKED = ".weight_packed";

/** Methods whose weights are 8-bit floats with scales beside them. */
const FLOAT8_METHODS = ["fp8", "fbgemm_fp8", "modelopt"];
const READ_METHODS = [...FLOAT8_METHODS, "compressed-tensors"];
/** Forms of compressed-tensors that are read. */
const FORMATS = ["float-quantized", "int-quantized", "naive-quantized", "pack-quantized"];

function schemeOf(directory: string, quantization: unknown, method: string | undefined): Scheme {
  const given = recordOf(quantization);
  const refuse = (what: string): CoppiceError =>
    new CoppiceError(
      `${directory} is quantized by ${what}, which is not read here: give the model that it was made from, or a GGUF file of it; ` +
        "or load it in transformers, call model.dequantize() and save it",
    );
  const nothing: Scheme = { method, format: undefined, block: undefined, bits: undefined, isSymmetric: true };
  if (method === undefined) return nothing;
  const called = METHODS[method] ?? `the method ${JSON.stringify(method)}`;
  if (FLOAT8_METHODS.includes(method)) {
    if (typeof given.quant_algo === "string" && !/^FP8/.test(given.quant_algo))
      throw refuse(`${called} to ${given.quant_algo}`);
    return { ...nothing, block: pairOf(given.weight_block_size) };
  }
  if (method !== "compressed-tensors") {
    const bits = given.bits ?? given.w_bit ?? (given.load_in_4bit === true ? 4 : undefined);
    throw refuse(typeof bits === "number" ? `${called} to ${bits} bits` : called);
  }
  return compressedScheme(given, nothing, (what) => refuse(`${called} (${what})`));
}

const pairOf = (value: unknown): readonly [number, number] | undefined => {
  const [rows, columns] = Array.isArray(value) ? (value as unknown[]) : [];
  return typeof rows === "number" && typeof columns === "number" && rows > 0 && columns > 0
    ? [rows, columns]
    : undefined;
};

function compressedScheme(given: ConfigJson, nothing: Scheme, refuse: (what: string) => CoppiceError): Scheme {
  const groups = Object.values(recordOf(given.config_groups)).map(recordOf);
  const weights = groups.map((group) => recordOf(group.weights));
  const format = typeof given.format === "string" ? given.format : undefined;
  if (format !== undefined && !FORMATS.includes(format)) throw refuse(format);
  const own = groups.map((group) => group.format).find((one) => typeof one === "string" && !FORMATS.includes(one));
  if (own !== undefined) throw refuse(String(own));
  if (groups.length > 1) throw refuse("several kinds of weights in one model");
  if (Object.keys(recordOf(recordOf(given.transform_config).config_groups)).length > 0) throw refuse("rotated weights");
  const sparsity = recordOf(given.sparsity_config).format;
  if (typeof sparsity === "string" && sparsity !== "dense") throw refuse(sparsity);
  const [{ num_bits: bits, group_size: group, block_structure: block, symmetric } = {}] = weights;
  return {
    ...{ ...nothing, format },
    block: pairOf(block) ?? (typeof group === "number" && group > 0 ? [1, group] : undefined),
    bits: typeof bits === "number" ? bits : undefined,
    isSymmetric: symmetric !== false,
  };
}

interface StoredTensor {
  readonly file: SafetensorsFile;
  readonly type: string;
  readonly shape: readonly number[];
}

/** Numbers for the rows and columns of a matrix: one for so many of each. */
interface Spread {
  readonly values: Float32Array;
  readonly columns: number;
  readonly block: readonly [number, number];
}

/** A quantized matrix. */
interface QuantizedMatrix {
  readonly stored: StoredTensor;
  readonly storedName: string;
  readonly shape: readonly number[];
  readonly scale: Spread | undefined;
  readonly zero: Spread | undefined;
  /** Bits of each element where several are packed into 32. */
  readonly packedBits: number | undefined;
}

/** Tensors with quantized ones read as the numbers they mean: those of 8-bit floats as bf16, of whole numbers as f16. */
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

  /** What the matrices are read as. */
  get dtypeName(): string {
    return [...new Set([...this.matrices.keys()].map((name) => tensorInfo(this, name).dtype))].join(" and ");
  }

  private refused(name: string, why: string): FormatError {
    return new FormatError(`${this.directory}: ${name} ${why}`);
  }

  private matrixOf(name: string, storedName: string, stored: StoredTensor): QuantizedMatrix {
    const { bits, isSymmetric, method } = this.scheme;
    const isPacked = storedName.endsWith(PACKED);
    if (isPacked && stored.type !== "I32")
      throw this.refused(storedName, `has the type ${stored.type}, which is not read as a weight`);
    const scaleName = [`${name}_scale_inv`, `${name}_scale`].find((one) => this.has(one));
    if (scaleName === undefined && (method !== undefined || !(stored.type in FLOAT8)))
      throw this.refused(name, `is quantized (${stored.type}), but there is no ${name}_scale`);
    const zeroName = this.has(`${name}_zero_point`) ? `${name}_zero_point` : undefined;
    if (isPacked && (zeroName !== undefined || !isSymmetric))
      throw this.refused(name, "is packed with zero points, which is not read: give the model that it was made from");
    if (isPacked && this.has(`${name}_g_idx`))
      throw this.refused(
        name,
        "has its columns in another order (g_idx), which is not read: give the model it was made from",
      );
    if (isPacked && bits !== 4 && bits !== 8) throw this.refused(name, `is packed in ${bits} bits; 4 and 8 are read`);
    const shape = isPacked ? this.packedShape(name, stored, bits ?? 4) : stored.shape;
    return {
      ...{ stored, storedName, shape },
      scale: scaleName === undefined ? undefined : this.spread(scaleName, name, shape),
      zero: zeroName === undefined ? undefined : this.spread(zeroName, name, shape),
      packedBits: isPacked ? bits : undefined,
    };
  }

  private has(name: string): boolean {
    return this.plain.tensors.has(name) || this.others.has(name);
  }

  private packedShape(name: string, { shape }: StoredTensor, bits: number): readonly number[] {
    const stated = this.others.get(`${name}_shape`);
    const [rows, words] = shape;
    if (stated?.type !== "I64" || sizeOf(stated.shape) !== 2 || rows === undefined || words === undefined)
      throw this.refused(name, `is packed, but ${name}_shape does not say how large it is`);
    const bytes = stated.file.readOther(`${name}_shape`, 0, stated.shape[0] ?? 1).slice();
    const [height, width] = Array.from(new BigInt64Array(bytes.buffer), Number);
    if (height !== rows || width === undefined || Math.ceil((width * bits) / 32) !== words || shape.length !== 2)
      throw this.refused(name, `is said to be [${height}, ${width}], which [${shape.join(", ")}] words do not hold`);
    return [height, width];
  }

  /** Scales or zero points, and how many rows and columns share each. */
  private spread(name: string, of: string, shape: readonly number[]): Spread {
    const { values, shape: own } = this.numbers(name);
    const [rows = 1, columns = 1] = shape;
    if (shape.length !== 2) throw this.refused(of, `is quantized, but has ${shape.length} axes`);
    if (values.length === 1) return { values, columns: 1, block: [rows, columns] };
    const [high = 1, wide = 1] = own;
    if (own.length <= 2 && high === rows && wide === 1) return { values, columns: 1, block: [1, columns] };
    const { block } = this.scheme; // never guessed: the last blocks may be smaller than the others
    if (own.length !== 2 || block === undefined)
      throw this.refused(name, `is [${own.join(", ")}], and nothing says how that scales [${shape.join(", ")}]`);
    if (Math.ceil(rows / block[0]) !== high || Math.ceil(columns / block[1]) !== wide)
      throw this.refused(
        name,
        `is [${own.join(", ")}], but [${shape.join(", ")}] has [${Math.ceil(rows / block[0])}, ${Math.ceil(columns / block[1])}] blocks of [${block.join(", ")}]`,
      );
    return { values, columns: wide, block };
  }

  private numbers(name: string): { readonly values: Float32Array; readonly shape: readonly number[] } {
    if (this.plain.tensors.has(name)) {
      const { dtype, shape } = tensorInfo(this.plain, name);
      return { values: toFloat32(loadFunctions(), readTensor(this.plain, name), dtype).slice(), shape };
    }
    const other = this.others.get(name);
    const bytes = other?.file.readOther(name, 0, other.shape[0] ?? 1);
    if (other === undefined || bytes === undefined) throw this.refused(name, "is missing");
    if (other.type === "I8")
      return { values: Float32Array.from(new Int8Array(bytes.slice().buffer)), shape: other.shape };
    // powers of two alone (OCP Microscaling 1.0, section 5.4.1)
    if (other.type === "F8_E8M0")
      return {
        values: Float32Array.from(bytes, (code) => (code === 255 ? Number.NaN : 2 ** (code - 127))),
        shape: other.shape,
      };
    throw this.refused(name, `has the type ${other.type}, which is not read as a scale`);
  }

  readRows(name: string, from: number, to: number): Uint8Array {
    const matrix = this.matrices.get(name);
    if (matrix === undefined) return this.plain.readRows(name, from, to);
    const bytes = matrix.stored.file.readOther(matrix.storedName, from, to);
    const columns = matrix.shape.slice(1).reduce((product, size) => product * size, 1);
    const values = elementsOf(bytes, matrix, columns, to - from);
    scaled(values, matrix, columns, from);
    return fromFloat32(loadFunctions(), values, tensorInfo(this, name).dtype);
  }

  releaseRows(name: string, from: number, to: number): void {
    if (!this.matrices.has(name)) this.plain.releaseRows(name, from, to);
  }
}

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

/** Several whole numbers in each word, the first in the lowest bits, with half their range added; rows begin at words. */
function unpack(words: Uint32Array, bits: number, columns: number, values: Float32Array): void {
  const perWord = 32 / bits;
  const wordsPerRow = Math.ceil(columns / perWord);
  const [mask, middle] = [2 ** bits - 1, 2 ** (bits - 1)];
  for (let i = 0; i < values.length; i++) {
    const column = i % columns;
    const word = words[((i - column) / columns) * wordsPerRow + Math.floor(column / perWord)] as number;
    values[i] = ((word >>> (bits * (column % perWord))) & mask) - middle;
  }
}

/** Takes zero points off and multiplies by scales. @param from the first row's number */
function scaled(values: Float32Array, { scale, zero }: QuantizedMatrix, columns: number, from: number): void {
  if (scale === undefined) return;
  const width = Math.min(columns, scale.block[1], zero?.block[1] ?? columns); // of elements that share both
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

const at = ({ values, columns, block: [high, wide] }: Spread, row: number, column: number): number =>
  values[Math.floor(row / high) * columns + (columns === 1 ? 0 : Math.floor(column / wide))] as number;
