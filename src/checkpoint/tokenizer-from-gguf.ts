import { FormatError } from "../system/errors.js";
import { storedChatTemplates } from "./chat-templates.js";
import type { GgufMetadata, GgufScalar } from "./gguf-format.js";
import { SPACE, splitMerge, TOKEN } from "./gguf-tokens.js";
import { preTokenizerNamed } from "./pre-tokenizers.js";

/** Files of a Hugging Face directory, by name. */
export type TokenizerFiles = Readonly<
  Record<"tokenizer.json" | "tokenizer_config.json" | "generation_config.json", Readonly<Record<string, unknown>>>
>;

/** The keys `tokenizer.ggml.*`, without that prefix. */
class TokenizerKeys {
  constructor(private readonly metadata: GgufMetadata) {}

  list(name: string): readonly GgufScalar[] {
    const entry = this.metadata.get(`tokenizer.ggml.${name}`);
    return entry?.kind === "array" ? entry.value : [];
  }

  scalar(name: string): GgufScalar | undefined {
    const entry = this.metadata.get(`tokenizer.ggml.${name}`);
    return entry?.kind === "array" ? undefined : entry?.value;
  }
}

/** The vocabulary, by token id. */
interface Vocabulary {
  readonly texts: readonly string[];
  readonly kindOf: (id: number) => number;
  /** The ids of the tokens in use. */
  readonly ids: Readonly<Record<string, number>>;
}

/**
 * The tokenizer that GGUF metadata describes, as the files of a model directory.
 * @throws FormatError when it is of an unknown kind, or its parts do not fit together
 */
export function tokenizerFiles(file: string, metadata: GgufMetadata): TokenizerFiles {
  const keys = new TokenizerKeys(metadata);
  const vocabulary = vocabularyOf(file, keys);
  const textAt = (name: string): string | undefined => {
    const id = keys.scalar(name);
    return typeof id === "number" ? vocabulary.texts[id] : undefined;
  };
  const family = keys.scalar("model");
  if (family !== "llama" && family !== "gpt2")
    throw new FormatError(
      `${file}: its tokenizer is of the kind ${JSON.stringify(family)}; only "llama" and "gpt2" are supported`,
    );
  const tokens = {
    bos_token: textAt("bos_token_id"),
    eos_token: textAt("eos_token_id"),
    unk_token: textAt("unknown_token_id"),
    pad_token: textAt("padding_token_id"),
  };
  const definition =
    family === "llama"
      ? sentencePieceDefinition(file, keys, vocabulary, tokens.unk_token)
      : byteLevelDefinition(file, keys, vocabulary);
  const addsBos = (keys.scalar("add_bos_token") ?? addsBosByDefault(family, keys.scalar("pre"))) === true;
  const chat = metadata.get("tokenizer.chat_template")?.value;
  const addsEos = keys.scalar("add_eos_token") === true;
  // chat models end a turn by another token than a text
  const named = ["eos_token_id", "eot_token_id", "eom_token_id"].map((name) => keys.scalar(name));
  const ends = [...new Set([...named, ...(typeof chat === "string" ? turnEnds(vocabulary) : [])])].filter(
    (id) => typeof id === "number",
  );
  return {
    "tokenizer.json": {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: addedTokens(vocabulary),
      ...definition,
      post_processor: framing(
        addsBos ? special(tokens.bos_token, keys.scalar("bos_token_id")) : undefined,
        addsEos ? special(tokens.eos_token, keys.scalar("eos_token_id")) : undefined,
      ),
    },
    "tokenizer_config.json": withoutUndefined({
      tokenizer_class: "PreTrainedTokenizerFast",
      ...tokens,
      clean_up_tokenization_spaces: false,
      chat_template: storedChatTemplates(metadata),
    }),
    "generation_config.json": withoutUndefined({
      bos_token_id: keys.scalar("bos_token_id"),
      eos_token_id: ends.length > 1 ? ends : ends[0],
    }),
  };
}

/** What tokens are called that end a turn or a text, in models of several makers. Many files do not say which theirs is. */
const TURN_ENDS = [
  "<|im_end|>",
  "<|eot_id|>",
  "<|end|>",
  "<end_of_turn>",
  "<end_of_utterance>",
  "<|endoftext|>",
  "<|end_of_text|>",
  "<|eom_id|>",
  "<EOT>",
  "<｜end▁of▁sentence｜>",
];
/** gpt-oss ends a message by `<|end|>` and goes on; a turn by this. */
const RETURN = "<|return|>";

/** Ids of the tokens that end a turn or a text, known by their names as in llama.cpp (llama_vocab::impl::load). */
function turnEnds({ ids, kindOf }: Vocabulary): number[] {
  const names = ids[RETURN] === undefined ? TURN_ENDS : TURN_ENDS.filter((name) => name !== "<|end|>");
  return names.flatMap((name) => {
    const id = ids[name];
    // many files have them as texts like any other, and llama.cpp takes them for what they are called all the same
    return id !== undefined && kindOf(id) !== TOKEN.byte ? [id] : [];
  });
}

/** Pre-tokenizers whose models begin texts with a token where the file does not say (llama.cpp's llama_vocab::impl::load). */
const ADDING_BOS = "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 tekken".split(" ");
const addsBosByDefault = (family: string, preTokenizer: unknown): boolean =>
  family === "llama" || ADDING_BOS.some((name) => name === preTokenizer);

const withoutUndefined = (fields: Readonly<Record<string, unknown>>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

function vocabularyOf(file: string, keys: TokenizerKeys): Vocabulary {
  const texts = keys.list("tokens").map(String);
  if (texts.length === 0) throw new FormatError(`${file} has no tokenizer (tokenizer.ggml.tokens)`);
  const kinds = keys.list("token_type").map(Number);
  const kindOf = (id: number): number => kinds[id] ?? TOKEN.normal;
  const ids: Record<string, number> = Object.create(null);
  texts.forEach((text, id) => {
    if (kindOf(id) !== TOKEN.unused) ids[text] ??= id;
  });
  return { texts, kindOf, ids };
}

/** Tokens that are found in a text before it is split into words. */
function addedTokens({ texts, kindOf }: Vocabulary) {
  const added: readonly number[] = [TOKEN.control, TOKEN.userDefined, TOKEN.unknown];
  return texts
    .map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: kindOf(id) !== TOKEN.userDefined,
    }))
    .filter(({ id }) => added.includes(kindOf(id)));
}

interface SpecialToken {
  readonly text: string;
  readonly id: number;
}

const special = (text: string | undefined, id: unknown): SpecialToken | undefined =>
  text === undefined ? undefined : { text, id: Number(id) };

/** Puts tokens before and after each text; null where there are none. */
function framing(before: SpecialToken | undefined, after: SpecialToken | undefined) {
  if (before === undefined && after === undefined) return null;
  const piece = (token: SpecialToken | undefined) =>
    token === undefined ? [] : [{ SpecialToken: { id: token.text, type_id: 0 } }];
  const [begin, end] = [piece(before), piece(after)];
  const text = { Sequence: { id: "A", type_id: 0 } };
  return {
    type: "TemplateProcessing",
    single: [...begin, text, ...end],
    pair: [...begin, text, ...end, { Sequence: { id: "B", type_id: 1 } }, ...end],
    special_tokens: Object.fromEntries(
      [before, after].flatMap((token) =>
        token === undefined ? [] : [[token.text, { id: token.text, ids: [token.id], tokens: [token.text] }]],
      ),
    ),
  };
}

/** Trying every way to cut a token in two takes time that grows with the square of its length. */
const MAX_TOKEN_LENGTH = 1024;

/** Every way to join two tokens into another, best scores first. */
function mergesByScore({ texts, kindOf, ids }: Vocabulary, scores: readonly number[]): (readonly [string, string])[] {
  const merges: { readonly pair: readonly [string, string]; readonly score: number; readonly id: number }[] = [];
  texts.forEach((text, id) => {
    if (kindOf(id) !== TOKEN.normal) return;
    let at = 0;
    for (const letter of text) {
      const [left, right] = [text.slice(0, at), text.slice(at)];
      if (at > 0 && left in ids && right in ids) merges.push({ pair: [left, right], score: scores[id] ?? 0, id });
      at += letter.length;
    }
  });
  return merges.sort((a, b) => b.score - a.score || a.id - b.id).map(({ pair }) => pair);
}

/** @param unknownToken that the metadata names; otherwise the first of that kind */
function sentencePieceDefinition(
  file: string,
  keys: TokenizerKeys,
  vocabulary: Vocabulary,
  unknownToken: string | undefined,
) {
  const { texts, kindOf, ids } = vocabulary;
  const long = texts.find((text, id) => kindOf(id) === TOKEN.normal && text.length > MAX_TOKEN_LENGTH);
  if (long !== undefined)
    throw new FormatError(
      `${file}: its tokenizer has a token of ${long.length} characters; at most ${MAX_TOKEN_LENGTH} are expected`,
    );
  const addsPrefix = keys.scalar("add_space_prefix") !== false;
  const replace = { type: "Replace", pattern: { String: " " }, content: SPACE };
  return {
    normalizer: {
      type: "Sequence",
      normalizers: [...(addsPrefix ? [{ type: "Prepend", prepend: SPACE }] : []), replace],
    },
    pre_tokenizer: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: SPACE }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(addsPrefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: unknownToken ?? texts.find((_, id) => kindOf(id) === TOKEN.unknown) ?? null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: ids,
      merges: mergesByScore(vocabulary, keys.list("scores").map(Number)),
    },
  };
}

function byteLevelDefinition(file: string, keys: TokenizerKeys, { ids }: Vocabulary) {
  const name = String(keys.scalar("pre") ?? "default");
  const preTokenizer = preTokenizerNamed(name);
  if (preTokenizer === undefined)
    throw new FormatError(`${file}: its tokenizer has the pre-tokenizer "${name}", which is not known here`);
  const bytes = (useRegex: boolean) => ({
    type: "ByteLevel",
    add_prefix_space: false,
    trim_offsets: true,
    use_regex: useRegex,
  });
  const steps = preTokenizer.steps.map((step) => {
    if (step === "gpt2") return bytes(true);
    if (step === "digits") return { type: "Digits", individual_digits: true };
    return { type: "Split", pattern: { Regex: step.split }, behavior: "Isolated", invert: false };
  });
  if (!preTokenizer.steps.includes("gpt2")) steps.push(bytes(false));
  return {
    normalizer: null,
    pre_tokenizer: steps.length === 1 ? steps[0] : { type: "Sequence", pretokenizers: steps },
    decoder: bytes(true),
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: preTokenizer.ignoreMerges ?? true,
      vocab: ids,
      merges: keys.list("merges").map((merge) => splitMerge(String(merge))),
    },
  };
}
