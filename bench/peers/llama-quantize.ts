import { readdirSync } from "node:fs";
import path from "node:path";
import { loadLibrary } from "../../src/ggml/index.js";
import koffi from "../../src/system/ffi.js";

/** llama.cpp's own quantizer (`llama_model_quantize` of llama.h, release 0.5), to compare with. */

const parameters = koffi.struct({
  nthread: "int32_t",
  ftype: "int",
  output_tensor_type: "int",
  token_embedding_type: "int",
  allow_requantize: "bool",
  quantize_output_tensor: "bool",
  only_copy: "bool",
  pure: "bool",
  keep_split: "bool",
  dry_run: "bool",
  imatrix: "void *",
  kv_overrides: "void *",
  tt_overrides: "void *",
  prune_layers: "void *",
  max_buf_size: "size_t",
  later: koffi.array("uint8_t", 64),
});

const NO_TYPE = 43; // GGML_TYPE_COUNT

let opened: ReturnType<typeof open> | undefined;

/** Opens libllama, once: koffi closes a library that nothing refers to, and ggml would still call its log call-back. */
function open() {
  const { directory } = loadLibrary("cpu");
  const name = readdirSync(directory).find((file) => /^(lib)?llama(?!-common)[\w.]*\.(so|dylib|dll)$/.test(file));
  if (name === undefined) throw new Error(`there is no libllama in ${directory}`);
  const library = koffi.load(path.join(directory, name));
  // a native function without effect stands in for a log call-back
  const silent = library.symbol("llama_time_us");
  library.func("llama_log_set", "void", ["void *", "void *"])(silent, null);
  const types = ["const char *", "const char *", koffi.pointer(parameters)];
  return { library, quantize: library.func("llama_model_quantize", "uint32_t", types) };
}

/** Quantizes a GGUF file as `llama-quantize` does. Importances are by GGUF name. */
export function quantizeWithLlamaCpp(
  input: string,
  output: string,
  fileType: number,
  options: { readonly threads: number; readonly importance?: ReadonlyMap<string, Float32Array> | undefined },
): Promise<void> {
  opened ??= open();
  const { quantize } = opened;
  // the importances: name, data, size; closed by an empty one
  const kept: Buffer[] = [];
  const entries = [...(options.importance ?? [])];
  const table = Buffer.alloc(24 * (entries.length + 1));
  entries.forEach(([tensor, values], i) => {
    const text = Buffer.from(`${tensor}\0`);
    const data = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
    kept.push(text, data);
    table.writeBigUInt64LE(BigInt(koffi.address(text) as bigint), 24 * i);
    table.writeBigUInt64LE(BigInt(koffi.address(data) as bigint), 24 * i + 8);
    table.writeBigUInt64LE(BigInt(values.length), 24 * i + 16);
  });
  const settings = {
    nthread: options.threads,
    ftype: fileType,
    output_tensor_type: NO_TYPE,
    token_embedding_type: NO_TYPE,
    allow_requantize: false,
    quantize_output_tensor: true,
    only_copy: false,
    pure: false,
    keep_split: false,
    dry_run: false,
    imatrix: entries.length > 0 ? table : null,
    kv_overrides: null,
    tt_overrides: null,
    prune_layers: null,
    max_buf_size: 0,
    later: Array.from({ length: 64 }, () => 0),
  };
  return new Promise((resolve, reject) => {
    quantize.async(input, output, settings, (error: Error | null, status: number) => {
      kept.length = 0; // until here they had to live
      if (error !== null || status !== 0) reject(error ?? new Error(`llama.cpp's quantizer failed (${status})`));
      else resolve();
    });
  });
}
