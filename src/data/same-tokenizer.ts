import { existsSync } from "node:fs";
import path from "node:path";
import { Tokenizer as NativeTokenizer } from "tokenizers";
import { readJsonObject } from "../checkpoint/json.js";
import { UsageError } from "../system/errors.js";
import { Random } from "../system/random.js";

/** How two models' tokenizers agree. */
export interface Agreement {
  /** Ids that both know: those of the tokenizer, which may be fewer than the rows of an embedding table. */
  readonly tokens: number;
  readonly notes: readonly string[];
}

/** One of the two sides: what to call it, where its tokenizer lies, and how many tokens its model has rows for. */
export interface TokenizerSide {
  readonly name: string;
  readonly directory: string;
  readonly vocabSize: number;
}

/**
 * Checks that a token id means the same to two models: the same text for each id, and the same ids for the same text. Rows
 * of the embedding beyond the tokenizer's ids are padding, and may be more in one than in the other.
 * @throws UsageError with the first difference
 */
export async function agreeingTokens(a: TokenizerSide, b: TokenizerSide): Promise<Agreement> {
  const [first, second] = [open(a), open(b)];
  if (first === undefined || second === undefined) return withoutTokenizer(a, b, first === undefined ? a : b);
  const tokens = sameVocabulary(a, b, first.native, second.native);
  const notes = padding(a, b, tokens);
  if (!sameDefinition(first.definition, second.definition)) {
    await sameEncodings(a, b, first.native, second.native, tokens);
    notes.push(
      `the tokenizers of ${a.name} and ${b.name} are written in different ways; the texts that were tried get the same ids`,
    );
  }
  return { tokens, notes };
}

interface OpenTokenizer {
  readonly definition: Readonly<Record<string, unknown>>;
  readonly native: NativeTokenizer;
}

function open({ directory }: TokenizerSide): OpenTokenizer | undefined {
  const file = path.join(directory, "tokenizer.json");
  if (!existsSync(file)) return undefined;
  const definition = readJsonObject(file);
  const native = NativeTokenizer.fromString(JSON.stringify(definition));
  native.disableTruncation();
  native.disablePadding();
  return { definition, native };
}

function withoutTokenizer(a: TokenizerSide, b: TokenizerSide, missing: TokenizerSide): Agreement {
  if (a.vocabSize !== b.vocabSize)
    throw new UsageError(
      `${a.name} has ${a.vocabSize} tokens and ${b.name} ${b.vocabSize}, and ${missing.directory} has no tokenizer.json to compare them by`,
    );
  const note = `${missing.directory} has no tokenizer.json: that ${a.name} and ${b.name} share a vocabulary is taken for granted`;
  return { tokens: a.vocabSize, notes: [note] };
}

/** @returns how many ids there are */
function sameVocabulary(a: TokenizerSide, b: TokenizerSide, first: NativeTokenizer, second: NativeTokenizer): number {
  const [mine, theirs] = [first, second].map(textsById) as [Map<number, string>, Map<number, string>];
  const largest = [...mine.keys(), ...theirs.keys()].reduce((most, id) => Math.max(most, id), -1);
  for (let id = 0; id <= largest; id++) {
    const [one, other] = [mine.get(id), theirs.get(id)];
    if (one !== other)
      throw new UsageError(
        `${a.name} and ${b.name} have different tokenizers: token ${id} is ${shown(one)} in ${a.name} and ${shown(other)} in ${b.name}; ` +
          "distillation needs two models of one tokenizer",
      );
  }
  return Math.min(largest + 1, a.vocabSize, b.vocabSize);
}

const shown = (text: string | undefined): string => (text === undefined ? "missing" : JSON.stringify(text));

const textsById = (native: NativeTokenizer): Map<number, string> =>
  new Map(Object.entries(native.getVocab(true)).map(([text, id]) => [id, text]));

function padding(a: TokenizerSide, b: TokenizerSide, tokens: number): string[] {
  if (a.vocabSize === b.vocabSize) return [];
  return [
    `the tokenizer has ${tokens} tokens; the further rows of ${a.name} (${a.vocabSize}) and ${b.name} (${b.vocabSize}) are padding, which the loss leaves out`,
  ];
}

/** Whether all that makes ids of text is written alike; the vocabulary apart, which is compared before. */
function sameDefinition(first: OpenTokenizer["definition"], second: OpenTokenizer["definition"]): boolean {
  const parts = ({ normalizer, pre_tokenizer, model, added_tokens }: OpenTokenizer["definition"]) => {
    const { vocab: _, merges, ...rest } = model as Record<string, unknown>;
    const pairs = Array.isArray(merges) ? merges.map((pair) => (Array.isArray(pair) ? pair.join(" ") : pair)) : merges;
    return JSON.stringify([normalizer ?? null, pre_tokenizer ?? null, added_tokens, rest, pairs]);
  };
  return parts(first) === parts(second);
}

/** Texts with what tokenizers treat in different ways: spaces, digits, case, contractions, other scripts. */
const TELLING_TEXTS = [
  "Hello, world! It's 12:30, isn't it? I'LL see.",
  "  two  spaces,\ttabs\t\tand\n\n\nlines \r\n end ",
  "1 12 123 1234 12345 3.14159 1,000,000 0x1F",
  "naïve café Ångström ﬁne ½ Ⅷ e\u0301",
  "Привет, мир. 你好,世界。 こんにちは 안녕하세요 مرحبا नमस्ते",
  "def f(x):\n    return x**2  # a_b camelCase snake_case\n",
  "😀👩‍👩‍👧 … “quotes” — dash",
  "",
  " ",
];
/** More texts of tokens drawn from the vocabulary, so many with so many tokens each. */
const [DRAWN_TEXTS, DRAWN_TOKENS] = [256, 48];

async function sameEncodings(
  a: TokenizerSide,
  b: TokenizerSide,
  first: NativeTokenizer,
  second: NativeTokenizer,
  tokens: number,
): Promise<void> {
  const random = new Random(0, 0);
  const drawn = Array.from({ length: DRAWN_TEXTS }, () =>
    Array.from({ length: DRAWN_TOKENS }, () => random.integer(tokens)),
  );
  const texts = [...TELLING_TEXTS, ...(await first.decodeBatch(drawn, false))];
  const options = { addSpecialTokens: false };
  const [mine, theirs] = await Promise.all([first, second].map((native) => native.encodeBatch([...texts], options)));
  for (const [i, text] of texts.entries()) {
    const [one = [], other = []] = [mine?.[i]?.getIds(), theirs?.[i]?.getIds()];
    const at = one.findIndex((id, position) => id !== other[position]);
    if (at >= 0 || one.length !== other.length)
      throw new UsageError(
        `${a.name} and ${b.name} have the same tokens, but other ways to cut text into them: ${JSON.stringify(text.slice(0, 60))} is ` +
          `${JSON.stringify(around(one, at))} in ${a.name} and ${JSON.stringify(around(other, at))} in ${b.name}, from position ${Math.max(0, at - 1)} on`,
      );
  }
}

const around = (ids: readonly number[], at: number): readonly number[] =>
  at < 0 ? ids.slice(-4) : ids.slice(Math.max(0, at - 1), at + 4);
