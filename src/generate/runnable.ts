import { statSync } from "node:fs";
import { type GgufFile, type GgufScalar, type GgufValue, openGguf } from "../checkpoint/gguf.js";
import { metadataNumber, metadataString } from "../models/gguf-config.js";
import {
  type GgufLayout,
  type GgufSummary,
  knownGgufArchitectures,
  type Model,
  openGgufModel,
  summarizeGguf,
} from "../models/index.js";
import { FormatError, UsageError } from "../system/errors.js";
import { tryInLlamaCpp } from "./trial.js";

/** A GGUF file for llama.cpp to run, and what is needed to plan that. */
export interface Runnable extends GgufSummary {
  /** The file to load: the first one of a split model. */
  readonly file: string;
  /** Bytes of all of the model's files. */
  readonly fileBytes: number;
  readonly metadata: GgufFile["metadata"];
}

/** A file with a valid header, and the reason not to trust llama.cpp with it. */
interface Examination {
  readonly runnable: Runnable;
  /** Why our own checks do not suffice: llama.cpp might end the process. */
  readonly doubt: string | undefined;
  /** Whether our own engine knows the architecture. */
  readonly isKnown: boolean;
}

/** Checks a file's header and tokenizer. @throws FormatError saying what is wrong with them */
export const checkHeader = (file: string): void => checkTokenizer(openGguf(file));

/**
 * Describes a GGUF file of any architecture.
 * @throws FormatError when llama.cpp cannot load its header or its tokenizer
 */
export const describeRunnable = (file: string): Runnable => examine(file).runnable;

/**
 * Checks what would make llama.cpp end the process: a wrong header, tensors that do not match the configuration, a tokenizer
 * without the tokens that it falls back on.
 * @throws FormatError saying what is wrong, also for an architecture that our own engine does not know
 */
export function checkRunnable(file: string): Runnable {
  const { runnable, doubt, isKnown } = examine(file);
  if (!isKnown) throw new FormatError(doubt);
  return runnable;
}

/**
 * Makes sure that llama.cpp can run a GGUF file. If our own checks cannot tell, because we do not know the architecture or
 * because the file has settings that our writer would not write, it is first loaded in a separate process.
 * @throws FormatError saying what is wrong, in llama.cpp's own words if it cannot run the file
 */
export async function openRunnable(file: string): Promise<Runnable> {
  const { runnable, doubt, isKnown } = examine(file);
  if (doubt === undefined) return runnable;
  try {
    await tryInLlamaCpp(runnable.file, openGguf(file).files);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    const isBroken = !isKnown && knownGgufArchitectures().includes(runnable.architecture);
    throw new FormatError(isBroken ? `${doubt}; ${error.message}` : `${file}: ${error.message}`);
  }
  return runnable;
}

/**
 * Notes a context that is longer than the texts that the model was trained on.
 * @throws UsageError for a context so long that llama.cpp would end the process
 */
export function checkContext(
  { file, contextLength, learnedPositions }: Runnable,
  contextSize: number,
  onNote?: (note: string) => void,
): void {
  if (learnedPositions !== undefined && contextSize > learnedPositions)
    throw new UsageError(
      `${file}: the model has learnt ${learnedPositions} positions and cannot read a context of ${contextSize} tokens`,
    );
  if (contextLength > 0 && contextSize > contextLength)
    onNote?.(
      `${file}: the model was trained on texts of ${contextLength} tokens: in a context of ${contextSize} it may write nonsense after them`,
    );
}

function examine(at: string): Examination {
  const opened = openGgufModel(at);
  const { file } = opened;
  checkTokenizer(file);
  const runnable: Runnable = {
    ...summarizeGguf(file),
    file: file.files[0] ?? at,
    fileBytes: file.files.reduce((sum, part) => sum + statSync(part).size, 0),
    metadata: file.metadata,
  };
  if (opened.checkpoint === undefined) return { runnable, doubt: opened.reason, isKnown: false };
  return { runnable, doubt: unusualSetting(file, opened.checkpoint.model), isKnown: true };
}

/** Head sizes that llama.cpp's graphs insist on and that no tensor's shape shows. */
const HEAD_SIZES = ["rope.dimension_count", "attention.key_length", "attention.value_length"];

/**
 * A setting of a known architecture that our own writer, whose files are tested in llama.cpp, would not write.
 * @throws FormatError when head sizes differ from those that the architecture computes with
 */
function unusualSetting({ path, metadata }: GgufFile, model: Model): string | undefined {
  const architecture = metadataString(metadata, "general.architecture");
  const layout = layoutOf(model);
  if (typeof layout === "string") return layout;
  const expected = new Map(layout.metadata);
  const listed = new Set(layout.listed.map(({ key }) => key));
  const isChecked = (key: string) =>
    key.startsWith(`${architecture}.`) && !key.endsWith(UNUSED_KEY) && !listed.has(key);
  const unusual = [...metadata].filter(([key, value]) => isChecked(key) && !sameValue(value, expected.get(key)));
  for (const [key, { value }] of unusual) {
    const usual = expected.get(key);
    if (usual !== undefined && HEAD_SIZES.some((name) => key === `${architecture}.${name}`))
      throw new FormatError(`${path}: ${key} is ${value}, this architecture computes with ${usual.value}`);
  }
  return unusual[0]?.[0];
}

/** llama.cpp counts the tokens instead of reading it. */
const UNUSED_KEY = ".vocab_size";

/** How we would write the model, or why we would not. */
function layoutOf(model: Model): GgufLayout | string {
  try {
    return model.gguf();
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    return error.message;
  }
}

/** Whether two values mean the same: one for all layers equals one for each, and fractions may be rounded. */
function sameValue(a: GgufValue, b: GgufValue | undefined): boolean {
  if (b === undefined) return false;
  const [first, second] = [distinct(a), distinct(b)];
  return first.length === second.length && first.every((scalar, i) => sameScalar(scalar, second[i]));
}

/** A value's elements, only one if all are equal. */
function distinct({ value }: GgufValue): GgufScalar[] {
  const scalars = [value].flat();
  return scalars.every((scalar) => scalar === scalars[0]) ? scalars.slice(0, 1) : scalars;
}

/** The relative difference of values that are equal but for rounding. */
const ROUNDING = 1e-5;

function sameScalar(a: GgufScalar, b: GgufScalar | undefined): boolean {
  if (typeof a === "string" || typeof b === "string") return a === b;
  const [first, second] = [Number(a), Number(b)];
  if (Number.isInteger(first) && Number.isInteger(second)) return first === second;
  return Math.abs(first - second) <= ROUNDING * Math.abs(second);
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
      throw new FormatError(`${path}: ${count} tokens, but ${list.value.length} token types or scores`);
  for (const name of ["bos", "eos", "eot", "unknown", "padding"]) {
    const id = metadataNumber(metadata, `tokenizer.ggml.${name}_token_id`);
    if (id !== undefined && !(id >= 0 && id < count))
      throw new FormatError(`${path}: the ${name} token has the number ${id}, but there are only ${count} tokens`);
  }
  if (metadataString(metadata, "tokenizer.ggml.model") !== "llama") return;
  for (let byte = 0; byte < 256; byte++) {
    const token = `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
    if (!tokens.has(token))
      throw new FormatError(`${path}: its tokenizer lacks the token ${token}, which unknown characters need`);
  }
}
