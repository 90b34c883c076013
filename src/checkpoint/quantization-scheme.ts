import { CoppiceError } from "../system/errors.js";

/** How a quantized checkpoint's configuration says that its weights are stored. */

type ConfigJson = Readonly<Record<string, unknown>>;

/** The methods' names in messages, by `quant_method`. */
export const METHODS: Readonly<Record<string, string>> = {
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

/** Names of tensors that only one method writes. */
const SIGNATURES: readonly { readonly pattern: RegExp; readonly method: string }[] = [
  { pattern: /\.weight\.(?:absmax|quant_map|quant_state)/, method: "bitsandbytes" },
  { pattern: /\.weight_format$/, method: "bitsandbytes" },
  { pattern: /\.g_idx$/, method: "gptq" },
  { pattern: /\.qweight$/, method: "awq" },
  { pattern: /(?:_blocks|_scales)$/, method: "mxfp4" },
  { pattern: /\.weight_packed$/, method: "compressed-tensors" },
];

/** How the configuration says that a checkpoint's weights are stored. */
export interface Scheme {
  readonly method: string | undefined;
  /** compressed-tensors' name of the format. */
  readonly format: string | undefined;
  /** Rows and columns that share a scale, where the configuration says. */
  readonly block: readonly [number, number] | undefined;
  readonly bits: number | undefined;
  readonly isSymmetric: boolean;
}

/** The method of a checkpoint, from its configuration or the names of its tensors. */
export function methodOf(quantization: unknown, names: readonly string[]): string | undefined {
  const { quant_method: method } = recordOf(quantization);
  if (typeof method === "string") return method.toLowerCase();
  return SIGNATURES.find(({ pattern }) => names.some((name) => pattern.test(name)))?.method;
}

const recordOf = (value: unknown): Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};

/** Methods whose weights are 8-bit floats with scales beside them. */
const FLOAT8_METHODS = ["fp8", "fbgemm_fp8", "modelopt"];
/** Methods that are supported. */
export const SUPPORTED_METHODS = [...FLOAT8_METHODS, "compressed-tensors"];
/** Formats of compressed-tensors that are supported. */
const FORMATS = ["float-quantized", "int-quantized", "naive-quantized", "pack-quantized"];

/** @throws CoppiceError naming the method or the format, where it is not supported */
export function schemeOf(directory: string, quantization: unknown, method: string | undefined): Scheme {
  const fields = recordOf(quantization);
  const unsupported = (by: string): CoppiceError =>
    new CoppiceError(
      `${directory} is quantized by ${by}, which is not supported: use the original model, or a GGUF file of it; ` +
        "or load it in transformers, call model.dequantize() and save it",
    );
  const plain: Scheme = { method, format: undefined, block: undefined, bits: undefined, isSymmetric: true };
  if (method === undefined) return plain;
  const name = METHODS[method] ?? `the method ${JSON.stringify(method)}`;
  if (FLOAT8_METHODS.includes(method)) {
    if (typeof fields.quant_algo === "string" && !/^FP8/.test(fields.quant_algo))
      throw unsupported(`${name} to ${fields.quant_algo}`);
    return { ...plain, block: pairOf(fields.weight_block_size) };
  }
  if (method !== "compressed-tensors") {
    const bits = fields.bits ?? fields.w_bit ?? (fields.load_in_4bit === true ? 4 : undefined);
    throw unsupported(typeof bits === "number" ? `${name} to ${bits} bits` : name);
  }
  return { ...compressedScheme(fields, (reason) => unsupported(`${name} (${reason})`)), method };
}

const pairOf = (value: unknown): readonly [number, number] | undefined => {
  const [rows, columns] = Array.isArray(value) ? (value as unknown[]) : [];
  return typeof rows === "number" && typeof columns === "number" && rows > 0 && columns > 0
    ? [rows, columns]
    : undefined;
};

/** @param unsupported makes the error for what is not supported */
function compressedScheme(fields: ConfigJson, unsupported: (reason: string) => CoppiceError): Omit<Scheme, "method"> {
  const groups = Object.values(recordOf(fields.config_groups)).map(recordOf);
  const weights = groups.map((group) => recordOf(group.weights));
  const format = typeof fields.format === "string" ? fields.format : undefined;
  if (format !== undefined && !FORMATS.includes(format)) throw unsupported(format);
  const other = groups.map((group) => group.format).find((one) => typeof one === "string" && !FORMATS.includes(one));
  if (other !== undefined) throw unsupported(String(other));
  if (groups.length > 1) throw unsupported("several kinds of weights in one model");
  if (Object.keys(recordOf(recordOf(fields.transform_config).config_groups)).length > 0)
    throw unsupported("rotated weights");
  const sparsity = recordOf(fields.sparsity_config).format;
  if (typeof sparsity === "string" && sparsity !== "dense") throw unsupported(sparsity);
  const [{ num_bits: bits, group_size: group, block_structure: block, symmetric } = {}] = weights;
  return {
    format,
    block: pairOf(block) ?? (typeof group === "number" && group > 0 ? [1, group] : undefined),
    bits: typeof bits === "number" ? bits : undefined,
    isSymmetric: symmetric !== false,
  };
}
