import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { Conversation, Format, Tool, ToolCall, ToolChoice, Turn } from "../engine/conversation.js";
import type { LoadedModel } from "../engine/model-pool.js";
import { conversationTask, type RequestContext, streamAll, usageOf, writeOne } from "../engine/writer.js";
import type { Written, WrittenToken } from "../engine/written.js";
import { content, textOf } from "./content.js";
import { customAsTool, customCall, customFormat, customInput } from "./custom-tools.js";
import { allowedTokens, endpoint, now, type ServerEvent, type Service, streamed, whole } from "./endpoint.js";
import { answerHints, responsesHints, textConfigHints } from "./hints.js";
import { toldTokens } from "./logprobs.js";
import { countOf, jsonSchema, modelName, text, tokenCount, topPOf } from "./schemas.js";
import { checkTools, leaveOut, NO_PARAMETERS, serverTool, toolDescription, toolList, toolName } from "./tools.js";

const id = z.string().max(256);
const itemFields = {
  ...answerHints,
  id: id.optional(),
  status: z.string().max(32).optional(),
  namespace: z.unknown().optional(),
};

/** Items of a provider's own: thoughts, and what its tools did. They are left out. */
const LEFT_OUT = [
  "reasoning",
  "compaction",
  "web_search_call",
  "file_search_call",
  "code_interpreter_call",
  "image_generation_call",
  "mcp_list_tools",
  "mcp_call",
  "mcp_approval_request",
  "mcp_approval_response",
  "tool_search_call",
  "tool_search_output",
] as const;

const item = z.union([
  z.strictObject({
    ...itemFields,
    type: z.literal("message").optional(),
    role: z.enum(["user", "system", "developer", "assistant"]),
    content,
  }),
  z.strictObject({
    ...itemFields,
    type: z.literal("function_call"),
    call_id: id,
    name: toolName,
    arguments: text,
    parsed_arguments: z.unknown().optional(),
  }),
  z.strictObject({ ...itemFields, type: z.literal("function_call_output"), call_id: id, output: content }),
  z.strictObject({ ...itemFields, type: z.literal("custom_tool_call"), call_id: id, name: toolName, input: text }),
  z.strictObject({ ...itemFields, type: z.literal("custom_tool_call_output"), call_id: id, output: content }),
  z.looseObject({ type: z.enum(LEFT_OUT) }),
]);
type Item = z.infer<typeof item>;

const functionTool = z.strictObject({
  type: z.literal("function"),
  name: toolName,
  parameters: jsonSchema.optional(),
  strict: z.boolean().optional(),
  description: toolDescription,
  defer_loading: z.unknown().optional(),
});
const customTool = z.strictObject({
  type: z.literal("custom"),
  name: toolName,
  description: toolDescription,
  format: customFormat,
});
/** Tools of one origin: called by their own names. */
const namespaceTool = z.strictObject({
  type: z.literal("namespace"),
  name: toolName,
  description: toolDescription,
  tools: toolList(z.discriminatedUnion("type", [functionTool, customTool])),
});
const ownTool = z.discriminatedUnion("type", [functionTool, customTool, namespaceTool]);
const chosenTool = z.strictObject({ type: z.enum(["function", "custom"]), name: toolName });

const schema = z.strictObject({
  ...responsesHints,
  model: modelName,
  input: z.union([text, z.array(item).min(1).max(4096)]),
  instructions: text.nullish(),
  max_output_tokens: tokenCount,
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  stream: z.boolean().nullish(),
  include: z.array(z.string().max(64)).optional().describe("of these, message.output_text.logprobs; others are hints"),
  top_logprobs: z.number().int().min(0).max(20).optional(),
  truncation: z
    .enum(["auto", "disabled"])
    .nullish()
    .describe("auto leaves the oldest part of a conversation out that does not fit"),
  text: z
    .strictObject({
      ...textConfigHints,
      format: z
        .discriminatedUnion("type", [
          z.strictObject({ type: z.literal("text") }),
          z.strictObject({ type: z.literal("json_object") }),
          z.strictObject({
            type: z.literal("json_schema"),
            name: z.string().max(64),
            schema: jsonSchema,
            description: z.string().max(4096).optional(),
            strict: z.boolean().nullish(),
          }),
        ])
        .optional(),
    })
    .nullish(),
  tools: toolList(z.union([functionTool, customTool, namespaceTool, serverTool])).optional(),
  tool_choice: z
    .union([
      z.enum(["none", "auto", "required"]),
      chosenTool,
      z.strictObject({
        type: z.literal("allowed_tools"),
        mode: z.enum(["auto", "required"]),
        tools: z.array(chosenTool).min(1),
      }),
    ])
    .optional(),
  parallel_tool_calls: z.boolean().nullish(),
  background: z.literal(false).nullish(),
  metadata: z.record(z.string().max(64), z.string().max(512)).nullish().describe("comes back with the answer"),
});
type Body = z.infer<typeof schema>;

/** What `include` asks for log-probabilities by. */
const LOGPROBS = "message.output_text.logprobs";

export const responses = endpoint<Body>({
  path: "/v1/responses",
  tag: "OpenAI",
  summary: "Answers a conversation",
  streams: true,
  body: schema,
  reply: z.looseObject({
    id: z.string(),
    object: z.literal("response"),
    created_at: z.number(),
    status: z.enum(["in_progress", "completed", "incomplete"]),
    model: z.string(),
    output: z.array(z.looseObject({ type: z.enum(["message", "function_call", "custom_tool_call"]) })),
    usage: z.looseObject({ input_tokens: z.number().int(), output_tokens: z.number().int() }).nullable(),
  }),
  answer: async (body, service, context) =>
    body.stream
      ? streamed(service, body.model, context, (model) => responseStream(body, service, model, context))
      : whole(service, body.model, context, (model) => response(body, service, model, context)),
});

function conversationOf(body: Body, service: Service, context: RequestContext): Conversation {
  const system: Turn[] = body.instructions ? [{ role: "system", content: body.instructions }] : [];
  const turns: Turn[] = typeof body.input === "string" ? [{ role: "user", content: body.input }] : turnsOf(body.input);
  return {
    turns: [...system, ...turns],
    tools: toolsOf(body, context),
    toolChoice: toolChoiceOf(body.tool_choice),
    parallelCalls: body.parallel_tool_calls ?? true,
    format: formatOf(body.text?.format),
    sampling: { temperature: body.temperature ?? 1, topP: topPOf(body.top_p), stops: [] },
    maxTokens: allowedTokens(service, countOf(body.max_output_tokens), "max_output_tokens"),
    topLogprobs: body.include?.includes(LOGPROBS) ? (body.top_logprobs ?? 0) : undefined,
    overflow: body.truncation ? (body.truncation === "auto" ? "drop-oldest" : "refuse") : undefined,
  };
}

/** Calls come as items of their own; a chat has those of one answer in one turn. */
function turnsOf(items: readonly Item[]): Turn[] {
  const turns: Turn[] = [];
  for (const one of items) {
    if ("role" in one) turns.push(messageTurn(one.role as string, textOf(one.content as z.infer<typeof content>)));
    else if (one.type === "function_call_output" || one.type === "custom_tool_call_output")
      turns.push({ role: "tool", content: textOf(one.output), callId: one.call_id });
    else if (one.type === "function_call" || one.type === "custom_tool_call") {
      const call =
        one.type === "function_call"
          ? { id: one.call_id, name: one.name, arguments: one.arguments }
          : customCall(one.call_id, one.name, one.input);
      const last = turns.at(-1);
      if (last?.role === "assistant") turns[turns.length - 1] = { ...last, calls: [...last.calls, call] };
      else turns.push({ role: "assistant", content: "", calls: [call] });
    }
  }
  return turns;
}

function messageTurn(role: string, said: string): Turn {
  if (role === "assistant") return { role, content: said, calls: [] };
  return { role: role === "user" ? "user" : "system", content: said };
}

function toolsOf(body: Body, context: RequestContext): readonly Tool[] {
  for (const tool of body.tools ?? []) if (!ownTool.safeParse(tool).success) leaveOut(tool.type, context);
  const own = ownTools(body).map(({ tool }): Tool => {
    if (tool.type === "custom") return customAsTool(tool);
    const { name, description, parameters = NO_PARAMETERS, strict } = tool;
    return { name, description, parameters, strict };
  });
  return checkTools(own);
}

interface OwnTool {
  readonly tool: z.infer<typeof functionTool> | z.infer<typeof customTool>;
  /** Where it is from. */
  readonly namespace: string | undefined;
}

/** The tools that can be called. */
function ownTools({ tools = [] }: Body): readonly OwnTool[] {
  return tools.flatMap((tool): readonly OwnTool[] => {
    const { data } = ownTool.safeParse(tool);
    if (data === undefined) return [];
    if (data.type !== "namespace") return [{ tool: data, namespace: undefined }];
    return data.tools.map((inner) => ({ tool: inner, namespace: data.name }));
  });
}

function toolChoiceOf(given: Body["tool_choice"]): ToolChoice {
  if (given === undefined || typeof given === "string") return given ?? "auto";
  if (given.type !== "allowed_tools") return { names: [given.name], mode: "required" };
  return { names: given.tools.map(({ name }) => name), mode: given.mode };
}

function formatOf(given: NonNullable<Body["text"]>["format"]): Format | undefined {
  if (given === undefined || given.type === "text") return undefined;
  const { schema, strict = false } = given.type === "json_schema" ? given : {};
  return { kind: "json", schema, param: "text.format", isStrict: strict === true };
}

async function response(body: Body, service: Service, model: LoadedModel, context: RequestContext) {
  const task = conversationTask(model, conversationOf(body, service, context), context.overflow);
  const { parts, tokens, written } = await writeOne(model, task, context);
  let left: readonly WrittenToken[] = tokens; // go with the first text
  const output = (parts.length === 0 ? [""] : parts).map((part) => {
    if (typeof part !== "string") return callOf(part, "completed", ownTools(body));
    const own = left;
    left = [];
    return messageOf(newId("msg"), part, "completed", own);
  });
  return responseOf(newId("resp"), body, model, output, written);
}

async function* responseStream(
  body: Body,
  service: Service,
  model: LoadedModel,
  context: RequestContext,
): AsyncGenerator<ServerEvent> {
  const task = conversationTask(model, conversationOf(body, service, context), context.overflow);
  let sequence_number = 0;
  const event = (type: string, fields: object): ServerEvent => {
    return { event: type, data: { type, sequence_number: sequence_number++, ...fields } };
  };
  const own = newId("resp");
  const output: object[] = [];
  let message: { readonly id: string; text: string; readonly tokens: WrittenToken[] } | undefined;
  const place = () => ({ item_id: message?.id, output_index: output.length, content_index: 0 });
  const close = function* () {
    if (message === undefined) return;
    const { id: item_id, text: whole, tokens } = message;
    yield event("response.output_text.done", { ...place(), text: whole, logprobs: toldTokens(tokens) });
    yield event("response.content_part.done", { ...place(), part: partOf(whole, tokens) });
    const done = messageOf(item_id, whole, "completed", tokens);
    yield event("response.output_item.done", { output_index: output.length, item: done });
    output.push(done);
    message = undefined;
  };
  let begun = false;
  for await (const { said } of streamAll(model, [task], context)) {
    if (!begun) {
      const started = responseOf(own, body, model, [], undefined);
      yield event("response.created", { response: started });
      yield event("response.in_progress", { response: started });
    }
    begun = true;
    if (said.kind === "text" && said.text !== "") {
      if (message === undefined) {
        message = { id: newId("msg"), text: "", tokens: [] };
        const item = { ...messageOf(message.id, "", "in_progress"), content: [] };
        yield event("response.output_item.added", { output_index: output.length, item });
        yield event("response.content_part.added", { ...place(), part: partOf("") });
      }
      message.text += said.text;
      message.tokens.push(...said.tokens);
      yield event("response.output_text.delta", { ...place(), delta: said.text, logprobs: toldTokens(said.tokens) });
    } else if (said.kind === "call") {
      yield* close();
      const done = callOf(said.call, "completed", ownTools(body));
      yield* callEvents(done, output.length, event);
      output.push(done);
    } else if (said.kind === "end") {
      yield* close();
      const ended = responseOf(own, body, model, output, said.written);
      yield event(ended.status === "completed" ? "response.completed" : "response.incomplete", { response: ended });
    }
  }
}

const newId = (kind: string): string => `${kind}_${randomUUID().replace(/-/g, "")}`;

const partOf = (said: string, tokens: readonly WrittenToken[] = []) => ({
  type: "output_text",
  text: said,
  annotations: [],
  logprobs: toldTokens(tokens),
});

const messageOf = (own: string, said: string, state: string, tokens: readonly WrittenToken[] = []) => ({
  id: own,
  type: "message",
  role: "assistant",
  status: state,
  content: [partOf(said, tokens)],
});

/** A call as an item: of a function, or of a tool that takes a text. */
function callOf(call: ToolCall, status: string, tools: readonly OwnTool[]) {
  const found = tools.find(({ tool }) => tool.name === call.name);
  const from = found?.namespace === undefined ? {} : { namespace: found.namespace };
  if (found?.tool.type === "custom") {
    const input = customInput(call);
    return { id: newId("ctc"), type: "custom_tool_call", call_id: call.id, name: call.name, input, status, ...from };
  }
  const { name, arguments: json } = call;
  return { id: newId("fc"), type: "function_call", call_id: call.id, name, arguments: json, status, ...from };
}

/** What is sent of a call, which comes when it is whole. */
function* callEvents(
  done: ReturnType<typeof callOf>,
  output_index: number,
  event: (type: string, fields: object) => ServerEvent,
): Generator<ServerEvent> {
  const at = { item_id: done.id, output_index };
  const nothing = "input" in done ? { input: "" } : { arguments: "" };
  yield event("response.output_item.added", { output_index, item: { ...done, ...nothing, status: "in_progress" } });
  if ("input" in done) {
    yield event("response.custom_tool_call_input.delta", { ...at, delta: done.input });
    yield event("response.custom_tool_call_input.done", { ...at, input: done.input });
  } else {
    yield event("response.function_call_arguments.delta", { ...at, delta: done.arguments });
    yield event("response.function_call_arguments.done", { ...at, name: done.name, arguments: done.arguments });
  }
  yield event("response.output_item.done", { output_index, item: done });
}

/** @param written undefined while it is being written */
function responseOf(
  own: string,
  body: Body,
  model: LoadedModel,
  output: readonly object[],
  written: Written | undefined,
) {
  const state = written === undefined ? "in_progress" : written.finishReason === "length" ? "incomplete" : "completed";
  const { promptTokens, cachedTokens, completionTokens } = usageOf(written === undefined ? [] : [written]);
  return {
    id: own,
    object: "response",
    created_at: now(),
    status: state,
    model: model.name,
    output,
    background: false,
    error: null,
    incomplete_details: state === "incomplete" ? { reason: "max_output_tokens" } : null,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    metadata: body.metadata ?? {},
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: null,
    reasoning: { effort: null, summary: null },
    service_tier: "default",
    store: false,
    temperature: body.temperature ?? 1,
    top_p: body.top_p ?? 1,
    truncation: body.truncation ?? "disabled",
    text: { format: body.text?.format ?? { type: "text" } },
    tool_choice: body.tool_choice ?? "auto",
    tools: body.tools ?? [],
    user: body.user ?? null,
    usage:
      written === undefined
        ? null
        : {
            input_tokens: promptTokens,
            output_tokens: completionTokens,
            total_tokens: promptTokens + completionTokens,
            input_tokens_details: { cached_tokens: cachedTokens },
            output_tokens_details: { reasoning_tokens: 0 },
          },
  };
}
