import type { LlamaModel, Token } from "node-llama-cpp";

/**
 * llama.cpp's names of the pre-tokenizers that it follows in code of its own. It gives the others' patterns to the C++ library's regular
 * expressions, which recurse once for each character of a match: some 20 thousand letters without a space overflow a stack of
 * 8 MiB, and end the process (llama.cpp's issues 21919 and 27783).
 */
const SPLIT_BY_CODE: ReadonlySet<string> = new Set([
  "gpt-2",
  "qwen2",
  "llama-bpe",
  "llama3",
  "llama-v3",
  "dbrx",
  "smaug-bpe",
  "glm4",
  "smollm",
  "starcoder",
  "exaone",
]);

/** Longer runs are tokenized in parts. Texts in any language have a space or a punctuation mark earlier, but for data and for attacks. */
const LONGEST_RUN = 2048;
const LONG_RUN = new RegExp(`(?<!\\S)\\S{${LONGEST_RUN + 1},}|(?<!\\s)\\s{${LONGEST_RUN + 1},}`, "gu");
/** Where patterns divide words anyway: before a mark that follows a letter or a digit, and is no part of a special token. */
const WORD_END = /(?<=[\p{L}\p{N}])[^\s\p{L}\p{N}\p{M}'’<|>[\]_｜▁]/gu;

/** What may be the beginning of a special token: `<|im_start`, `[TOOL_`. */
const BEGUN_TAG = /[<[][^<>[\]\s]{0,64}$/u;

/** Whether llama.cpp, given this text as a whole, may end the process. */
export const isTooLongToSplit = (model: LlamaModel, text: string): boolean =>
  splitsByExpressions(model) && partsOf(text).length > 1;

function splitsByExpressions(model: LlamaModel): boolean {
  const { model: kind, pre } = model.fileInfo.metadata.tokenizer.ggml as { model?: unknown; pre?: unknown };
  return kind === "gpt2" && !(typeof pre === "string" && SPLIT_BY_CODE.has(pre));
}

/** The tokens of a text. @param special whether special tokens that are written out are read as such */
export function tokenize(model: LlamaModel, text: string, special = false): Token[] {
  if (!splitsByExpressions(model)) return model.tokenize(text, special);
  return partsOf(text).flatMap((part) => model.tokenize(part, special));
}

/** A text in parts without long runs of blanks or of other characters: nearly always as a whole. */
export function partsOf(text: string): string[] {
  const parts: string[] = [];
  let from = 0;
  const cut = (to: number) => {
    parts.push(text.slice(from, to));
    from = to;
  };
  for (const { 0: run, index } of text.matchAll(LONG_RUN)) {
    let left = run.length;
    while (left > LONGEST_RUN) {
      const start = index + run.length - left;
      const length = cutOf(text.slice(start, start + LONGEST_RUN));
      cut(start + length);
      left -= length;
    }
  }
  if (from < text.length || parts.length === 0) parts.push(text.slice(from));
  return parts;
}

/** How much of the beginning of a long run is cut off. */
function cutOf(beginning: string): number {
  const last = [...beginning.matchAll(WORD_END)].at(-1)?.index ?? 0;
  const isHalf = /[\ud800-\udbff]$/.test(beginning); // of a character of two code units
  const cut = last > 0 ? last : beginning.length - (isHalf ? 1 : 0);
  const tag = BEGUN_TAG.exec(beginning.slice(0, cut))?.index ?? 0;
  return tag > 0 ? tag : cut;
}
