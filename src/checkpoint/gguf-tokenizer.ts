import { existsSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { CoppiceError, FormatError } from "../system/errors.js";
import { describeSchemaError } from "../system/schema.js";
import { chatTemplateEntries, chatTemplates } from "./chat-templates.js";
import { type GgufValue, gguf } from "./gguf-format.js";
import { SPACE, splitMerge, TOKEN } from "./gguf-tokens.js";
import { readJsonObject, readOptionalJson } from "./json.js";
import { type PreTokenizerStep, preTokenizerNamed, preTokenizerOf } from "./pre-tokenizers.js";

/**
 * Hugging Face's `tokenizer.json` as GGUF metadata. There are two families: SentencePiece-like BPE with byte fallback ("llama"
 * in GGUF), and byte-level BPE ("gpt2"). `tokenizer-from-gguf.ts` goes the other way.
 */
const mergeSchema = z.union([z.string(), z.tuple([z.string(), z.string()])]);
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
    merges: z.array(mergeSchema).default([]),
    byte_fallback: z.boolean().nullish(),
    ignore_merges: z.boolean().nullish(),
    unk_token: z.string().nullish(),
  }),
});
type Definition = z.infer<typeof definitionSchema>;

/** A node of `normalizer`, `pre_tokenizer` or `post_processor`. */
type Step = Readonly<Record<string, unknown>>;

/** The steps of a node, with sequences flattened. */
function stepsOf(node: unknown): Step[] {
  if (typeof node !== "object" || node === null) return [];
  const step = node as Step;
  const inner = step.normalizers ?? step.pretokenizers ?? step.processors;
  return step.type === "Sequence" && Array.isArray(inner) ? inner.flatMap(stepsOf) : [step];
}

export interface TokenizerMetadata {
  /** Metadata by key. */
  readonly entries: readonly (readonly [string, GgufValue])[];
  /** Where llama.cpp may tokenize differently. */
  readonly notes: readonly string[];
}

/**
 * A model directory's tokenizer as GGUF metadata.
 * @param preTokenizer llama.cpp's name for how text is split into words, where it is not recognized
 * @throws CoppiceError when llama.cpp has no tokenizer of this kind
 */
export function tokenizerMetadata(
  directory: string,
  config: Readonly<Record<string, unknown>>,
  vocabSize: number,
  preTokenizer?: string,
): TokenizerMetadata {
  const file = path.join(directory, "tokenizer.json");
  if (!existsSync(file))
    throw new CoppiceError(
      `${directory} has no tokenizer.json, which llama.cpp's files need; convert its tokenizer with transformers' \`save_pretrained\``,
    );
  const parsed = definitionSchema.safeParse(readJsonObject(file));
  if (!parsed.success)
    throw new FormatError(
      `${file} ${describeSchemaError(parsed.error, readJsonObject(file))}; only BPE tokenizers can be written to GGUF`,
    );
  const definition = parsed.data;
  if ((definition.model.type ?? "BPE") !== "BPE")
    throw new CoppiceError(`${file}: a ${definition.model.type} tokenizer cannot be written to GGUF, only BPE`);
  const tokens = tokenTable(file, definition, vocabSize);
  const family =
    definition.model.byte_fallback === true
      ? sentencePieceMetadata(definition, tokens)
      : byteLevelMetadata(file, definition, tokens, preTokenizer);
  const special = specialTokenMetadata(directory, config, definition, vocabSize);
  const notes = [...tokens.notes, ...family.notes, ...special.notes, ...mistralNotes(directory, config, family)];
  return { entries: [...family.entries, ...special.entries], notes };
}

/** The vocabulary, by token id. */
interface TokenTable {
  readonly texts: readonly string[];
  readonly kinds: readonly number[];
  readonly notes: readonly string[];
}

function tokenTable(file: string, { model, added_tokens }: Definition, vocabSize: number): TokenTable {
  const texts = Array.from({ length: vocabSize }, (_, id) => `[PAD${id}]`);
  const kinds = Array.from<number>({ length: vocabSize }).fill(TOKEN.unused);
  const set = (id: number, text: string, kind: number): void => {
    if (id >= vocabSize)
      throw new FormatError(`${file}: token ${id} lies outside the model's vocabulary of ${vocabSize} tokens`);
    texts[id] = text;
    kinds[id] = kind;
  };
  for (const [text, id] of Object.entries(model.vocab)) set(id, text, TOKEN.normal);
  // Gemma's tokenizer has a token for images, for which its text-only models have no row
  const beyond: string[] = [];
  for (const { id, content, special } of added_tokens ?? [])
    if (id < vocabSize) set(id, content, special ? TOKEN.control : TOKEN.userDefined);
    else beyond.push(content);
  return { texts, kinds, notes: beyond.length === 0 ? [] : [omissionNote(beyond, vocabSize)] };
}

function omissionNote(tokens: readonly string[], vocabSize: number): string {
  const more = tokens.length > 1 ? ` and ${tokens.length - 1} more` : "";
  return `left out as outside the model's vocabulary of ${vocabSize} tokens: the tokenizer's ${tokens[0]}${more}`;
}

const tableEntries = ({ texts, kinds }: Omit<TokenTable, "notes">): [string, GgufValue][] => [
  ["tokenizer.ggml.tokens", gguf.strings(texts)],
  ["tokenizer.ggml.token_type", gguf.numbers("int32", kinds)],
];

const halvesOf = (merge: z.infer<typeof mergeSchema>): readonly [string, string] =>
  typeof merge === "string" ? splitMerge(merge) : merge;

const patternOf = (step: Step): Step => (step.pattern ?? {}) as Step;
const isSpaceReplacement = (step: Step): boolean =>
  step.type === "Replace" && step.content === SPACE && patternOf(step).String === " ";
/** Splits at spaces: this does nothing where every space has been replaced. */
const splitsAtSpaces = (step: Step): boolean => step.type === "Split" && patternOf(step).String === " ";

/** llama.cpp first merges the pair whose token has the highest score. A token's score is minus the rank of its merge. */
function sentencePieceMetadata(definition: Definition, table: TokenTable): TokenizerMetadata {
  const { model } = definition;
  const rank = new Map<string, number>();
  model.merges.forEach((merge, i) => {
    const text = halvesOf(merge).join("");
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
  // llama.cpp looks for user-defined tokens before it replaces spaces
  const texts = table.texts.map((text, id) => (kinds[id] === TOKEN.userDefined ? text.replaceAll(SPACE, " ") : text));
  const normalizers = stepsOf(definition.normalizer);
  const splits = stepsOf(definition.pre_tokenizer);
  const metaspace = splits.find(({ type }) => type === "Metaspace");
  const addsPrefix =
    metaspace === undefined
      ? normalizers.some(({ type, prepend }) => type === "Prepend" && prepend === SPACE)
      : metaspace.prepend_scheme !== "never" && metaspace.add_prefix_space !== false;
  const replacesSpaces = normalizers.some(isSpaceReplacement);
  const unknown = [
    ...normalizers.filter((step) => step.type !== "Prepend" && !isSpaceReplacement(step)),
    ...splits.filter((step) => step !== metaspace && !(replacesSpaces && splitsAtSpaces(step))),
  ];
  return {
    entries: [
      ["tokenizer.ggml.model", gguf.string("llama")],
      ["tokenizer.ggml.pre", gguf.string("default")],
      ...tableEntries({ texts, kinds }),
      ["tokenizer.ggml.scores", gguf.numbers("float32", scores)],
      ["tokenizer.ggml.add_space_prefix", gguf.bool(addsPrefix)],
    ],
    notes: unknown.map(({ type }) => `the tokenizer's step ${type} has no counterpart in llama.cpp`),
  };
}

/** @param requested llama.cpp's name of the pre-tokenizer, if the caller chose one */
function byteLevelMetadata(
  file: string,
  definition: Definition,
  table: TokenTable,
  requested: string | undefined,
): TokenizerMetadata {
  const { model } = definition;
  const steps = wordSteps(stepsOf(definition.pre_tokenizer));
  const recognized = steps && preTokenizerOf(steps, model.ignore_merges === true);
  const known = requested === undefined ? recognized : preTokenizerNamed(requested);
  const name = requested ?? known?.name;
  if (name === undefined)
    throw new CoppiceError(
      `${file}: how it splits text into words is not known here, so llama.cpp could tokenize differently. If one of llama.cpp's ` +
        `pre-tokenizers does the same, name it (--pre-tokenizer NAME). It is ${JSON.stringify(definition.pre_tokenizer)?.slice(0, 600)}`,
    );
  return {
    entries: [
      ["tokenizer.ggml.model", gguf.string("gpt2")],
      ["tokenizer.ggml.pre", gguf.string(name)],
      ...tableEntries(table),
      ["tokenizer.ggml.merges", gguf.strings(model.merges.map((merge) => halvesOf(merge).join(" ")))],
    ],
    notes: [
      ...stepsOf(definition.normalizer).map(
        ({ type }) =>
          `the tokenizer normalizes texts (${type}), llama.cpp does not: texts not in that form get other tokens`,
      ),
      ...(known?.differsOn
        ? [`llama.cpp splits ${known.differsOn.what} differently, and gives them other tokens`]
        : []),
    ],
  };
}

/** The steps of a byte-level pre-tokenizer; undefined where it has one that is not known here. */
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

function specialTokenMetadata(
  directory: string,
  config: Readonly<Record<string, unknown>>,
  definition: Definition,
  vocabSize: number,
): TokenizerMetadata {
  const settings = readOptionalJson(directory, "tokenizer_config.json");
  const added = new Map((definition.added_tokens ?? []).map(({ content, id }) => [content, id]));
  const idOf = (text: string | undefined): number | undefined =>
    text === undefined ? undefined : (added.get(text) ?? definition.model.vocab[text]);
  const template = stepsOf(definition.post_processor).find(({ type }) => type === "TemplateProcessing");
  const single = (Array.isArray(template?.single) ? template.single : []) as {
    readonly SpecialToken?: { readonly id: string } | undefined;
  }[];
  const [first, last] = [single[0]?.SpecialToken?.id, single.at(-1)?.SpecialToken?.id];
  const stops = idsOf(readOptionalJson(directory, "generation_config.json").eos_token_id);
  const bos = idOf(first) ?? idOf(contentOf(settings.bos_token)) ?? idsOf(config.bos_token_id)[0];
  const named = idOf(contentOf(settings.eos_token)) ?? idsOf(config.eos_token_id)[0] ?? stops[0];
  // llama.cpp ends texts by its end token only: one that does so in tokenizer.json is that (Qwen3-Embedding), as in its converter
  const ending = single.length > 1 ? idOf(last) : undefined;
  const eos = ending ?? named;
  const [eot, eom] = new Set([named, ...stops].filter((id) => id !== eos));
  const padding = idOf(contentOf(settings.pad_token));
  const ids = {
    bos,
    eos,
    eot,
    eom,
    unknown: idOf(definition.model.unk_token ?? contentOf(settings.unk_token)),
    // one that was added without a row of the embedding is left out, with the note on such tokens
    padding: padding !== undefined && padding < vocabSize ? padding : undefined,
  };
  for (const [name, id] of Object.entries(ids))
    if (id !== undefined && !(Number.isInteger(id) && id >= 0 && id < vocabSize))
      throw new FormatError(
        `${directory}: the ${name} token has the id ${id}, outside the vocabulary of ${vocabSize} tokens: correct ${name}_token_id in config.json or generation_config.json`,
      );
  const templates = chatTemplates(directory, settings);
  const before = single.slice(
    0,
    single.findIndex(({ SpecialToken }) => SpecialToken === undefined),
  );
  const notes: string[] = [];
  if (before.length > 1)
    notes.push(
      `texts begin with ${before.map(({ SpecialToken }) => SpecialToken?.id).join(" ")}, of which llama.cpp puts only the first there itself`,
    );
  if (first === undefined && settings.add_bos_token === true && bos !== undefined)
    notes.push(
      "tokenizer_config.json asks for a begin token that tokenizer.json does not add: neither transformers 5 nor this file adds it, transformers 4 and llama.cpp's converter do",
    );
  const entries: (readonly [string, GgufValue])[] = [
    ...Object.entries(ids).flatMap(([name, id]) =>
      id === undefined ? [] : [[`tokenizer.ggml.${name}_token_id`, gguf.uint32(id)] as const],
    ),
    ["tokenizer.ggml.add_bos_token", gguf.bool(first !== undefined && idOf(first) === bos)],
    ["tokenizer.ggml.add_eos_token", gguf.bool(ending !== undefined)],
    ...chatTemplateEntries(templates),
  ];
  return { entries, notes };
}

/** Mistral's newer models whose tokenizer.json was published with Llama 3's pattern; tekken.json, beside it, has their own. */
const MISTRAL = ["mistral", "mistral3", "ministral", "ministral3"];
const LLAMA_3_NAMES = ["llama-bpe", "dbrx"];

function mistralNotes(
  directory: string,
  config: Readonly<Record<string, unknown>>,
  { entries }: TokenizerMetadata,
): string[] {
  const name = entries.find(([key]) => key === "tokenizer.ggml.pre")?.[1].value;
  const isWrong =
    MISTRAL.includes(String(config.model_type)) &&
    LLAMA_3_NAMES.includes(String(name)) &&
    existsSync(path.join(directory, "tekken.json"));
  return isWrong
    ? [
        "tokenizer.json splits texts by Llama 3's pattern, not by that of the model's makers (transformers: fix_mistral_regex); --pre-tokenizer tekken makes llama.cpp split as they do",
      ]
    : [];
}
