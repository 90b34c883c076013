import { z } from "zod";
import type { SpecialTokens } from "../../generate/index.js";
import type { Format, Sampling } from "../engine/conversation.js";
import { ApiError } from "../errors.js";
import { openAiHints, streamHints } from "./hints.js";

/** What several endpoints take. Every field is named here or there; one that is not is refused. */

const [MOST_STOPS, MOST_TEXT, MOST_CHOICES] = [64, 4 << 20, 2000];

/** Logits divided by less overflow. */
export const LEAST_PENALTY = 0.01;

export const text = z.string().max(MOST_TEXT);
export const modelName = z.string().max(256).optional().describe("one of /v1/models; the first where it is left out");
export const tokenIds = z
  .array(z.number().int().min(0))
  .min(1)
  .max(1 << 20);

export const seed = z
  .number()
  .int()
  .min(-1)
  .max(Number.MAX_SAFE_INTEGER)
  .nullish()
  .describe("the same seed, the same text; -1 for any");

/** A number of tokens. Some clients say -1 where they mean no limit. */
export const tokenCount = z.union([z.number().int().min(1), z.literal(-1)]).nullish();
export const countOf = (given: number | null | undefined): number | undefined =>
  given === null || given === -1 ? undefined : given;

/** Any JSON Schema: what a grammar cannot say is refused when it is made one. */
export const jsonSchema = z.record(z.string(), z.unknown());

const guided = {
  guided_json: z.union([jsonSchema, text]).nullish().describe("a JSON Schema that the text must match"),
  guided_regex: z.string().nullish().describe("a regular expression that the whole text must match"),
  guided_choice: z.array(text.min(1)).min(1).max(MOST_CHOICES).nullish().describe("texts, one of which is written"),
  guided_grammar: z.string().nullish().describe("a grammar (GBNF) with a rule root"),
};
const structured = {
  json: guided.guided_json,
  regex: guided.guided_regex,
  choice: guided.guided_choice,
  grammar: guided.guided_grammar,
};

/** How the text of a prompt becomes tokens: names of llama.cpp's server and of vLLM's. */
export const specials = {
  add_special: z.boolean().optional().describe("puts the begin token there, where the model has one; true"),
  add_special_tokens: z.boolean().optional().describe("another name of add_special"),
  parse_special: z.boolean().optional().describe("special tokens that are written out mean themselves; true"),
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
  temperature: z
    .number()
    .min(0)
    .max(2)
    .nullish()
    .describe("0 takes the most probable token always; 1 where it is left out"),
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
    .min(LEAST_PENALTY)
    .max(10)
    .nullish()
    .describe("divides the odds of what was written; 1 for none"),
  logit_bias: z
    .record(z.string().regex(/^\d{1,9}$/), z.number().min(-100).max(100))
    .nullish()
    .describe("added to logits, by the tokens' ids"),
  stop: z.union([text, z.array(text).max(MOST_STOPS)]).nullish(),
  ignore_eos: z.boolean().nullish().describe("goes on after the model's own end"),
  n: z.number().int().min(1).max(16).nullish().describe("how many answers"),
  stream: z.boolean().nullish(),
  stream_options: z.strictObject({ ...streamHints, include_usage: z.boolean().optional() }).nullish(),
  ...guided,
  structured_outputs: z.strictObject(structured).nullish().describe("the same as guided_json and so on"),
  nvext: z.strictObject(guided).nullish().describe("the same as guided_json and so on"),
};

type SamplingBody = { [Key in keyof typeof sampling]?: z.infer<(typeof sampling)[Key]> };

/** What is common to all of OpenAI's bodies about how tokens are drawn. */
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

/** llama.cpp takes 32 bits; those above are folded in. */
export const seedOf = (given: number | null | undefined): number | undefined => {
  if (given === undefined || given === null || given < 0) return undefined;
  return Number((BigInt(given) ^ (BigInt(given) >> 32n)) & 0xffff_ffffn);
};

/** 0 leaves the most probable token only; to llama.cpp it would mean all. */
export const topPOf = (given: number | null | undefined): number | undefined =>
  given === 0 ? 1e-6 : (given ?? undefined);

/** The form that a body asks for by any of its fields. @throws ApiError 400 for more than one */
export function guidedFormat(body: SamplingBody, own?: Format): Format | undefined {
  const { structured_outputs: outputs, nvext } = body;
  const renamed = outputs && {
    guided_json: outputs.json,
    guided_regex: outputs.regex,
    guided_choice: outputs.choice,
    guided_grammar: outputs.grammar,
  };
  const formats = [body, renamed, nvext].flatMap((from): Format[] => {
    const { guided_json: json, guided_regex: regex, guided_choice: choice, guided_grammar: grammar } = from ?? {};
    return [
      ...(json ? [{ kind: "json" as const, schema: schemaOf(json), param: "guided_json", isStrict: true }] : []),
      ...(regex ? [{ kind: "regex" as const, pattern: regex, param: "guided_regex" }] : []),
      ...(choice ? [{ kind: "choice" as const, options: choice }] : []),
      ...(grammar ? [{ kind: "grammar" as const, text: grammar, param: "guided_grammar" }] : []),
    ];
  });
  const all = [...(own === undefined ? [] : [own]), ...formats];
  if (all.length > 1) throw new ApiError(400, "an answer can have one form only: the request asks for several");
  return all[0];
}

function schemaOf(given: string | Readonly<Record<string, unknown>>): unknown {
  if (typeof given !== "string") return given;
  try {
    return JSON.parse(given);
  } catch {
    throw new ApiError(400, "guided_json is no JSON", { param: "guided_json" });
  }
}
