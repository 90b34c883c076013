import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { Conversation, Format, Tool, ToolCall, ToolChoice, Turn } from "../engine/conversation.js";
import type { LoadedModel } from "../engine/model-pool.js";
import { conversationTask, repeatedTask } from "../engine/write-task.js";
import { type RequestContext, streamAll, usageOf, writeAll } from "../engine/writer.js";
import type { WriteResult, WrittenToken } from "../engine/writing.js";
import { ApiError } from "../errors.js";
import { content, textOf } from "./content.js";
import { customAsTool, customCall, customFormat, customInput } from "./custom-tools.js";
import { allowedTokens, endpoint, now, replyStreamed, replyWhole, type ServerEvent, type Service } from "./endpoint.js";
import { answerHints, partHints } from "./hints.js";
import { tokenLogprobs } from "./logprobs.js";
import { countOf, guidedFormat, jsonSchema, namedSchema, sampling, samplingOf, text, tokenCount } from "./schemas.js";
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

const customToolCall = z.strictObject({
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
      .array(z.union([call, customToolCall]))
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
  max_tokens: tokenCount.describe("by default as many as the context has room for"),
  max_completion_tokens: tokenCount.describe("the same as max_tokens"),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.number().int().min(0).max(20).nullish(),
  response_format: z
    .discriminatedUnion("type", [
      z.strictObject({ type: z.literal("text") }),
      z.strictObject({ type: z.literal("json_object") }),
      z.strictObject({
        type: z.literal("json_schema"),
        json_schema: z.strictObject(namedSchema),
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
  web_search_options: z.unknown().optional().describe("ignored: there is no web search"),
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
      ? replyStreamed(service, body.model, context, (model) => chatStream(body, service, model, context))
      : replyWhole(service, body.model, context, (model) => chatAnswer(body, service, model, context)),
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

function turnOf(message: Body["messages"][number]): Turn {
  switch (message.role) {
    case "tool":
      return { role: "tool", content: textOf(message.content ?? ""), callId: message.tool_call_id };
    case "assistant": {
      const calls = (message.tool_calls ?? []).map((call) =>
        call.type === "custom"
          ? customCall(call.id, call.custom.name, call.custom.input)
          : { id: call.id, name: call.function.name, arguments: call.function.arguments },
      );
      return { role: "assistant", content: textOf(message.content ?? ""), calls };
    }
    default:
      return { role: message.role === "user" ? "user" : "system", content: textOf(message.content) };
  }
}

function toolsOf(body: Body, context: RequestContext): readonly Tool[] {
  if (body.web_search_options !== undefined) leaveOut("web_search_options", context);
  const tools = (body.tools ?? []).flatMap((tool): Tool[] => {
    const custom = chatCustom.safeParse(tool);
    if (custom.success) return [customAsTool(custom.data.custom)];
    const known = chatFunction.safeParse(tool);
    if (!known.success) return leaveOut(tool.type, context);
    const { parameters = NO_PARAMETERS, ...definition } = known.data.function;
    return [{ ...definition, parameters }];
  });
  return checkTools(tools);
}

function toolChoiceOf(choice: Body["tool_choice"]): ToolChoice {
  if (choice === undefined || typeof choice === "string") return choice ?? "auto";
  if (choice.type !== "allowed_tools") return { names: [chosenName(choice)], mode: "required" };
  const { mode, tools } = choice.allowed_tools;
  return { names: tools.map(chosenName), mode };
}

const chosenName = (chosen: z.infer<typeof chosenTool>): string =>
  chosen.type === "custom" ? chosen.custom.name : chosen.function.name;

/** The names of the tools whose input is a text. */
const customNames = ({ tools = [] }: Body): ReadonlySet<string> =>
  new Set(tools.flatMap((tool) => chatCustom.safeParse(tool).data?.custom.name ?? []));

function formatOf(format: Body["response_format"]): Format | undefined {
  if (!format || format.type === "text") return undefined;
  const { schema, strict = false } = format.type === "json_schema" ? format.json_schema : {};
  return { kind: "json", schema, param: "response_format", isStrict: strict === true };
}

async function chatAnswer(body: Body, service: Service, model: LoadedModel, context: RequestContext) {
  const answers = await writeAll(model, tasksOf(body, service, model, context), context);
  const custom = customNames(body);
  return {
    ...headOf(model, "chat.completion"),
    choices: answers.map(({ text: answer, tokens, calls, result }, index) => ({
      index,
      message: {
        role: "assistant",
        content: answer === "" && calls.length > 0 ? null : answer,
        refusal: null,
        tool_calls: calls.length > 0 ? calls.map((one) => callOf(one, custom)) : undefined,
      },
      logprobs: body.logprobs === true ? logprobsOf(tokens) : null,
      finish_reason: reasonOf(result, calls.length > 0),
    })),
    usage: openAiUsage(
      usageOf(
        answers.map(({ result }) => result),
        body.n ?? 1,
      ),
    ),
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
  const results: WriteResult[] = [];
  const custom = customNames(body);
  const callCounts = tasks.map(() => 0);
  const started = new Set<number>();
  for await (const { index, update } of streamAll(model, tasks, context)) {
    const role = started.has(index) ? {} : { role: "assistant" };
    started.add(index);
    if (update.kind === "text") yield chunk(index, { ...role, content: update.text }, update.tokens, null);
    else if (update.kind === "call") {
      const at = callCounts[index] ?? 0;
      callCounts[index] = at + 1;
      yield chunk(index, { ...role, tool_calls: [{ index: at, ...callOf(update.call, custom) }] }, [], null);
    } else {
      results[index] = update.result;
      yield chunk(index, role, [], reasonOf(update.result, update.hasCalls));
    }
  }
  if (body.stream_options?.include_usage)
    yield { data: { ...head, choices: [], usage: openAiUsage(usageOf(results, body.n ?? 1)) } };
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

const reasonOf = ({ finishReason }: WriteResult, hasCalls: boolean): string =>
  hasCalls && finishReason === "stop" ? "tool_calls" : finishReason;

const logprobsOf = (tokens: readonly WrittenToken[]) => ({ content: tokenLogprobs(tokens), refusal: null });
