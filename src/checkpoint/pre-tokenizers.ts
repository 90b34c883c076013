/**
 * How byte-level tokenizers cut a text into words before they merge: what `tokenizer.json` says in regular expressions,
 * llama.cpp knows by name only. One line per known way.
 */
export interface PreTokenizer {
  /** llama.cpp's name (`tokenizer.ggml.pre`). */
  readonly name: string;
  readonly steps: readonly PreTokenizerStep[];
  /** Whether words that are tokens themselves are taken whole there; where undefined, it makes no difference. */
  readonly ignoreMerges?: boolean | undefined;
  /** Texts that llama.cpp's own pattern of the name cuts otherwise. */
  readonly differsOn?: { readonly what: string; readonly pattern: RegExp } | undefined;
}

/** A step: the pattern of words, each digit alone, or GPT-2's pattern, which is built into the byte-level step. */
export type PreTokenizerStep = { readonly split: string } | "digits" | "gpt2";

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const REST = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const WORD = "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+";
const UPPER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const LOWER = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const CASED = (suffix: string): string =>
  `[^\\r\\n\\p{L}\\p{N}]?${UPPER}*${LOWER}+${suffix}|[^\\r\\n\\p{L}\\p{N}]?${UPPER}+${LOWER}*${suffix}`;
const REST_SLASH = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** Its patterns for words by case know no combining marks, and no capitals but A to Z. */
const CASED_DIFFERENCE = {
  what: "words with combining marks (Devanagari, Thai, decomposed accents) or with capitals inside that are not A to Z",
  pattern: /\p{M}|(?![a-z][A-Z])[\p{Ll}\p{Lm}\p{Lo}][\p{Lu}\p{Lt}]/u,
};

/** The same of its pattern that knows combining marks. */
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
  // llama.cpp's own for files that name none: not GPT-2's, though those files are often of its kind
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

/** Other names of llama.cpp for the same ways, met in files that others wrote. */
const ALIASES: Readonly<Record<string, string>> = {
  ...{ llama3: "llama-bpe", "llama-v3": "llama-bpe", falcon3: "llama-bpe", pixtral: "llama-bpe", lfm2: "llama-bpe" },
  ...{ "smaug-bpe": "dbrx", "deepseek-r1-qwen": "qwen2", megrez: "qwen2", stablelm2: "qwen2", llama4: "gpt-4o" },
  ...{ starcoder: "smollm", refact: "smollm", "command-r": "smollm", codeshell: "smollm", exaone: "smollm" },
  ...{ glm4: "dbrx", "chatglm-bpe": "dbrx", "hunyuan-dense": "deepseek-v3", exaone4: "gpt-2" },
  ...{ "phi-2": "gpt-2", mpt: "gpt-2", olmo: "gpt-2", trillion: "gpt-2", "granite-docling": "gpt-2" },
};

export const preTokenizerNamed = (name: string): PreTokenizer | undefined =>
  PRE_TOKENIZERS.find((known) => known.name === (ALIASES[name] ?? name));

const sameStep = (a: PreTokenizerStep, b: PreTokenizerStep | undefined): boolean =>
  typeof a === "string" || b === undefined || typeof b === "string" ? a === b : a.split === b.split;

/** The known way that takes these steps. */
export const preTokenizerOf = (steps: readonly PreTokenizerStep[], ignoreMerges: boolean): PreTokenizer | undefined =>
  PRE_TOKENIZERS.find(
    (known) =>
      known.steps.length === steps.length &&
      known.steps.every((step, i) => sameStep(step, steps[i])) &&
      (known.ignoreMerges ?? ignoreMerges) === ignoreMerges,
  );
