import { existsSync } from "node:fs";
import path from "node:path";
import { Tokenizer as NativeTokenizer } from "tokenizers";
import { readJsonObject } from "../checkpoint/json.js";
import { UsageError } from "../system/errors.js";
import { Random } from "../system/random.js";

/** The agreement of two models' tokenizers. */
export interface Agreement {
  /** The number of shared ids: those of the tokenizer, which may be fewer than the rows of an embedding. */
  readonly tokens: number;
  readonly notes: readonly string[];
}

/** One of two models: its name in messages, the directory of its tokenizer, and the rows of its embedding. */
export interface TokenizerSide {
  readonly name: string;
  readonly directory: string;
  readonly vocabSize: number;
}

/**
 * Checks that token ids mean the same to two models: the same text for each id, and the same ids for the same text. Rows of the
 * embedding beyond the tokenizer's ids are padding, of which the models may have different numbers.
 * @throws UsageError naming the first difference
 */
export async function agreeingTokens(a: TokenizerSide, b: TokenizerSide): Promise<Agreement> {
  const [first, second] = [open(a), open(b)];
  if (first === undefined || second === undefined) return withoutTokenizer(a, b, first === undefined ? a : b);
  const tokens = checkVocabularies(first, second);
  const notes = paddingNotes(a, b, tokens);
  if (!haveSameDefinition(first.definition, second.definition)) {
    await checkEncodings(first, second, tokens);
    notes.push(`the tokenizers of ${a.name} and ${b.name} are defined differently; sample texts get the same ids`);
  }
  return { tokens, notes };
}

interface OpenTokenizer extends TokenizerSide {
  readonly definition: Readonly<Record<string, unknown>>;
  readonly native: NativeTokenizer;
}

function open(side: TokenizerSide): OpenTokenizer | undefined {
  const file = path.join(side.directory, "tokenizer.json");
  if (!existsSync(file)) return undefined;
  const definition = readJsonObject(file);
  const native = NativeTokenizer.fromString(JSON.stringify(definition));
  native.disableTruncation();
  native.disablePadding();
  return { ...side, definition, native };
}

function withoutTokenizer(a: TokenizerSide, b: TokenizerSide, missing: TokenizerSide): Agreement {
  if (a.vocabSize !== b.vocabSize)
    throw new UsageError(
      `${a.name} has ${a.vocabSize} tokens and ${b.name} ${b.vocabSize}, and ${missing.directory} has no tokenizer.json to compare them by`,
    );
  const note = `${missing.directory} has no tokenizer.json: ${a.name} and ${b.name} are assumed to share a vocabulary`;
  return { tokens: a.vocabSize, notes: [note] };
}

/** @returns how many ids both have */
function checkVocabularies(a: OpenTokenizer, b: OpenTokenizer): number {
  const [ofA, ofB] = [textsById(a.native), textsById(b.native)];
  const largest = [...ofA.keys(), ...ofB.keys()].reduce((most, id) => Math.max(most, id), -1);
  for (let id = 0; id <= largest; id++) {
    const [inA, inB] = [ofA.get(id), ofB.get(id)];
    if (inA !== inB)
      throw new UsageError(
        `${a.name} and ${b.name} have different tokenizers: token ${id} is ${quoted(inA)} in ${a.name} and ${quoted(inB)} in ${b.name}; ` +
          "distillation needs two models with the same tokenizer",
      );
  }
  return Math.min(largest + 1, a.vocabSize, b.vocabSize);
}

const quoted = (text: string | undefined): string => (text === undefined ? "missing" : JSON.stringify(text));

const textsById = (native: NativeTokenizer): Map<number, string> =>
  new Map(Object.entries(native.getVocab(true)).map(([text, id]) => [id, text]));

function paddingNotes(a: TokenizerSide, b: TokenizerSide, tokens: number): string[] {
  if (a.vocabSize === b.vocabSize) return [];
  return [
    `the tokenizer has ${tokens} tokens; the further rows of ${a.name} (${a.vocabSize}) and ${b.name} (${b.vocabSize}) are padding, which the loss ignores`,
  ];
}

/** Whether all that determines ids is defined alike, apart from the vocabulary, which is compared separately. */
function haveSameDefinition(first: OpenTokenizer["definition"], second: OpenTokenizer["definition"]): boolean {
  const parts = ({ normalizer, pre_tokenizer, model, added_tokens }: OpenTokenizer["definition"]) => {
    const { vocab: _, merges, ...rest } = model as Record<string, unknown>;
    const pairs = Array.isArray(merges) ? merges.map((pair) => (Array.isArray(pair) ? pair.join(" ") : pair)) : merges;
    return JSON.stringify([normalizer ?? null, pre_tokenizer ?? null, added_tokens, rest, pairs]);
  };
  return parts(first) === parts(second);
}

/** Texts with what tokenizers treat differently: spaces, digits, case, contractions, other scripts. */
const SAMPLE_TEXTS = [
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
/** Further texts, decoded from random tokens: how many, and of how many tokens each. */
const [DRAWN_TEXTS, DRAWN_TOKENS] = [256, 48];

async function checkEncodings(a: OpenTokenizer, b: OpenTokenizer, tokens: number): Promise<void> {
  const random = new Random(0, 0);
  const drawn = Array.from({ length: DRAWN_TEXTS }, () =>
    Array.from({ length: DRAWN_TOKENS }, () => random.integer(tokens)),
  );
  const texts = [...SAMPLE_TEXTS, ...(await a.native.decodeBatch(drawn, false))];
  const options = { addSpecialTokens: false };
  const [ofA, ofB] = await Promise.all([a, b].map(({ native }) => native.encodeBatch([...texts], options)));
  for (const [i, text] of texts.entries()) {
    const [inA = [], inB = []] = [ofA?.[i]?.getIds(), ofB?.[i]?.getIds()];
    const at = inA.findIndex((id, position) => id !== inB[position]);
    if (at >= 0 || inA.length !== inB.length)
      throw new UsageError(
        `${a.name} and ${b.name} have the same tokens, but split text into them differently: ${JSON.stringify(text.slice(0, 60))} is ` +
          `${JSON.stringify(around(inA, at))} in ${a.name} and ${JSON.stringify(around(inB, at))} in ${b.name}, from position ${Math.max(0, at - 1)} on`,
      );
  }
}

const around = (ids: readonly number[], at: number): readonly number[] =>
  at < 0 ? ids.slice(-4) : ids.slice(Math.max(0, at - 1), at + 4);
