/**
 * How a byte-level tokenizer splits text into words before it merges. `tokenizer.json` spells this out in regular expressions;
 * llama.cpp only knows pre-tokenizers by name.
 */
export interface PreTokenizer {
  /** llama.cpp's name (`tokenizer.ggml.pre`). */
  readonly name: string;
  readonly steps: readonly PreTokenizerStep[];
  /** Whether llama.cpp takes words that are tokens whole, without merging; where undefined, it makes no difference. */
  readonly ignoreMerges?: boolean | undefined;
  /** Texts that llama.cpp's own pattern of that name splits differently. */
  readonly differsOn?: { readonly what: string; readonly pattern: RegExp } | undefined;
}

/** A step: a pattern of words; each digit alone; or GPT-2's pattern, which is built into the byte-level step. */
export type PreTokenizerStep = { readonly split: string } | "digits" | "gpt2";

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const REST = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const WORD = "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+";
const UPPER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const LOWER = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const CASED = (suffix: string): string =>
  `[^\\r\\n\\p{L}\\p{N}]?${UPPER}*${LOWER}+${suffix}|[^\\r\\n\\p{L}\\p{N}]?${UPPER}+${LOWER}*${suffix}`;
const REST_SLASH = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** llama.cpp's patterns for words by case know no combining marks, and no capitals but A to Z. */
const CASED_DIFFERENCE = {
  what: "words with combining marks (Devanagari, Thai, decomposed accents) or with capitals inside that are not A to Z",
  pattern: /\p{M}|(?![a-z][A-Z])[\p{Ll}\p{Lm}\p{Lo}][\p{Lu}\p{Lt}]/u,
};

/** The difference of its one pattern that knows combining marks. */
const CAPITALS_DIFFERENCE = {
  what: "words with capitals inside that are not A to Z",
  pattern: /(?![a-z][A-Z])[\p{Ll}\p{Lm}\p{Lo}\p{M}][\p{Lu}\p{Lt}]/u,
};

const O200K = { split: `${CASED(`${CONTRACTIONS}?`)}|\\p{N}{1,3}|${REST_SLASH}` };
const THREE_DIGITS = { split: `${CONTRACTIONS}|${WORD}|\\p{N}{1,3}|${REST}` };

export const PRE_TOKENIZERS: readonly PreTokenizer[] = [
  { name: "llama-bpe", steps: [THREE_DIGITS], ignoreMerges: true },
  { name: "dbrx", steps: [THREE_DIGITS], ignoreMerges: false },
  { name: "qwen2", steps: [{ split: `${CONTRACTIONS}|${WORD}|\\p{N}|${REST}` }], ignoreMerges: false },
  { name: "tekken", steps: [{ split: `${CASED("")}|\\p{N}|${REST_SLASH}` }], differsOn: CASED_DIFFERENCE },
  { name: "gpt-4o", steps: [O200K], ignoreMerges: false, differsOn: CASED_DIFFERENCE },
  { name: "granite-embed-multi-97m", steps: [O200K], ignoreMerges: true, differsOn: CAPITALS_DIFFERENCE },
  {
    name: "deepseek-coder",
    steps: [
      { split: "[\r\n]" },
      { split: "\\s?\\p{L}+" },
      { split: "\\s?\\p{P}+" },
      { split: "[一-龥ࠀ-一가-퟿]+" },
      "digits",
    ],
    ignoreMerges: false,
  },
  {
    name: "deepseek-v3",
    steps: [
      { split: "\\p{N}{1,3}" },
      { split: "[一-龥぀-ゟ゠-ヿ]+" },
      {
        split:
          "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
      },
    ],
    ignoreMerges: false,
  },
  { name: "smollm", steps: ["digits", "gpt2"], ignoreMerges: false },
  { name: "gpt-2", steps: ["gpt2"], ignoreMerges: false },
  // what llama.cpp does for files that name none: not GPT-2's pattern, though such files often mean it
  {
    name: "default",
    steps: [
      { split: "[\\p{P}\\$\\+<=>\\^~\\|]+" },
      { split: "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)" },
      { split: "\\p{N}+" },
      { split: "[0-9][0-9][0-9]" },
    ],
    ignoreMerges: false,
  },
];

/** Other names that llama.cpp has for the same pre-tokenizers, found in files that other tools wrote. */
const ALIASES: Readonly<Record<string, readonly string[]>> = {
  "llama-bpe": ["llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
  dbrx: ["smaug-bpe", "glm4", "chatglm-bpe"],
  qwen2: ["deepseek-r1-qwen", "megrez", "stablelm2", "kormo", "f2llmv2"],
  "gpt-4o": ["llama4"],
  "deepseek-v3": ["hunyuan-dense"],
  smollm: ["starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
  "gpt-2": [
    "exaone4",
    "phi-2",
    "mpt",
    "olmo",
    "trillion",
    "granite-docling",
    "a.x-4.0",
    "gigachat",
    "mellum",
    "modern-bert",
    "jina-es",
    "jina-de",
    "jina-v2-es",
    "jina-v2-de",
  ],
};

/** The pre-tokenizer of one of llama.cpp's names. */
export const preTokenizerNamed = (name: string): PreTokenizer | undefined =>
  PRE_TOKENIZERS.find((known) => known.name === name || ALIASES[known.name]?.includes(name));

const sameStep = (a: PreTokenizerStep, b: PreTokenizerStep | undefined): boolean =>
  typeof a === "string" || b === undefined || typeof b === "string" ? a === b : a.split === b.split;

/** The known pre-tokenizer that takes these steps. */
export const preTokenizerOf = (steps: readonly PreTokenizerStep[], ignoreMerges: boolean): PreTokenizer | undefined =>
  PRE_TOKENIZERS.find(
    (known) =>
      known.steps.length === steps.length &&
      known.steps.every((step, i) => sameStep(step, steps[i])) &&
      (known.ignoreMerges ?? ignoreMerges) === ignoreMerges,
  );
