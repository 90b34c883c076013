import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { CoppiceError, FormatError } from "../system/errors.js";
import { complaint } from "../system/schema.js";
import { type GgufMetadata, type GgufScalar, type GgufValue, gguf } from "./gguf.js";
import { readJsonObject } from "./json.js";
import { type PreTokenizerStep, preTokenizerNamed, preTokenizerOf } from "./pre-tokenizers.js";

/**
 * Tokenizers between Hugging Face's `tokenizer.json` and GGUF metadata, both ways. Two families: SentencePiece-like BPE with
 * byte fallback ("llama" in GGUF), and byte-level BPE ("gpt2").
 */

/** Kinds of tokens, as GGUF numbers them. */
const TOKEN = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;
/** What stands for a space in SentencePiece's tokens. */
const SPACE = "▁";

const merge = z.union([z.string(), z.tuple([z.string(), z.string()])]);
const definitionSchema = z.looseObject({
  added_tokens: z
    .array(z.looseObject({ id: z.number().int().min(0), content: z.string(), special: z.boolean().default(false) }))
    .nullish(),
  normalizer: z.unknown().optional(),
  pre_tokenizer: z.unknown().optional(),
  post_processor: z.unknown().optional(),
  model: z.looseObject({
    type: z.string().nullish(),
    vocab: z.record(z.string(), z.number().int().min(0)),
    merges: z.array(merge).default([]),
    byte_fallback: z.boolean().nullish(),
    ignore_merges: z.boolean().nullish(),
    unk_token: z.string().nullish(),
  }),
});
type Definition = z.infer<typeof definitionSchema>;

/** A node of `normalizer`, `pre_tokenizer` or `post_processor`. */
type Step = Readonly<Record<string, unknown>>;

/** The steps of a node, those of sequences in a row. */
function stepsOf(node: unknown): Step[] {
  if (typeof node !== "object" || node === null) return [];
  const step = node as Step;
  const inner = step.normalizers ?? step.pretokenizers ?? step.processors;
  return step.type === "Sequence" && Array.isArray(inner) ? inner.flatMap(stepsOf) : [step];
}

export interface TokenizerMetadata {
  readonly entries: readonly (readonly [string, GgufValue])[];
  /** Where llama.cpp may tokenize otherwise. */
  readonly notes: readonly string[];
}

/**
 * A model directory's tokenizer as GGUF metadata.
 * @param preTokenizer llama.cpp's name for the way a text is cut into words, where it is not recognised
 * @throws CoppiceError when the tokenizer is of a kind that llama.cpp does not have
 */
export function tokenizerMetadata(
  directory: string,
  config: Readonly<Record<string, unknown>>,
  vocabSize: number,
  preTokenizer?: string,
): TokenizerMetadata {
  const file = path.join(directory, "tokenizer.json");
  if (!existsSync(file)) throw new CoppiceError(`${directory} has no tokenizer.json, which a GGUF file needs`);
  const parsed = definitionSchema.safeParse(readJsonObject(file));
  if (!parsed.success)
    throw new FormatError(
      `${file} ${complaint(parsed.error, readJsonObject(file))}; only BPE tokenizers are written to GGUF`,
    );
  const definition = parsed.data;
  if ((definition.model.type ?? "BPE") !== "BPE")
    throw new CoppiceError(`${file}: a ${definition.model.type} tokenizer cannot be written to GGUF, only BPE`);
  const tokens = tokenTable(file, definition, vocabSize);
  const family =
    definition.model.byte_fallback === true
      ? sentencePiece(definition, tokens)
      : byteLevel(file, definition, tokens, preTokenizer);
  const special = specialTokens(directory, config, definition, vocabSize);
  return { entries: [...family.entries, ...special], notes: [...tokens.notes, ...family.notes] };
}

interface TokenTable {
  readonly texts: string[];
  readonly kinds: number[];
  readonly notes: readonly string[];
}

function tokenTable(file: string, { model, added_tokens }: Definition, vocabSize: number): TokenTable {
  const texts = Array.from({ length: vocabSize }, (_, id) => `[PAD${id}]`);
  const kinds = Array.from<number>({ length: vocabSize }).fill(TOKEN.unused);
  const put = (id: number, text: string, kind: number): void => {
    if (id >= vocabSize)
      throw new FormatError(`${file}: token ${id} lies outside the model's vocabulary of ${vocabSize}`);
    texts[id] = text;
    kinds[id] = kind;
  };
  for (const [text, id] of Object.entries(model.vocab)) put(id, text, TOKEN.normal);
  // Gemma's tokenizer has a token for images that its models of text alone have no row for
  const beyond: string[] = [];
  for (const { id, content, special } of added_tokens ?? [])
    if (id < vocabSize) put(id, content, special ? TOKEN.control : TOKEN.userDefined);
    else beyond.push(content);
  const several = beyond.length > 1 ? ` and ${beyond.length - 1} more` : "";
  return {
    texts,
    kinds,
    notes:
      beyond.length === 0
        ? []
        : [
            `the tokenizer's ${beyond[0]}${several}, outside the model's vocabulary of ${vocabSize} tokens, are left out`,
          ],
  };
}

const tableEntries = ({ texts, kinds }: Omit<TokenTable, "notes">): [string, GgufValue][] => [
  ["tokenizer.ggml.tokens", gguf.strings(texts)],
  ["tokenizer.ggml.token_type", gguf.numbers("int32", kinds)],
];

const pairOf = (entry: z.infer<typeof merge>): readonly [string, string] => {
  if (typeof entry !== "string") return entry;
  const at = entry.indexOf(" ", 1); // the first half may itself begin with a space
  return [entry.slice(0, at), entry.slice(at + 1)];
};

const patternOf = (step: Step): Step => (step.pattern ?? {}) as Step;
const isSpaceReplacement = (step: Step): boolean =>
  step.type === "Replace" && step.content === SPACE && patternOf(step).String === " ";
/** Where every space has been replaced, this finds none. */
const cutsAtSpaces = (step: Step): boolean => step.type === "Split" && patternOf(step).String === " ";

/** llama.cpp merges the pair whose token has the highest score: minus the rank of the merge that makes it. */
function sentencePiece(definition: Definition, table: TokenTable): TokenizerMetadata {
  const { model } = definition;
  const rank = new Map<string, number>();
  model.merges.forEach((entry, i) => {
    const text = pairOf(entry).join("");
    if (!rank.has(text)) rank.set(text, i);
  });
  const kinds = table.kinds.map((kind, id) => {
    const text = table.texts[id] ?? "";
    if (text === model.unk_token) return TOKEN.unknown;
    return kind === TOKEN.normal && /^<0x[0-9A-F]{2}>$/.test(text) ? TOKEN.byte : kind;
  });
  const scores = table.texts.map((text, id) => {
    if (kinds[id] !== TOKEN.normal) return 0;
    return -(rank.get(text) ?? model.merges.length + id);
  });
  // llama.cpp looks for these before it replaces spaces
  const texts = table.texts.map((text, id) => (kinds[id] === TOKEN.userDefined ? text.replaceAll(SPACE, " ") : text));
  const normalizers = stepsOf(definition.normalizer);
  const cuts = stepsOf(definition.pre_tokenizer);
  const metaspace = cuts.find(({ type }) => type === "Metaspace");
  const prefix =
    metaspace === undefined
      ? normalizers.some(({ type, prepend }) => type === "Prepend" && prepend === SPACE)
      : metaspace.prepend_scheme !== "never" && metaspace.add_prefix_space !== false;
  const replaced = normalizers.some(isSpaceReplacement);
  const unknown = [
    ...normalizers.filter((step) => step.type !== "Prepend" && !isSpaceReplacement(step)),
    ...cuts.filter((step) => step !== metaspace && !(replaced && cutsAtSpaces(step))),
  ];
  return {
    entries: [
      ["tokenizer.ggml.model", gguf.string("llama")],
      ["tokenizer.ggml.pre", gguf.string("default")],
      ...tableEntries({ texts, kinds }),
      ["tokenizer.ggml.scores", gguf.numbers("float32", scores)],
      ["tokenizer.ggml.add_space_prefix", gguf.bool(prefix)],
    ],
    notes: unknown.map(({ type }) => `the tokenizer's step ${type} has no counterpart in llama.cpp`),
  };
}

function byteLevel(
  file: string,
  definition: Definition,
  table: TokenTable,
  given: string | undefined,
): TokenizerMetadata {
  const { model } = definition;
  const steps = wordSteps(stepsOf(definition.pre_tokenizer));
  const known =
    given === undefined ? steps && preTokenizerOf(steps, model.ignore_merges === true) : preTokenizerNamed(given);
  const name = given ?? known?.name;
  if (name === undefined)
    throw new CoppiceError(
      `${file}: its way to cut a text into words is not among those known here, so llama.cpp would tokenize otherwise: ` +
        `name the one of llama.cpp's that fits (--pre-tokenizer NAME), or none of them does. It is ${JSON.stringify(definition.pre_tokenizer)?.slice(0, 600)}`,
    );
  return {
    entries: [
      ["tokenizer.ggml.model", gguf.string("gpt2")],
      ["tokenizer.ggml.pre", gguf.string(name)],
      ...tableEntries(table),
      ["tokenizer.ggml.merges", gguf.strings(model.merges.map((entry) => pairOf(entry).join(" ")))],
    ],
    notes: [
      ...stepsOf(definition.normalizer).map(
        ({ type }) =>
          `the tokenizer normalises texts (${type}), llama.cpp does not: texts not in that form get other tokens`,
      ),
      ...(known?.differsOn ? [`llama.cpp cuts ${known.differsOn.what} otherwise, and gives them other tokens`] : []),
    ],
  };
}

/** What a byte-level pre-tokenizer does, or undefined where it does something else too. */
function wordSteps(steps: readonly Step[]): PreTokenizerStep[] | undefined {
  const result: PreTokenizerStep[] = [];
  for (const step of steps) {
    const pattern = (step.pattern as Step | undefined)?.Regex;
    const isolates =
      (step.behavior === "Isolated" && step.invert !== true) || (step.behavior === "Removed" && step.invert === true);
    if (step.type === "Split" && typeof pattern === "string" && isolates) result.push({ split: pattern });
    else if (step.type === "Digits" && step.individual_digits === true) result.push("digits");
    else if (step.type === "ByteLevel" && step.add_prefix_space !== true) {
      if (step.use_regex !== false) result.push("gpt2");
    } else return undefined;
  }
  return result;
}

/** The text of a token in tokenizer_config.json: a string, or an object with its content. */
function contentOf(token: unknown): string | undefined {
  const content = typeof token === "object" && token !== null ? (token as Step).content : token;
  return typeof content === "string" ? content : undefined;
}

/** Ids in config.json and generation_config.json: one, or a list. */
const idsOf = (value: unknown): number[] => [value].flat().filter((id) => typeof id === "number");

function specialTokens(
  directory: string,
  config: Readonly<Record<string, unknown>>,
  definition: Definition,
  vocabSize: number,
): (readonly [string, GgufValue])[] {
  const optional = (name: string): Step => {
    const file = path.join(directory, name);
    return existsSync(file) ? readJsonObject(file) : {};
  };
  const settings = optional("tokenizer_config.json");
  const added = new Map((definition.added_tokens ?? []).map(({ content, id }) => [content, id]));
  const idOf = (text: string | undefined): number | undefined =>
    text === undefined ? undefined : (added.get(text) ?? definition.model.vocab[text]);
  const template = stepsOf(definition.post_processor).find(({ type }) => type === "TemplateProcessing");
  const single = (Array.isArray(template?.single) ? template.single : []) as {
    readonly SpecialToken?: { readonly id: string } | undefined;
  }[];
  const [first, last] = [single[0]?.SpecialToken?.id, single.at(-1)?.SpecialToken?.id];
  const stops = idsOf(optional("generation_config.json").eos_token_id);
  const bos = idOf(first) ?? idOf(contentOf(settings.bos_token)) ?? idsOf(config.bos_token_id)[0];
  const eos = idOf(contentOf(settings.eos_token)) ?? idsOf(config.eos_token_id)[0] ?? stops[0];
  const ids = {
    bos,
    eos,
    eot: stops.find((id) => id !== eos),
    unknown: idOf(definition.model.unk_token ?? contentOf(settings.unk_token)),
    padding: idOf(contentOf(settings.pad_token)),
  };
  for (const [name, id] of Object.entries(ids))
    if (id !== undefined && !(Number.isInteger(id) && id >= 0 && id < vocabSize))
      throw new FormatError(
        `${directory}: the ${name} token has the number ${id}, beyond the vocabulary of ${vocabSize} tokens: correct ${name}_token_id in config.json or generation_config.json`,
      );
  const chat = chatTemplate(directory, settings);
  return [
    ...Object.entries(ids).flatMap(([name, id]) =>
      id === undefined ? [] : [[`tokenizer.ggml.${name}_token_id`, gguf.uint32(id)] as const],
    ),
    ["tokenizer.ggml.add_bos_token", gguf.bool(first !== undefined && idOf(first) === bos)],
    ["tokenizer.ggml.add_eos_token", gguf.bool(single.length > 1 && last !== undefined && idOf(last) === eos)],
    ...(chat === undefined ? [] : [["tokenizer.chat_template", gguf.string(chat)] as const]),
  ];
}

function chatTemplate(directory: string, settings: Step): string | undefined {
  const file = path.join(directory, "chat_template.jinja");
  if (existsSync(file)) return readFileSync(file, "utf8");
  const { chat_template: given } = settings;
  if (typeof given === "string") return given;
  const named = Array.isArray(given) ? (given as Step[]) : [];
  const chosen = (named.find(({ name }) => name === "default") ?? named[0])?.template;
  return typeof chosen === "string" ? chosen : undefined;
}

/** Files of a Hugging Face directory, by name. */
export type TokenizerFiles = Readonly<
  Record<"tokenizer.json" | "tokenizer_config.json", Readonly<Record<string, unknown>>>
>;

/**
 * The tokenizer that GGUF metadata describes, as a model directory has it.
 * @throws FormatError when it is of another kind, or its parts do not fit together
 */
export function tokenizerFiles(file: string, metadata: GgufMetadata): TokenizerFiles {
  const list = (name: string): readonly GgufScalar[] => {
    const entry = metadata.get(`tokenizer.ggml.${name}`);
    return entry?.kind === "array" ? entry.value : [];
  };
  const scalar = (name: string): GgufScalar | undefined => {
    const entry = metadata.get(`tokenizer.ggml.${name}`);
    return entry?.kind === "array" ? undefined : entry?.value;
  };
  const texts = list("tokens").map(String);
  const kinds = list("token_type").map(Number);
  if (texts.length === 0) throw new FormatError(`${file} has no tokenizer (tokenizer.ggml.tokens)`);
  const kindOf = (id: number): number => kinds[id] ?? TOKEN.normal;
  const textOf = (id: GgufScalar | undefined): string | undefined => (typeof id === "number" ? texts[id] : undefined);
  const family = scalar("model");
  if (family !== "llama" && family !== "gpt2")
    throw new FormatError(
      `${file}: its tokenizer is of the kind ${JSON.stringify(family)}; "llama" and "gpt2" are read`,
    );
  const isAdded = (id: number) => [TOKEN.control, TOKEN.userDefined, TOKEN.unknown].some((kind) => kind === kindOf(id));
  const added = texts.flatMap((content, id) =>
    isAdded(id)
      ? [
          {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: kindOf(id) !== TOKEN.userDefined,
          },
        ]
      : [],
  );
  const vocab: Record<string, number> = Object.create(null);
  texts.forEach((text, id) => {
    if (kindOf(id) !== TOKEN.unused) vocab[text] ??= id;
  });
  const bos = scalar("bos_token_id");
  const tokens = {
    ...{ bos_token: textOf(bos), eos_token: textOf(scalar("eos_token_id")) },
    ...{ unk_token: textOf(scalar("unknown_token_id")), pad_token: textOf(scalar("padding_token_id")) },
  };
  const definition =
    family === "llama"
      ? sentencePieceDefinition(texts, kinds, list("scores").map(Number), vocab, {
          unknown: tokens.unk_token ?? texts.find((_, id) => kindOf(id) === TOKEN.unknown),
          prefix: scalar("add_space_prefix") !== false,
        })
      : byteLevelDefinition(file, String(scalar("pre") ?? "default"), vocab, list("merges").map(String));
  const addBos = scalar("add_bos_token") ?? family === "llama";
  const chat = metadata.get("tokenizer.chat_template")?.value;
  return {
    "tokenizer.json": {
      ...{ version: "1.0", truncation: null, padding: null, added_tokens: added },
      ...definition,
      post_processor:
        addBos === true && tokens.bos_token !== undefined ? startingWith(tokens.bos_token, Number(bos)) : null,
    },
    "tokenizer_config.json": {
      tokenizer_class: "PreTrainedTokenizerFast",
      ...Object.fromEntries(Object.entries(tokens).filter(([, text]) => text !== undefined)),
      clean_up_tokenization_spaces: false,
      ...(typeof chat === "string" && { chat_template: chat }),
    },
  };
}

const startingWith = (token: string, id: number) => ({
  type: "TemplateProcessing",
  single: [{ SpecialToken: { id: token, type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
  pair: [
    { SpecialToken: { id: token, type_id: 0 } },
    { Sequence: { id: "A", type_id: 0 } },
    { Sequence: { id: "B", type_id: 1 } },
  ],
  special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
});

function sentencePieceDefinition(
  texts: readonly string[],
  kinds: readonly number[],
  scores: readonly number[],
  vocab: Readonly<Record<string, number>>,
  { unknown, prefix }: { readonly unknown: string | undefined; readonly prefix: boolean },
) {
  // every way to make a token of two others, best scores first
  const merges: { readonly pair: readonly [string, string]; readonly score: number; readonly id: number }[] = [];
  texts.forEach((text, id) => {
    if ((kinds[id] ?? TOKEN.normal) !== TOKEN.normal) return;
    let at = 0;
    for (const letter of text) {
      const [left, right] = [text.slice(0, at), text.slice(at)];
      if (at > 0 && left in vocab && right in vocab) merges.push({ pair: [left, right], score: scores[id] ?? 0, id });
      at += letter.length;
    }
  });
  merges.sort((a, b) => b.score - a.score || a.id - b.id);
  const replace = { type: "Replace", pattern: { String: " " }, content: SPACE };
  return {
    normalizer: { type: "Sequence", normalizers: [...(prefix ? [{ type: "Prepend", prepend: SPACE }] : []), replace] },
    pre_tokenizer: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: SPACE }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(prefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      ...{ type: "BPE", dropout: null, unk_token: unknown ?? null, continuing_subword_prefix: null },
      ...{ end_of_word_suffix: null, fuse_unk: true, byte_fallback: true, ignore_merges: false },
      vocab,
      merges: merges.map(({ pair }) => pair),
    },
  };
}

function byteLevelDefinition(
  file: string,
  name: string,
  vocab: Readonly<Record<string, number>>,
  merges: readonly string[],
) {
  const way = preTokenizerNamed(name);
  if (way === undefined)
    throw new FormatError(`${file}: its tokenizer cuts texts into words in the way "${name}", which is not known here`);
  const bytes = (useRegex: boolean) => ({
    ...{ type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: useRegex },
  });
  const steps = way.steps.map((step) => {
    if (step === "gpt2") return bytes(true);
    if (step === "digits") return { type: "Digits", individual_digits: true };
    return { type: "Split", pattern: { Regex: step.split }, behavior: "Isolated", invert: false };
  });
  if (!way.steps.includes("gpt2")) steps.push(bytes(false));
  return {
    normalizer: null,
    pre_tokenizer: steps.length === 1 ? steps[0] : { type: "Sequence", pretokenizers: steps },
    decoder: bytes(true),
    model: {
      ...{ type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null },
      ...{ fuse_unk: false, byte_fallback: false, ignore_merges: way.ignoreMerges ?? true },
      vocab,
      merges: merges.map((text) => pairOf(text)),
    },
  };
}
