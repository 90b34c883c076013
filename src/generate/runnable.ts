import { type GgufFile, openGguf } from "../checkpoint/gguf.js";
import { metadataNumber, metadataString } from "../models/gguf-config.js";
import { openCheckpoint } from "../models/index.js";
import { checkTensors } from "../models/weights.js";
import { FormatError } from "../system/errors.js";

/**
 * Checks what llama.cpp would end the process over: a header that lies, tensors that do not fit the configuration, a tokenizer
 * without the tokens it falls back on.
 * @returns the file to load (the first of a split model), and the longest context it was made for
 * @throws FormatError saying what is wrong
 */
export function checkRunnable(file: string): { readonly file: string; readonly contextLength: number } {
  const opened = openGguf(file);
  checkTokenizer(opened);
  const { model, source } = openCheckpoint(file);
  try {
    checkTensors(model, source);
  } catch (error) {
    throw new FormatError(`${file}: ${error instanceof Error ? error.message : error}`);
  }
  const architecture = metadataString(opened.metadata, "general.architecture");
  const contextLength = metadataNumber(opened.metadata, `${architecture}.context_length`) ?? 0;
  return { file: opened.files[0] ?? file, contextLength };
}

function checkTokenizer({ path, metadata, tensors }: GgufFile): void {
  const entry = metadata.get("tokenizer.ggml.tokens");
  const tokens = new Set(entry?.kind === "array" ? entry.value : []);
  const rows = tensors.get("token_embd.weight")?.shape[0];
  const count = entry?.kind === "array" ? entry.value.length : 0;
  if (count !== rows) throw new FormatError(`${path}: ${count} tokens for an embedding of ${rows} rows`);
  const lists = ["token_type", "scores"].map((name) => metadata.get(`tokenizer.ggml.${name}`));
  for (const list of lists)
    if (list?.kind === "array" && list.value.length !== count)
      throw new FormatError(`${path}: ${count} tokens, but ${list.value.length} kinds or scores of tokens`);
  for (const name of ["bos", "eos", "eot", "unknown", "padding"]) {
    const id = metadataNumber(metadata, `tokenizer.ggml.${name}_token_id`);
    if (id !== undefined && !(id >= 0 && id < count))
      throw new FormatError(`${path}: the ${name} token has the number ${id}, there are ${count} tokens`);
  }
  if (metadataString(metadata, "tokenizer.ggml.model") !== "llama") return;
  for (let byte = 0; byte < 256; byte++) {
    const token = `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
    if (!tokens.has(token))
      throw new FormatError(`${path}: its tokenizer lacks the token ${token}, which unknown letters need`);
  }
}
