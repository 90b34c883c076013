import { statSync } from "node:fs";
import { type GgufFile, type GgufScalar, type GgufValue, openGguf } from "../checkpoint/gguf.js";
import { metadataNumber, metadataString } from "../models/gguf-config.js";
import {
  type GgufLayout,
  type GgufSummary,
  knownGgufArchitectures,
  type Model,
  openGgufModel,
  summariseGguf,
} from "../models/index.js";
import { FormatError, UsageError } from "../system/errors.js";
import { tryInLlamaCpp } from "./trial.js";

/** A GGUF file that llama.cpp is to run, and what planning the run needs. */
export interface Runnable extends GgufSummary {
  /** What to load: the first file of a split model. */
  readonly file: string;
  /** Bytes of its files. */
  readonly fileBytes: number;
  readonly metadata: GgufFile["metadata"];
}

/** A file whose header is in order, and what speaks against trusting llama.cpp with it. */
interface Examined {
  readonly runnable: Runnable;
  /** Why our own checks do not suffice: llama.cpp might end the process. */
  readonly doubt: string | undefined;
  /** Whether it is no model that is known here. */
  readonly unknown: boolean;
}

/** Checks that a file's header and tokenizer are in order. @throws FormatError saying what is not */
export const checkHeader = (file: string): void => checkTokenizer(openGguf(file));

/**
 * What a GGUF file needs to be run, of whatever architecture.
 * @throws FormatError when its header or its tokenizer is not what llama.cpp can take
 */
export const describeRunnable = (file: string): Runnable => examine(file).runnable;

/**
 * Checks what llama.cpp would end the process over: a header that lies, tensors that do not fit the configuration, a tokenizer
 * without the tokens it falls back on.
 * @throws FormatError saying what is wrong, also for an architecture that is not known here
 */
export function checkRunnable(file: string): Runnable {
  const { runnable, doubt, unknown } = examine(file);
  if (unknown) throw new FormatError(doubt);
  return runnable;
}

/**
 * Makes sure that llama.cpp can run a GGUF file. Where our own checks cannot say so, because the architecture is not known here or
 * because the file says something that our writer would not, it is loaded in a process of its own first.
 * @throws FormatError saying what is wrong, with llama.cpp's own words where it cannot run the file
 */
export async function openRunnable(file: string): Promise<Runnable> {
  const { runnable, doubt, unknown } = examine(file);
  if (doubt === undefined) return runnable;
  try {
    await tryInLlamaCpp(runnable.file, openGguf(file).files);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    const isRead = unknown && knownGgufArchitectures().includes(runnable.architecture);
    throw new FormatError(isRead ? `${doubt}; ${error.message}` : `${file}: ${error.message}`);
  }
  return runnable;
}

/** @throws UsageError for a context that llama.cpp would end the process in */
export function checkContext({ file, learntPositions }: Runnable, contextSize: number): void {
  if (learntPositions !== undefined && contextSize > learntPositions)
    throw new UsageError(
      `${file}: the model has learnt ${learntPositions} positions, it cannot read a context of ${contextSize} tokens`,
    );
}

function examine(at: string): Examined {
  const opened = openGgufModel(at);
  const { file } = opened;
  checkTokenizer(file);
  const runnable: Runnable = {
    ...summariseGguf(file),
    file: file.files[0] ?? at,
    fileBytes: file.files.reduce((sum, part) => sum + statSync(part).size, 0),
    metadata: file.metadata,
  };
  if (opened.checkpoint === undefined) return { runnable, doubt: opened.reason, unknown: true };
  return { runnable, doubt: unusual(file, opened.checkpoint.model), unknown: false };
}

/** Sizes of heads on which llama.cpp's graphs insist, and that no tensor shows. */
const HEAD_SIZES = ["rope.dimension_count", "attention.key_length", "attention.value_length"];

/**
 * What the file says of a known architecture that our own writer, whose files are tested in llama.cpp, would not.
 * @throws FormatError where it says other sizes of heads than its architecture computes with
 */
function unusual({ path, metadata }: GgufFile, model: Model): string | undefined {
  const architecture = metadataString(metadata, "general.architecture");
  const layout = layoutOf(model);
  if (typeof layout === "string") return layout;
  const own = new Map(layout.metadata);
  const read = new Set(layout.listed.map(({ key }) => key));
  const others = [...metadata].filter(
    ([key, value]) =>
      key.startsWith(`${architecture}.`) && !isName(key) && !read.has(key) && !sameValue(value, own.get(key)),
  );
  for (const [key, { value }] of others)
    if (own.has(key) && HEAD_SIZES.some((name) => key === `${architecture}.${name}`))
      throw new FormatError(`${path}: ${key} is ${value}, this architecture computes with ${own.get(key)?.value}`);
  return others[0]?.[0];
}

/** How we would write the model; or why we would not. */
function layoutOf(model: Model): GgufLayout | string {
  try {
    return model.gguf();
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    return error.message;
  }
}

/** llama.cpp counts the tokens instead. */
const isName = (key: string): boolean => key.endsWith(".vocab_size");

/** Whether two values mean the same: one for all layers is the same as one for each, and fractions are read rounded. */
function sameValue(a: GgufValue, b: GgufValue | undefined): boolean {
  if (b === undefined) return false;
  const [first, second] = [a, b].map(({ value }) => {
    const all = [value].flat();
    return all.every((one) => one === all[0]) ? all.slice(0, 1) : all;
  });
  return first?.length === second?.length && (first ?? []).every((one, i) => sameScalar(one, second?.[i]));
}

const ROUNDED = 1e-5;

function sameScalar(a: GgufScalar | undefined, b: GgufScalar | undefined): boolean {
  if (typeof a === "string" || typeof b === "string") return a === b;
  const [first, second] = [Number(a), Number(b)];
  if (Number.isInteger(first) && Number.isInteger(second)) return first === second;
  return Math.abs(first - second) <= ROUNDED * Math.abs(second);
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
