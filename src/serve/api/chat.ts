import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { Conversation, Format, Tool, ToolCall, ToolChoice, Turn } from "../engine/conversation.js";
import type { LoadedModel } from "../engine/model-pool.js";
import { conversationTask, type RequestContext, repeatedTask, streamAll, usageOf, writeAll } from "../engine/writer.js";
import type { Written, WrittenToken } from "../engine/written.js";
import { ApiError } from "../errors.js";
import { content, textOf } from "./content.js";
import { customAsTool, customCall, customFormat, customInput } from "./custom-tools.js";
import { allowedTokens, endpoint, now, type ServerEvent, type Service, streamed, whole } from "./endpoint.js";
import { answerHints, partHints } from "./hints.js";
import { toldTokens } from "./logprobs.js";
import { countOf, guidedFormat, jsonSchema, sampling, samplingOf, text, tokenCount } from "./schemas.js";
import { checkTools, leaveOut, NO_PARAMETERS, serverTool, toolDescription, toolList, toolName } from "./tools.js";
import { openAiUsage, usageSchema } from "./usage.js";

const name = z.string().max(256).optional();
const toolCallId = z.string().max(256);
const call = z.strictObject({
  ...partHints,
  id: toolCallId,
  type: z.literal("function").default("function"),
  function: z.strictObject({ ...partHints, name: toolName, arguments: text, parsed_arguments: z.unknown().optional() }),
});

const customCalled = z.strictObject({
  ...partHints,
  id: toolCallId,
  type: z.literal("custom"),
  custom: z.strictObject({ name: toolName, input: text }),
});

const message = z.discriminatedUnion("role", [
  z.strictObject({ role: z.enum(["system", "developer", "user"]), content, name }),
  z.strictObject({
    ...answerHints,
    role: z.literal("assistant"),
    name,
    content: content.optional(),
    tool_calls: z
      .array(z.union([call, customCalled]))
      .max(256)
      .optional(),
  }),
  z.strictObject({ role: z.literal("tool"), content: content.optional(), tool_call_id: toolCallId, name }),
]);

const named = z.strictObject({ name: toolName });
const chosenTool = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("function"), function: named }),
  z.strictObject({ type: z.literal("custom"), custom: named }),
]);

const chatFunction = z.strictObject({
  type: z.literal("function"),
  function: z.strictObject({
    name: toolName,
    description: toolDescription,
    parameters: jsonSchema.optional(),
    strict: z.boolean().optional(),
  }),
});

const chatCustom = z.strictObject({
  type: z.literal("custom"),
  custom: z.strictObject({ name: toolName, description: toolDescription, format: customFormat }),
});

const schema = z.strictObject({
  ...sampling,
  messages: z.array(message).min(1).max(4096),
  max_tokens: tokenCount.describe("what the context leaves, where it is left out"),
  max_completion_tokens: tokenCount.describe("the same as max_tokens"),
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
  tools: toolList(z.union([chatFunction, chatCustom, serverTool])).optional(),
  tool_choice: z
    .union([
      z.enum(["none", "auto", "required"]),
      chosenTool,
      z.strictObject({
        type: z.literal("allowed_tools"),
        allowed_tools: z.strictObject({ mode: z.enum(["auto", "required"]), tools: z.array(chosenTool).min(1) }),
      }),
    ])
    .optional(),
  parallel_tool_calls: z.boolean().nullish(),
  modalities: z.array(z.literal("text")).optional(),
  web_search_options: z.unknown().optional().describe("left out: nothing is looked for on the web"),
  chat_template_kwargs: z.record(z.string(), z.unknown()).optional().describe("for the model's chat template"),
});
type Body = z.infer<typeof schema>;

const toolCallSchema = z.looseObject({ id: z.string(), type: z.enum(["function", "custom"]) });

export const chat = endpoint<Body>({
  path: "/v1/chat/completions",
  tag: "OpenAI",
  summary: "Answers a conversation",
  streams: true,
  body: schema,
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
    tools: toolsOf(body, context),
    templateVariables: body.chat_template_kwargs,
    toolChoice: toolChoiceOf(body.tool_choice),
    parallelCalls: body.parallel_tool_calls ?? true,
    format: guidedFormat(body, formatOf(body.response_format)),
    sampling: samplingOf(body),
    maxTokens: allowedTokens(service, countOf(body.max_completion_tokens ?? body.max_tokens), param),
    topLogprobs: body.logprobs === true ? (body.top_logprobs ?? 0) : undefined,
  };
  return repeatedTask(conversationTask(model, conversation, context.overflow), body.n ?? 1);
}

function turnOf(given: Body["messages"][number]): Turn {
  switch (given.role) {
    case "tool":
      return { role: "tool", content: textOf(given.content ?? ""), callId: given.tool_call_id };
    case "assistant": {
      const calls = (given.tool_calls ?? []).map((one) =>
        one.type === "custom"
          ? customCall(one.id, one.custom.name, one.custom.input)
          : { id: one.id, name: one.function.name, arguments: one.function.arguments },
      );
      return { role: "assistant", content: textOf(given.content ?? ""), calls };
    }
    default:
      return { role: given.role === "user" ? "user" : "system", content: textOf(given.content) };
  }
}

function toolsOf(body: Body, context: RequestContext): readonly Tool[] {
  if (body.web_search_options !== undefined) leaveOut("web_search_options", context);
  const own = (body.tools ?? []).flatMap((tool): Tool[] => {
    const custom = chatCustom.safeParse(tool);
    if (custom.success) return [customAsTool(custom.data.custom)];
    const known = chatFunction.safeParse(tool);
    if (!known.success) return leaveOut(tool.type, context);
    const { name: called, description, parameters = NO_PARAMETERS, strict } = known.data.function;
    return [{ name: called, description, parameters, strict }];
  });
  return checkTools(own);
}

function toolChoiceOf(given: Body["tool_choice"]): ToolChoice {
  if (given === undefined || typeof given === "string") return given ?? "auto";
  if (given.type !== "allowed_tools") return { names: [chosenName(given)], mode: "required" };
  const { mode, tools } = given.allowed_tools;
  return { names: tools.map(chosenName), mode };
}

const chosenName = (chosen: z.infer<typeof chosenTool>): string =>
  chosen.type === "custom" ? chosen.custom.name : chosen.function.name;

/** The names of the tools that take texts. */
const customNames = ({ tools = [] }: Body): ReadonlySet<string> =>
  new Set(tools.flatMap((tool) => chatCustom.safeParse(tool).data?.custom.name ?? []));

function formatOf(given: Body["response_format"]): Format | undefined {
  if (!given || given.type === "text") return undefined;
  const { schema, strict = false } = given.type === "json_schema" ? given.json_schema : {};
  return { kind: "json", schema, param: "response_format", isStrict: strict === true };
}

async function chatAnswer(body: Body, service: Service, model: LoadedModel, context: RequestContext) {
  const answers = await writeAll(model, tasksOf(body, service, model, context), context);
  const custom = customNames(body);
  return {
    ...headOf(model, "chat.completion"),
    choices: answers.map(({ text: own, tokens, calls, written }, index) => ({
      index,
      message: {
        role: "assistant",
        content: own === "" && calls.length > 0 ? null : own,
        refusal: null,
        ...(calls.length > 0 && { tool_calls: calls.map((call) => callOf(call, custom)) }),
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
  const chunk = (index: number, delta: object, tokens: readonly WrittenToken[], reason: string | null) => {
    const logprobs = body.logprobs === true && tokens.length > 0 ? logprobsOf(tokens) : null;
    return { data: { ...head, choices: [{ index, delta, logprobs, finish_reason: reason }] } };
  };
  const ends: Written[] = [];
  const custom = customNames(body);
  const callCounts = tasks.map(() => 0);
  const begun = new Set<number>();
  for await (const { index, said } of streamAll(model, tasks, context)) {
    const role = begun.has(index) ? {} : { role: "assistant" };
    begun.add(index);
    if (said.kind === "text") yield chunk(index, { ...role, content: said.text }, said.tokens, null);
    else if (said.kind === "call") {
      const at = callCounts[index] ?? 0;
      callCounts[index] = at + 1;
      yield chunk(index, { ...role, tool_calls: [{ index: at, ...callOf(said.call, custom) }] }, [], null);
    } else {
      ends.push(said.written);
      yield chunk(index, role, [], reasonOf(said.written, said.called));
    }
  }
  if (body.stream_options?.include_usage) yield { data: { ...head, choices: [], usage: openAiUsage(usageOf(ends)) } };
  yield { data: "[DONE]" };
}

const headOf = ({ name: model }: LoadedModel, object: string) => ({
  id: `chatcmpl-${randomUUID()}`,
  object,
  created: now(),
  model,
});

const callOf = (call: ToolCall, custom: ReadonlySet<string>) =>
  custom.has(call.name)
    ? { id: call.id, type: "custom", custom: { name: call.name, input: customInput(call) } }
    : { id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } };

const reasonOf = ({ finishReason }: Written, called: boolean): string =>
  called && finishReason === "stop" ? "tool_calls" : finishReason;

const logprobsOf = (tokens: readonly WrittenToken[]) => ({ content: toldTokens(tokens), refusal: null });
