import { type GgufFile, openGguf } from "../checkpoint/gguf.js";
import { metadataNumber, metadataString } from "../models/gguf-config.js";
import { type Model, openCheckpoint } from "../models/index.js";
import { checkTensors } from "../models/weights.js";
import { FormatError, UsageError } from "../system/errors.js";

/** A file that llama.cpp can load. */
export interface Runnable {
  /** What to load: the first file of a split model. */
  readonly file: string;
  /** The longest context it was made for; 0 where the file does not say. */
  readonly contextLength: number;
  /** How many positions were learnt, where they were (GPT-2): past them llama.cpp ends the process. */
  readonly learntPositions: number | undefined;
}

/**
 * Checks what llama.cpp would end the process over: a header that lies, tensors that do not fit the configuration, a tokenizer
 * without the tokens it falls back on.
 * @throws FormatError saying what is wrong
 */
export function checkRunnable(file: string): Runnable {
  const opened = openGguf(file);
  checkTokenizer(opened);
  const { model, source } = openCheckpoint(file);
  try {
    checkTensors(model, source);
    checkHeads(opened, model);
  } catch (error) {
    throw new FormatError(`${file}: ${error instanceof Error ? error.message : error}`);
  }
  const architecture = metadataString(opened.metadata, "general.architecture");
  const contextLength = metadataNumber(opened.metadata, `${architecture}.context_length`) ?? 0;
  const learntPositions = opened.tensors.get("position_embd.weight")?.shape[0];
  return { file: opened.files[0] ?? file, contextLength, learntPositions };
}

/** @throws UsageError for a context that llama.cpp would end the process in */
export function checkContext({ file, learntPositions }: Runnable, contextSize: number): void {
  if (learntPositions !== undefined && contextSize > learntPositions)
    throw new UsageError(
      `${file}: the model has learnt ${learntPositions} positions, it cannot read a context of ${contextSize} tokens`,
    );
}

/** Sizes of heads on which llama.cpp's graphs insist, and that no tensor shows. */
const HEAD_SIZES = ["rope.dimension_count", "attention.key_length", "attention.value_length"];

/** @throws FormatError where the file says other sizes of heads than its architecture computes with */
function checkHeads({ metadata }: GgufFile, model: Model): void {
  for (const [key, value] of model.gguf().metadata) {
    if (!HEAD_SIZES.some((name) => key.endsWith(`.${name}`))) continue;
    const [expected, found] = [metadataNumber(new Map([[key, value]]), key), metadataNumber(metadata, key)];
    if (found !== undefined && found !== expected)
      throw new FormatError(`${key} is ${found}, this architecture computes with ${expected}`);
  }
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
