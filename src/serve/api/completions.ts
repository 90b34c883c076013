import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { LoadedModel } from "../engine/model-pool.js";
import { fitTokens, formatGrammar, repeatedTask, type WriteTask } from "../engine/write-task.js";
import { type RequestContext, streamAll, usageOf, writeAll } from "../engine/writer.js";
import type { TokenLogprob, WriteResult, WrittenToken } from "../engine/writing.js";
import { ApiError } from "../errors.js";
import { allowedTokens, endpoint, now, replyStreamed, replyWhole, type ServerEvent, type Service } from "./endpoint.js";
import {
  countOf,
  guidedFormat,
  sampling,
  samplingOf,
  specials,
  specialsOf,
  text,
  textsOrTokens,
  tokenIds,
} from "./schemas.js";
import { openAiUsage, usageSchema } from "./usage.js";

const schema = z.strictObject({
  ...sampling,
  ...specials,
  prompt: z.union([text, z.array(text).min(1).max(64), tokenIds, z.array(tokenIds).min(1).max(64)]),
  max_tokens: z.number().int().min(-1).nullish().describe("16 by default; -1 for as many as the context has room for"),
  logprobs: z
    .number()
    .int()
    .min(0)
    .max(20)
    .nullish()
    .describe("how many of the most probable tokens to report in each place"),
  echo: z.boolean().nullish().describe("puts the prompt before the text"),
  best_of: z.literal(1).nullish(),
  suffix: z.literal("").nullish(),
});
type Body = z.infer<typeof schema>;

const DEFAULT_TOKENS = 16;

/** A task, and the prompt that is repeated before its text. */
interface Choice {
  readonly task: WriteTask;
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
    if (!body.stream)
      return replyWhole(service, body.model, context, (model) => completion(body, service, model, context));
    if (body.echo && typeof body.logprobs === "number")
      throw new ApiError(400, "a stream cannot have logprobs of the prompt: leave out stream or echo", {
        param: "stream",
      });
    return replyStreamed(service, body.model, context, (model) => completionStream(body, service, model, context));
  },
});

function choicesOf(body: Body, service: Service, loaded: LoadedModel, context: RequestContext): Choice[] {
  const { model } = loaded;
  const wanted = countOf(body.max_tokens ?? DEFAULT_TOKENS);
  const maxTokens = allowedTokens(service, wanted, "max_tokens") ?? model.contextSize;
  const format = guidedFormat(body);
  return textsOrTokens(body.prompt).flatMap((prompt) => {
    const isText = typeof prompt === "string";
    const tokens = isText ? model.promptOf(prompt, specialsOf(body)) : model.tokensOf(prompt, "prompt");
    const echo = body.echo ? (isText ? prompt : model.detokenize(prompt)) : "";
    const task: WriteTask = {
      request: {
        ...samplingOf(body),
        prompt: fitTokens(loaded, tokens, maxTokens, context.overflow),
        maxTokens,
        topLogprobs: body.logprobs ?? undefined,
        grammar: format && formatGrammar(format),
      },
      promptLogprobs: body.echo ? (body.logprobs ?? undefined) : undefined,
    };
    return repeatedTask(task, body.n ?? 1).map((repeated) => ({ task: repeated, echo }));
  });
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
    choices: answers.map(({ text: answer, tokens, result }, index) => {
      const echo = choices[index]?.echo ?? "";
      return {
        index,
        text: echo + answer,
        finish_reason: result.finishReason,
        logprobs: typeof body.logprobs === "number" ? listedLogprobs(tokens, body.echo ? 0 : echo.length) : null,
      };
    }),
    usage: openAiUsage(
      usageOf(
        answers.map(({ result }) => result),
        body.n ?? 1,
      ),
    ),
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
  const chunk = (index: number, added: string, tokens: readonly WrittenToken[], reason: string | null) => {
    const offset = offsets[index] ?? 0;
    offsets[index] = offset + [...added].length;
    const logprobs = typeof body.logprobs === "number" && tokens.length > 0 ? listedLogprobs(tokens, offset) : null;
    return { data: { ...head, choices: [{ index, text: added, finish_reason: reason, logprobs }] } };
  };
  for (const [index, { echo }] of choices.entries())
    if (echo !== "") yield { data: { ...head, choices: [{ index, text: echo, finish_reason: null, logprobs: null }] } };
  const results: WriteResult[] = [];
  for await (const { index, update } of streamAll(
    model,
    choices.map(({ task }) => task),
    context,
  )) {
    if (update.kind === "text") yield chunk(index, update.text, update.tokens, null);
    if (update.kind !== "end") continue;
    results[index] = update.result;
    yield chunk(index, "", [], update.result.finishReason);
  }
  if (body.stream_options?.include_usage)
    yield { data: { ...head, choices: [], usage: openAiUsage(usageOf(results, body.n ?? 1)) } };
  yield { data: "[DONE]" };
}

const headOf = ({ name }: LoadedModel) => ({
  id: `cmpl-${randomUUID()}`,
  object: "text_completion",
  created: now(),
  model: name,
});

/** Log-probabilities in the older form, as lists. @param offset characters of the text before */
function listedLogprobs(tokens: readonly WrittenToken[], offset: number) {
  let at = offset;
  const offsets = tokens.map(({ width }) => {
    const start = at;
    at += width;
    return start;
  });
  return {
    tokens: tokens.map(listedName),
    token_logprobs: tokens.map(({ logprob }) => logprob),
    top_logprobs: tokens.map(({ top }) => top && Object.fromEntries(top.map((one) => [listedName(one), one.logprob]))),
    text_offset: offsets,
  };
}

/** A token's text; part of a character in the form of OpenAI's completions, `bytes:\\xf0\\x9f`. */
const listedName = ({ token, bytes }: TokenLogprob): string =>
  Buffer.from(token).equals(Uint8Array.from(bytes)) ? token : `bytes:${token}`;
