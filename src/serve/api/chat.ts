import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { Conversation, Format, ToolCall, ToolChoice, Turn } from "../engine/conversation.js";
import type { LoadedModel } from "../engine/model-pool.js";
import { conversationTask, type RequestContext, repeatedTask, streamAll, usageOf, writeAll } from "../engine/writer.js";
import type { Written, WrittenToken } from "../engine/written.js";
import { ApiError } from "../errors.js";
import { allowedTokens, endpoint, now, type ServerEvent, type Service, streamed, whole } from "./endpoint.js";
import {
  checkTools,
  clientsOwn,
  guidedFormat,
  jsonSchema,
  NO_PARAMETERS,
  sampling,
  samplingOf,
  text,
  textOf,
  toolList,
  toolName,
} from "./schemas.js";
import { openAiUsage, usageSchema } from "./usage.js";

const part = z.strictObject({ type: z.literal("text"), text });
const content = z.union([text, z.array(part).min(1)]);
const name = z.string().max(256).optional();
const call = z.strictObject({
  id: z.string().max(256),
  type: z.literal("function"),
  function: z.strictObject({ name: toolName, arguments: text, parsed_arguments: clientsOwn }),
});

const message = z.discriminatedUnion("role", [
  z.strictObject({ role: z.literal("system"), content, name }),
  z.strictObject({ role: z.literal("developer"), content, name }),
  z.strictObject({ role: z.literal("user"), content, name }),
  z.strictObject({
    ...{ role: z.literal("assistant"), name, content: content.nullish(), tool_calls: z.array(call).max(64).nullish() },
    ...{ refusal: z.null().optional(), parsed: clientsOwn, annotations: z.array(z.unknown()).max(0).optional() },
  }),
  z.strictObject({ role: z.literal("tool"), content, tool_call_id: z.string().max(256), name }),
]);

const schema = z.strictObject({
  ...sampling,
  messages: z.array(message).min(1).max(4096),
  max_tokens: z.number().int().min(1).nullish().describe("what the context leaves, where it is left out"),
  max_completion_tokens: z.number().int().min(1).nullish().describe("the same as max_tokens"),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.number().int().min(0).max(20).nullish(),
  response_format: z
    .discriminatedUnion("type", [
      z.strictObject({ type: z.literal("text") }),
      z.strictObject({ type: z.literal("json_object") }),
      z.strictObject({
        type: z.literal("json_schema"),
        json_schema: z.strictObject({
          name: z.string().max(64),
          description: z.string().max(4096).optional(),
          strict: z.boolean().nullish(),
          schema: jsonSchema,
        }),
      }),
    ])
    .nullish(),
  tools: toolList(
    z.strictObject({
      type: z.literal("function"),
      function: z.strictObject({
        name: toolName,
        description: z
          .string()
          .max(1 << 16)
          .optional(),
        parameters: jsonSchema.optional(),
        strict: z.boolean().nullish(),
      }),
    }),
  ).nullish(),
  tool_choice: z
    .union([
      z.enum(["none", "auto", "required"]),
      z.strictObject({ type: z.literal("function"), function: z.strictObject({ name: toolName }) }),
    ])
    .nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  store: z.literal(false).nullish(),
  service_tier: z.enum(["auto", "default"]).nullish(),
});
type Body = z.infer<typeof schema>;

const toolCallSchema = z.object({
  id: z.string(),
  type: z.literal("function"),
  function: z.object({ name: z.string(), arguments: z.string() }),
});

export const chat = endpoint<Body>({
  ...{ path: "/v1/chat/completions", tag: "OpenAI", summary: "Answers a conversation", streams: true, body: schema },
  reply: z.looseObject({
    id: z.string(),
    object: z.literal("chat.completion"),
    created: z.number().int(),
    model: z.string(),
    choices: z.array(
      z.looseObject({
        index: z.number().int(),
        message: z.looseObject({
          role: z.literal("assistant"),
          content: z.string().nullable(),
          tool_calls: z.array(toolCallSchema).optional(),
        }),
        finish_reason: z.enum(["stop", "length", "tool_calls"]).nullable(),
        logprobs: z.looseObject({}).nullable(),
      }),
    ),
    usage: usageSchema,
  }),
  answer: async (body, service, context) =>
    body.stream
      ? streamed(service, body.model, context, (model) => chatStream(body, service, model, context))
      : whole(service, body.model, context, (model) => chatAnswer(body, service, model, context)),
});

function tasksOf(body: Body, service: Service, model: LoadedModel, context: RequestContext) {
  if (typeof body.top_logprobs === "number" && body.logprobs !== true)
    throw new ApiError(400, "top_logprobs needs logprobs: true", { param: "top_logprobs", code: "invalid_value" });
  const param = body.max_completion_tokens ? "max_completion_tokens" : "max_tokens";
  const conversation: Conversation = {
    turns: body.messages.map(turnOf),
    tools: checkTools(
      (body.tools ?? []).map(({ function: { parameters = NO_PARAMETERS, ...tool } }) => ({ ...tool, parameters })),
    ),
    toolChoice: toolChoiceOf(body.tool_choice),
    parallelCalls: body.parallel_tool_calls ?? true,
    format: guidedFormat(body, formatOf(body.response_format)),
    sampling: samplingOf(body),
    maxTokens: allowedTokens(service, body.max_completion_tokens ?? body.max_tokens ?? undefined, param),
    topLogprobs: body.logprobs === true ? (body.top_logprobs ?? 0) : undefined,
  };
  return repeatedTask(conversationTask(model, conversation, context.overflow), body.n ?? 1);
}

function turnOf(given: Body["messages"][number]): Turn {
  switch (given.role) {
    case "tool":
      return { role: "tool", content: textOf(given.content), callId: given.tool_call_id };
    case "assistant": {
      const calls = (given.tool_calls ?? []).map(({ id, function: own }) => ({ id, ...own }));
      return { role: "assistant", content: textOf(given.content ?? ""), calls };
    }
    default:
      return { role: given.role === "user" ? "user" : "system", content: textOf(given.content) };
  }
}

const toolChoiceOf = (given: Body["tool_choice"]): ToolChoice =>
  typeof given === "string" ? given : given ? { name: given.function.name } : "auto";

function formatOf(given: Body["response_format"]): Format | undefined {
  if (!given || given.type === "text") return undefined;
  const schema = given.type === "json_schema" ? given.json_schema.schema : undefined;
  return { kind: "json", schema, param: "response_format" };
}

async function chatAnswer(body: Body, service: Service, model: LoadedModel, context: RequestContext) {
  const answers = await writeAll(model, tasksOf(body, service, model, context), context);
  return {
    ...headOf(model, "chat.completion"),
    choices: answers.map(({ text: own, tokens, calls, written }, index) => ({
      index,
      message: {
        ...{ role: "assistant", content: own === "" && calls.length > 0 ? null : own, refusal: null },
        ...(calls.length > 0 && { tool_calls: calls.map(callOf) }),
      },
      logprobs: body.logprobs === true ? logprobsOf(tokens) : null,
      finish_reason: reasonOf(written, calls.length > 0),
    })),
    usage: openAiUsage(usageOf(answers.map(({ written }) => written))),
  };
}

async function* chatStream(
  body: Body,
  service: Service,
  model: LoadedModel,
  context: RequestContext,
): AsyncGenerator<ServerEvent> {
  const head = headOf(model, "chat.completion.chunk");
  const tasks = tasksOf(body, service, model, context);
  const chunk = (
    index: number,
    delta: object,
    tokens: readonly (WrittenToken | undefined)[],
    reason: string | null,
  ) => {
    const logprobs = body.logprobs === true && tokens.length > 0 ? logprobsOf(tokens) : null;
    return { data: { ...head, choices: [{ index, delta, logprobs, finish_reason: reason }] } };
  };
  const ends: Written[] = [];
  const callCounts = tasks.map(() => 0);
  const begun = new Set<number>();
  for await (const { index, said } of streamAll(model, tasks, context)) {
    const role = begun.has(index) ? {} : { role: "assistant" };
    begun.add(index);
    if (said.kind === "text") yield chunk(index, { ...role, content: said.text }, said.tokens, null);
    else if (said.kind === "call") {
      const at = callCounts[index] ?? 0;
      callCounts[index] = at + 1;
      yield chunk(index, { ...role, tool_calls: [{ index: at, ...callOf(said.call) }] }, [], null);
    } else {
      ends.push(said.written);
      yield chunk(index, role, [], reasonOf(said.written, said.called));
    }
  }
  if (body.stream_options?.include_usage) yield { data: { ...head, choices: [], usage: openAiUsage(usageOf(ends)) } };
  yield { data: "[DONE]" };
}

const headOf = ({ name: model }: LoadedModel, object: string) => ({
  ...{ id: `chatcmpl-${randomUUID()}`, object, created: now(), model },
});

const callOf = ({ id, name: own, arguments: json }: ToolCall) => ({
  ...{ id, type: "function", function: { name: own, arguments: json } },
});

const reasonOf = ({ finishReason }: Written, called: boolean): string =>
  called && finishReason === "stop" ? "tool_calls" : finishReason;

const logprobsOf = (tokens: readonly (WrittenToken | undefined)[]) => ({
  content: tokens.flatMap((token) => {
    if (token === undefined) return [];
    const { token: own, bytes, logprob, top } = token;
    const top_logprobs = top.map((other) => ({ token: other.token, bytes: other.bytes, logprob: other.logprob }));
    return [{ token: own, bytes, logprob, top_logprobs }];
  }),
  refusal: null,
});
