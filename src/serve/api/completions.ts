import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { LoadedModel } from "../engine/model-pool.js";
import {
  fittingTokens,
  formatGrammar,
  type RequestContext,
  repeatedTask,
  streamAll,
  type Task,
  usageOf,
  writeAll,
} from "../engine/writer.js";
import type { TokenLogprob, Written, WrittenToken } from "../engine/written.js";
import { ApiError } from "../errors.js";
import { allowedTokens, endpoint, now, type ServerEvent, type Service, streamed, whole } from "./endpoint.js";
import { countOf, guidedFormat, sampling, samplingOf, specials, specialsOf, text, tokenIds } from "./schemas.js";
import { openAiUsage, usageSchema } from "./usage.js";

const schema = z.strictObject({
  ...sampling,
  ...specials,
  prompt: z.union([text, z.array(text).min(1).max(64), tokenIds, z.array(tokenIds).min(1).max(64)]),
  max_tokens: z.number().int().min(-1).nullish().describe("16 where it is left out; -1 for what the context leaves"),
  logprobs: z.number().int().min(0).max(20).nullish().describe("of how many tokens to tell in each place"),
  echo: z.boolean().nullish().describe("puts the prompt before the text"),
  best_of: z.literal(1).nullish(),
  suffix: z.literal("").nullish(),
});
type Body = z.infer<typeof schema>;

const DEFAULT_TOKENS = 16;

/** A task, and what is put before its text. */
interface Choice {
  readonly task: Task;
  readonly echo: string;
}

export const completions = endpoint<Body>({
  path: "/v1/completions",
  tag: "OpenAI",
  summary: "Continues texts",
  streams: true,
  body: schema,
  reply: z.looseObject({
    id: z.string(),
    object: z.literal("text_completion"),
    created: z.number().int(),
    model: z.string(),
    choices: z.array(
      z.looseObject({
        index: z.number().int(),
        text: z.string(),
        finish_reason: z.enum(["stop", "length"]).nullable(),
        logprobs: z.looseObject({}).nullable(),
      }),
    ),
    usage: usageSchema,
  }),
  answer: async (body, service, context) => {
    if (!body.stream) return whole(service, body.model, context, (model) => completion(body, service, model, context));
    if (body.echo && typeof body.logprobs === "number")
      throw new ApiError(400, "a stream has no logprobs of the prompt: ask without stream or echo", {
        param: "stream",
      });
    return streamed(service, body.model, context, (model) => completionStream(body, service, model, context));
  },
});

function choicesOf(body: Body, service: Service, loaded: LoadedModel, context: RequestContext): Choice[] {
  const { model } = loaded;
  const asked = countOf(body.max_tokens ?? DEFAULT_TOKENS);
  const maxTokens = allowedTokens(service, asked, "max_tokens") ?? model.contextSize;
  const format = guidedFormat(body);
  return promptsOf(body.prompt).flatMap((one) => {
    const tokens = typeof one === "string" ? model.promptOf(one, specialsOf(body)) : model.tokensOf(one, "prompt");
    const echo = body.echo ? (typeof one === "string" ? one : model.detokenize(one)) : "";
    const task: Task = {
      request: {
        ...samplingOf(body),
        prompt: fittingTokens(loaded, tokens, maxTokens, context.overflow),
        maxTokens,
        topLogprobs: body.logprobs ?? undefined,
        grammar: format && formatGrammar(format),
      },
      promptLogprobs: body.echo ? (body.logprobs ?? undefined) : undefined,
    };
    return repeatedTask(task, body.n ?? 1).map((repeated) => ({ task: repeated, echo }));
  });
}

function promptsOf(prompt: Body["prompt"]): (string | readonly number[])[] {
  if (typeof prompt === "string") return [prompt];
  return typeof prompt[0] === "number" ? [prompt as number[]] : (prompt as string[] | number[][]);
}

async function completion(body: Body, service: Service, model: LoadedModel, context: RequestContext) {
  const choices = choicesOf(body, service, model, context);
  const answers = await writeAll(
    model,
    choices.map(({ task }) => task),
    context,
  );
  return {
    ...headOf(model),
    choices: answers.map(({ text: own, tokens, written }, index) => {
      const echo = choices[index]?.echo ?? "";
      return {
        index,
        text: echo + own,
        finish_reason: written.finishReason,
        logprobs: typeof body.logprobs === "number" ? listedLogprobs(tokens, body.echo ? 0 : echo.length) : null,
      };
    }),
    usage: openAiUsage(usageOf(answers.map(({ written }) => written))),
  };
}

async function* completionStream(
  body: Body,
  service: Service,
  model: LoadedModel,
  context: RequestContext,
): AsyncGenerator<ServerEvent> {
  const head = headOf(model);
  const choices = choicesOf(body, service, model, context);
  const offsets = choices.map(({ echo }) => [...echo].length);
  const part = (index: number, own: string, tokens: readonly WrittenToken[], reason: string | null) => {
    const offset = offsets[index] ?? 0;
    offsets[index] = offset + [...own].length;
    const logprobs = typeof body.logprobs === "number" && tokens.length > 0 ? listedLogprobs(tokens, offset) : null;
    return { data: { ...head, choices: [{ index, text: own, finish_reason: reason, logprobs }] } };
  };
  for (const [index, { echo }] of choices.entries())
    if (echo !== "") yield { data: { ...head, choices: [{ index, text: echo, finish_reason: null, logprobs: null }] } };
  const ends: Written[] = [];
  for await (const { index, said } of streamAll(
    model,
    choices.map(({ task }) => task),
    context,
  )) {
    if (said.kind === "text") yield part(index, said.text, said.tokens, null);
    if (said.kind !== "end") continue;
    ends.push(said.written);
    yield part(index, "", [], said.written.finishReason);
  }
  if (body.stream_options?.include_usage) yield { data: { ...head, choices: [], usage: openAiUsage(usageOf(ends)) } };
  yield { data: "[DONE]" };
}

const headOf = ({ name }: LoadedModel) => ({
  id: `cmpl-${randomUUID()}`,
  object: "text_completion",
  created: now(),
  model: name,
});

/** The older form, in lists. @param offset characters before */
function listedLogprobs(tokens: readonly WrittenToken[], offset: number) {
  let at = offset;
  const offsets = tokens.map(({ width }) => {
    const own = at;
    at += width;
    return own;
  });
  return {
    tokens: tokens.map(listedName),
    token_logprobs: tokens.map(({ logprob }) => logprob),
    top_logprobs: tokens.map(({ top }) => top && Object.fromEntries(top.map((one) => [listedName(one), one.logprob]))),
    text_offset: offsets,
  };
}

/** A token's text; what is a part of a letter as OpenAI's completions have it: `bytes:\\xf0\\x9f`. */
const listedName = ({ token, bytes }: TokenLogprob): string =>
  Buffer.from(token).equals(Uint8Array.from(bytes)) ? token : `bytes:${token}`;
