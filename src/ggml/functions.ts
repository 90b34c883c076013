import type { LibraryHandle } from "koffi";
import koffi from "../system/ffi.js";
import { nativeName, QUANTIZED_DTYPES, type QuantizedDType } from "./dtype.js";

/** A native address. Never dereferenced in TypeScript: all access goes through ggml's functions. */
export type Pointer = bigint & { readonly __native: unique symbol };

/** C types of arguments and results, with their TypeScript types. */
interface CTypes {
  void: undefined;
  pointer: Pointer;
  optional: Pointer | null;
  bytes: NodeJS.ArrayBufferView;
  optionalBytes: NodeJS.ArrayBufferView | null;
  text: string;
  int: number;
  int64: number;
  size: number;
  float: number;
  bool: boolean;
}
type CType = keyof CTypes;

const NATIVE: Record<CType, string> = {
  void: "void",
  pointer: "intptr_t",
  optional: "intptr_t",
  bytes: "void *",
  optionalBytes: "void *",
  text: "const char *",
  int: "int",
  int64: "int64_t",
  size: "size_t",
  float: "float",
  bool: "bool",
};

interface Signature<R extends CType, A extends readonly CType[]> {
  readonly result: R;
  readonly args: A;
}

const c = <R extends CType, const A extends readonly CType[]>(result: R, ...args: A): Signature<R, A> => ({
  result,
  args,
});

const ROPE = c(
  "pointer",
  "pointer",
  "pointer",
  "pointer",
  "optional",
  "int",
  "int",
  "int",
  "float",
  "float",
  "float",
  "float",
  "float",
  "float",
);

/** Every native function used, with its C signature. To add one, add a line. */
export const SIGNATURES = {
  // contexts: they hold tensor records, not their data
  ggml_free: c("void", "pointer"),
  ggml_tensor_overhead: c("size"),
  ggml_graph_overhead_custom: c("size", "size", "bool"),
  ggml_version: c("text"),
  ggml_commit: c("text"),
  ggml_log_set: c("void", "optional", "optional"),
  // tensors
  ggml_new_tensor_4d: c("pointer", "pointer", "int", "int64", "int64", "int64", "int64"),
  ggml_set_name: c("pointer", "pointer", "text"),
  ggml_set_output: c("void", "pointer"),
  ggml_set_param: c("void", "pointer"),
  ggml_get_data: c("optional", "pointer"),
  ggml_nbytes: c("size", "pointer"),
  ggml_type_name: c("text", "int"),
  ggml_op_desc: c("text", "pointer"),
  // shape
  ggml_reshape_4d: c("pointer", "pointer", "pointer", "int64", "int64", "int64", "int64"),
  ggml_permute: c("pointer", "pointer", "pointer", "int", "int", "int", "int"),
  ggml_view_4d: c("pointer", "pointer", "pointer", "int64", "int64", "int64", "int64", "size", "size", "size", "size"),
  ggml_concat: c("pointer", "pointer", "pointer", "pointer", "int"),
  ggml_cont: c("pointer", "pointer", "pointer"),
  ggml_pad: c("pointer", "pointer", "pointer", "int", "int", "int", "int"),
  ggml_cast: c("pointer", "pointer", "pointer", "int"),
  ggml_cpy: c("pointer", "pointer", "pointer", "pointer"),
  ggml_repeat: c("pointer", "pointer", "pointer", "pointer"),
  ggml_repeat_back: c("pointer", "pointer", "pointer", "pointer"),
  // arithmetic
  ggml_add: c("pointer", "pointer", "pointer", "pointer"),
  ggml_sub: c("pointer", "pointer", "pointer", "pointer"),
  ggml_mul: c("pointer", "pointer", "pointer", "pointer"),
  ggml_div: c("pointer", "pointer", "pointer", "pointer"),
  ggml_scale_bias: c("pointer", "pointer", "pointer", "float", "float"),
  ggml_sqr: c("pointer", "pointer", "pointer"),
  ggml_sqrt: c("pointer", "pointer", "pointer"),
  ggml_log: c("pointer", "pointer", "pointer"),
  ggml_exp: c("pointer", "pointer", "pointer"),
  ggml_abs: c("pointer", "pointer", "pointer"),
  ggml_sgn: c("pointer", "pointer", "pointer"),
  ggml_relu: c("pointer", "pointer", "pointer"),
  ggml_step: c("pointer", "pointer", "pointer"),
  ggml_sigmoid: c("pointer", "pointer", "pointer"),
  ggml_tanh: c("pointer", "pointer", "pointer"),
  ggml_expm1: c("pointer", "pointer", "pointer"),
  ggml_gelu_erf: c("pointer", "pointer", "pointer"),
  ggml_clamp: c("pointer", "pointer", "pointer", "float", "float"),
  ggml_sum: c("pointer", "pointer", "pointer"),
  ggml_sum_rows: c("pointer", "pointer", "pointer"),
  // transformer
  ggml_mul_mat: c("pointer", "pointer", "pointer", "pointer"),
  ggml_mul_mat_set_prec: c("void", "pointer", "int"),
  ggml_out_prod: c("pointer", "pointer", "pointer", "pointer"),
  ggml_get_rows: c("pointer", "pointer", "pointer", "pointer"),
  ggml_get_rows_back: c("pointer", "pointer", "pointer", "pointer", "pointer"),
  ggml_rms_norm: c("pointer", "pointer", "pointer", "float"),
  ggml_rms_norm_back: c("pointer", "pointer", "pointer", "pointer", "float"),
  ggml_silu: c("pointer", "pointer", "pointer"),
  ggml_silu_back: c("pointer", "pointer", "pointer", "pointer"),
  ggml_swiglu_split: c("pointer", "pointer", "pointer", "pointer"),
  ggml_soft_max_ext: c("pointer", "pointer", "pointer", "optional", "float", "float"),
  ggml_soft_max_ext_back: c("pointer", "pointer", "pointer", "pointer", "float", "float"),
  ggml_flash_attn_ext: c("pointer", "pointer", "pointer", "pointer", "pointer", "optional", "float", "float", "float"),
  ggml_flash_attn_ext_set_prec: c("void", "pointer", "int"),
  ggml_flash_attn_ext_add_sinks: c("void", "pointer", "pointer"),
  ggml_rope_ext: ROPE,
  ggml_rope_ext_back: ROPE,
  ggml_argmax: c("pointer", "pointer", "pointer"),
  ggml_argsort_top_k: c("pointer", "pointer", "pointer", "int"),
  ggml_opt_step_adamw: c("pointer", "pointer", "pointer", "pointer", "pointer", "pointer", "pointer"),
  // ops of our own: (context, type, sizes, sources, their number, function, threads, user data)
  ggml_custom_4d: c(
    "pointer",
    "pointer",
    "int",
    "int64",
    "int64",
    "int64",
    "int64",
    "bytes",
    "int",
    "pointer",
    "int",
    "optional",
  ),
  ggml_custom_inplace: c("pointer", "pointer", "pointer", "bytes", "int", "pointer", "int", "optional"),
  // graphs
  ggml_new_graph_custom: c("pointer", "pointer", "size", "bool"),
  ggml_build_forward_expand: c("void", "pointer", "pointer"),
  ggml_graph_clear: c("void", "pointer"),
  ggml_graph_add_node: c("void", "pointer", "pointer"),
  ggml_graph_n_nodes: c("int", "pointer"),
  ggml_graph_node: c("pointer", "pointer", "int"),
  ggml_gallocr_new: c("pointer", "pointer"),
  ggml_gallocr_free: c("void", "pointer"),
  ggml_gallocr_alloc_graph: c("bool", "pointer", "pointer"),
  ggml_gallocr_get_buffer_size: c("size", "pointer", "int"),
  ggml_gallocr_reserve_n_size: c("void", "pointer", "pointer", "optionalBytes", "optionalBytes", "bytes"),
  // graphs over several devices
  ggml_backend_sched_new: c("optional", "bytes", "optionalBytes", "int", "size", "bool", "bool"),
  ggml_backend_sched_free: c("void", "pointer"),
  ggml_backend_sched_set_tensor_backend: c("void", "pointer", "pointer", "pointer"),
  ggml_backend_sched_alloc_graph: c("bool", "pointer", "pointer"),
  ggml_backend_sched_graph_compute: c("int", "pointer", "pointer"),
  ggml_backend_sched_get_buffer_size: c("size", "pointer", "pointer"),
  // backends, buffers
  ggml_backend_dev_name: c("text", "pointer"),
  ggml_backend_dev_description: c("text", "pointer"),
  ggml_backend_dev_memory: c("void", "pointer", "bytes", "bytes"),
  ggml_backend_dev_backend_reg: c("pointer", "pointer"),
  ggml_backend_dev_init: c("optional", "pointer", "optional"),
  ggml_backend_dev_supports_op: c("bool", "pointer", "pointer"),
  ggml_backend_reg_name: c("text", "pointer"),
  ggml_backend_reg_get_proc_address: c("optional", "pointer", "text"),
  ggml_backend_get_default_buffer_type: c("pointer", "pointer"),
  ggml_backend_alloc_ctx_tensors: c("optional", "pointer", "pointer"),
  ggml_backend_buffer_free: c("void", "pointer"),
  ggml_backend_buffer_get_size: c("size", "pointer"),
  ggml_backend_buffer_clear: c("void", "pointer", "int"),
  ggml_backend_buffer_set_usage: c("void", "pointer", "int"),
  ggml_backend_free: c("void", "pointer"),
  ggml_backend_graph_compute: c("int", "pointer", "pointer"),
  ggml_backend_tensor_set: c("void", "pointer", "bytes", "size", "size"),
  ggml_backend_tensor_get: c("void", "pointer", "bytes", "size", "size"),
  ggml_threadpool_params_init: c("void", "bytes", "int"),
  // conversions
  ggml_fp32_to_bf16_row: c("void", "bytes", "bytes", "int64"),
  ggml_fp32_to_fp16_row: c("void", "bytes", "bytes", "int64"),
  ggml_bf16_to_fp32_row: c("void", "bytes", "bytes", "int64"),
  ggml_fp16_to_fp32_row: c("void", "bytes", "bytes", "int64"),
  // quantization: (type, f32 source, result, first element, rows, columns, importance of each column)
  ggml_quantize_chunk: c("size", "int", "bytes", "bytes", "int64", "int64", "int64", "optionalBytes"),
  ggml_quantize_requires_imatrix: c("bool", "int"),
  ggml_validate_row_data: c("bool", "int", "bytes", "size"),
  ggml_blck_size: c("int64", "int"),
  ggml_type_size: c("size", "int"),
} as const;

/** Turns quantized rows into f32: (rows, result, elements). */
const DEQUANTIZE = c("void", "bytes", "bytes", "int64");

/** Functions of the loader library (`libggml`), which knows the registered devices. */
export const LOADER_SIGNATURES = {
  ggml_backend_load_all_from_path: c("void", "text"),
  ggml_backend_load: c("optional", "text"),
  ggml_backend_dev_count: c("size"),
  ggml_backend_dev_get: c("pointer", "size"),
} as const;

type Arguments<A extends readonly CType[]> = { readonly [K in keyof A]: CTypes[A[K] & CType] };
type Callable<S> =
  S extends Signature<infer R, infer A>
    ? ((...args: Arguments<A> extends infer T extends readonly unknown[] ? T : never) => CTypes[R]) & {
        readonly async: (...args: unknown[]) => void;
      }
    : never;
type TableOf<S> = { readonly [K in keyof S]: Callable<S[K]> };

/** The native functions, typed from the table of their C signatures. */
export type Functions = TableOf<typeof SIGNATURES> &
  TableOf<typeof LOADER_SIGNATURES> & {
    readonly ggml_init: (memoryBytes: number) => Pointer;
    readonly dequantize: Readonly<Record<QuantizedDType, Callable<typeof DEQUANTIZE>>>;
  };

function bind(library: LibraryHandle, name: string, signature: Signature<CType, readonly CType[]>) {
  const native = library.func(
    name,
    NATIVE[signature.result],
    signature.args.map((type) => NATIVE[type]),
  );
  if (!signature.args.includes("optional") && !["pointer", "optional"].includes(signature.result)) return native;
  // koffi returns small addresses as numbers and does not take null for an integer: convert in both directions
  const wrapped = (...args: unknown[]): unknown => {
    const result = native(...args.map((value) => (value === null ? 0n : value)));
    if (signature.result !== "pointer" && signature.result !== "optional") return result;
    return BigInt(result) === 0n ? null : BigInt(result);
  };
  return Object.assign(wrapped, { async: native.async });
}

/**
 * Binds every function of the tables.
 * @throws when a library lacks one, which means that it is from another ggml release
 */
export function bindFunctions(base: LibraryHandle, loader: LibraryHandle): Functions {
  const table: Record<string, unknown> = {};
  for (const [name, signature] of Object.entries(SIGNATURES)) table[name] = bind(base, name, signature);
  for (const [name, signature] of Object.entries(LOADER_SIGNATURES)) table[name] = bind(loader, name, signature);
  table.dequantize = Object.fromEntries(
    QUANTIZED_DTYPES.map((dtype) => [dtype, bind(base, `dequantize_row_${nativeName(dtype)}`, DEQUANTIZE)]),
  );
  const parameters = koffi.struct({ mem_size: "size_t", mem_buffer: "void *", no_alloc: "bool" });
  const init = base.func("ggml_init", "intptr_t", [parameters]);
  table.ggml_init = (memoryBytes: number) =>
    BigInt(init({ mem_size: memoryBytes, mem_buffer: null, no_alloc: true }) as bigint);
  return table as Functions;
}
