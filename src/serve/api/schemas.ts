import { z } from "zod";
import type { SpecialTokens } from "../../generate/index.js";
import type { Format, Sampling } from "../engine/conversation.js";
import { ApiError } from "../errors.js";
import { openAiHints, streamHints } from "./hints.js";

/** Fields that several endpoints share. A field that no schema names is refused. */

const [MAX_STOPS, MAX_TEXT, MAX_CHOICES] = [64, 4 << 20, 2000];

/** Dividing logits by less overflows. */
export const MIN_PENALTY = 0.01;

export const text = z.string().max(MAX_TEXT);
export const modelName = z.string().max(256).optional().describe("one of /v1/models; the first one by default");
export const tokenIds = z
  .array(z.number().int().min(0))
  .min(1)
  .max(1 << 20);

/** One text or several, or the tokens of one or several, as a list. */
export function textsOrTokens(
  input: string | readonly number[] | readonly (string | readonly number[])[],
): readonly (string | readonly number[])[] {
  if (typeof input === "string") return [input];
  const isTokens = (list: typeof input): list is readonly number[] => typeof list[0] === "number";
  return isTokens(input) ? [input] : input;
}

export const seed = z
  .number()
  .int()
  .min(-1)
  .max(Number.MAX_SAFE_INTEGER)
  .nullish()
  .describe("the same seed draws the same text, but for rounding; -1 for any");

/** A number of tokens. Some clients send -1 for no limit. */
export const tokenCount = z.union([z.number().int().min(1), z.literal(-1)]).nullish();
export const countOf = (count: number | null | undefined): number | undefined =>
  count === null || count === -1 ? undefined : count;

/** Any JSON Schema. What a grammar cannot express is refused when the schema becomes one. */
export const jsonSchema = z.record(z.string(), z.unknown());

/** Fields of a JSON Schema that an answer must match, in OpenAI's chats and responses. */
export const namedSchema = {
  name: z.string().max(64),
  description: z.string().max(4096).optional(),
  strict: z.boolean().nullish(),
  schema: jsonSchema,
};

const guided = {
  guided_json: z.union([jsonSchema, text]).nullish().describe("a JSON Schema that the text must match"),
  guided_regex: z.string().nullish().describe("a regular expression that the whole text must match"),
  guided_choice: z.array(text.min(1)).min(1).max(MAX_CHOICES).nullish().describe("texts, one of which is the answer"),
  guided_grammar: z.string().nullish().describe("a grammar (GBNF) with a rule `root`"),
};
const structured = {
  json: guided.guided_json,
  regex: guided.guided_regex,
  choice: guided.guided_choice,
  grammar: guided.guided_grammar,
};

/** How the text of a prompt becomes tokens: names of llama.cpp's server and of vLLM's. */
export const specials = {
  add_special: z
    .boolean()
    .optional()
    .describe("whether to begin with the begin token, if the model has one; true by default"),
  add_special_tokens: z.boolean().optional().describe("another name of add_special"),
  parse_special: z
    .boolean()
    .optional()
    .describe("whether special tokens that are written out mean themselves; true by default"),
};

export const specialsOf = (body: {
  readonly add_special?: boolean | undefined;
  readonly add_special_tokens?: boolean | undefined;
  readonly parse_special?: boolean | undefined;
}): SpecialTokens => ({
  addSpecial: body.add_special ?? body.add_special_tokens,
  parseSpecial: body.parse_special,
});

/** Fields of completions and chats. */
export const sampling = {
  ...openAiHints,
  model: modelName,
  temperature: z.number().min(0).max(2).nullish().describe("0 always takes the most probable token; 1 by default"),
  top_p: z.number().min(0).max(1).nullish(),
  top_k: z
    .number()
    .int()
    .min(-1)
    .max(1 << 20)
    .nullish()
    .describe("0 or -1 for all"),
  min_p: z.number().min(0).max(1).nullish(),
  seed,
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  repetition_penalty: z
    .number()
    .min(MIN_PENALTY)
    .max(10)
    .nullish()
    .describe("divides the odds of tokens that were already written; 1 for no penalty"),
  logit_bias: z
    .record(z.string().regex(/^\d{1,9}$/), z.number().min(-100).max(100))
    .nullish()
    .describe("added to the logits of tokens, by their ids"),
  stop: z.union([text, z.array(text).max(MAX_STOPS)]).nullish(),
  ignore_eos: z.boolean().nullish().describe("whether to go on after the model's end token"),
  n: z.number().int().min(1).max(16).nullish().describe("number of answers"),
  stream: z.boolean().nullish(),
  stream_options: z.strictObject({ ...streamHints, include_usage: z.boolean().optional() }).nullish(),
  ...guided,
  structured_outputs: z.strictObject(structured).nullish().describe("the same as guided_json and so on"),
  nvext: z.strictObject(guided).nullish().describe("the same as guided_json and so on"),
};

type SamplingBody = { [Key in keyof typeof sampling]?: z.infer<(typeof sampling)[Key]> };

/** How tokens are drawn, as completions and chats say it. */
export const samplingOf = (body: SamplingBody): Sampling => ({
  temperature: body.temperature ?? 1,
  topP: topPOf(body.top_p),
  topK: body.top_k ? Math.max(0, body.top_k) : undefined,
  minP: body.min_p ?? undefined,
  seed: seedOf(body.seed),
  presencePenalty: body.presence_penalty ?? undefined,
  frequencyPenalty: body.frequency_penalty ?? undefined,
  repetitionPenalty: body.repetition_penalty ?? undefined,
  logitBias: body.logit_bias ?? undefined,
  stops: [body.stop ?? []].flat().filter((stop) => stop !== ""),
  ignoreEnd: body.ignore_eos ?? undefined,
});

/** A seed of 32 bits, as llama.cpp takes it: higher bits are folded in. Undefined for none. */
export const seedOf = (value: number | null | undefined): number | undefined => {
  if (value === undefined || value === null || value < 0) return undefined;
  return Number((BigInt(value) ^ (BigInt(value) >> 32n)) & 0xffff_ffffn);
};

/** 0 leaves only the most probable token; to llama.cpp it would mean all. */
export const topPOf = (value: number | null | undefined): number | undefined =>
  value === 0 ? 1e-6 : (value ?? undefined);

/**
 * The form that a body requires of its answer, by any of its fields.
 * @param format required by a field of the endpoint's own
 * @throws ApiError 400 for more than one
 */
export function guidedFormat(body: SamplingBody, format?: Format): Format | undefined {
  const { structured_outputs: outputs, nvext } = body;
  const renamed = outputs && {
    guided_json: outputs.json,
    guided_regex: outputs.regex,
    guided_choice: outputs.choice,
    guided_grammar: outputs.grammar,
  };
  const formats = [body, renamed, nvext].flatMap((from): Format[] => {
    const { guided_json: json, guided_regex: regex, guided_choice: choice, guided_grammar: grammar } = from ?? {};
    const found: Format[] = [];
    if (json) found.push({ kind: "json", schema: parsedSchema(json), param: "guided_json", isStrict: true });
    if (regex) found.push({ kind: "regex", pattern: regex, param: "guided_regex" });
    if (choice) found.push({ kind: "choice", options: choice });
    if (grammar) found.push({ kind: "grammar", text: grammar, param: "guided_grammar" });
    return found;
  });
  const all = format === undefined ? formats : [format, ...formats];
  if (all.length > 1) throw new ApiError(400, "an answer can have one form only: the request asks for several");
  return all[0];
}

function parsedSchema(schema: string | Readonly<Record<string, unknown>>): unknown {
  if (typeof schema !== "string") return schema;
  try {
    return JSON.parse(schema);
  } catch {
    throw new ApiError(400, "guided_json is not JSON", { param: "guided_json" });
  }
}
