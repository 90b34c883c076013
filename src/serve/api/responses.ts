import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { Conversation, Format, Tool, ToolCall, ToolChoice, Turn } from "../engine/conversation.js";
import type { LoadedModel } from "../engine/model-pool.js";
import { conversationTask, type RequestContext, streamAll, usageOf, writeOne } from "../engine/writer.js";
import type { Written } from "../engine/written.js";
import { content, textOf } from "./content.js";
import { allowedTokens, endpoint, now, type ServerEvent, type Service, streamed, whole } from "./endpoint.js";
import { answerHints, responsesHints, textConfigHints } from "./hints.js";
import { countOf, jsonSchema, modelName, text, tokenCount, topPOf } from "./schemas.js";
import { checkTools, leaveOut, NO_PARAMETERS, serverTool, toolDescription, toolList, toolName } from "./tools.js";

const id = z.string().max(256);
const itemFields = { ...answerHints, id: id.optional(), status: z.string().max(32).optional() };

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
  z.looseObject({ type: z.enum(LEFT_OUT) }),
]);
type Item = z.infer<typeof item>;

const functionTool = z.strictObject({
  type: z.literal("function"),
  name: toolName,
  parameters: jsonSchema.optional(),
  strict: z.boolean().optional(),
  description: toolDescription,
});
const chosenFunction = z.strictObject({ type: z.literal("function"), name: toolName });

const schema = z.strictObject({
  ...responsesHints,
  model: modelName,
  input: z.union([text, z.array(item).min(1).max(4096)]),
  instructions: text.nullish(),
  max_output_tokens: tokenCount,
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  stream: z.boolean().nullish(),
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
            ...{ type: z.literal("json_schema"), name: z.string().max(64), schema: jsonSchema },
            ...{ description: z.string().max(4096).optional(), strict: z.boolean().nullish() },
          }),
        ])
        .optional(),
    })
    .nullish(),
  tools: toolList(z.union([functionTool, serverTool])).optional(),
  tool_choice: z
    .union([
      z.enum(["none", "auto", "required"]),
      chosenFunction,
      z.strictObject({
        type: z.literal("allowed_tools"),
        mode: z.enum(["auto", "required"]),
        tools: z.array(chosenFunction).min(1),
      }),
    ])
    .optional(),
  parallel_tool_calls: z.boolean().nullish(),
  background: z.literal(false).nullish(),
  metadata: z.record(z.string().max(64), z.string().max(512)).nullish().describe("comes back with the answer"),
});
type Body = z.infer<typeof schema>;

export const responses = endpoint<Body>({
  ...{ path: "/v1/responses", tag: "OpenAI", summary: "Answers a conversation", streams: true, body: schema },
  reply: z.looseObject({
    id: z.string(),
    object: z.literal("response"),
    created_at: z.number(),
    status: z.enum(["in_progress", "completed", "incomplete"]),
    model: z.string(),
    output: z.array(z.looseObject({ type: z.enum(["message", "function_call"]) })),
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
    overflow: body.truncation ? (body.truncation === "auto" ? "drop-oldest" : "refuse") : undefined,
  };
}

/** Calls come as items of their own; a chat has those of one answer in one turn. */
function turnsOf(items: readonly Item[]): Turn[] {
  const turns: Turn[] = [];
  for (const one of items) {
    if ("role" in one) turns.push(messageTurn(one.role as string, textOf(one.content as z.infer<typeof content>)));
    else if (one.type === "function_call_output")
      turns.push({ role: "tool", content: textOf(one.output), callId: one.call_id });
    else if (one.type === "function_call") {
      const call = { id: one.call_id, name: one.name, arguments: one.arguments };
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
  const own = (body.tools ?? []).flatMap((tool): Tool[] => {
    const known = functionTool.safeParse(tool);
    if (!known.success) return leaveOut(tool.type, context);
    const { name, description, parameters = NO_PARAMETERS, strict } = known.data;
    return [{ name, description, parameters, strict }];
  });
  return checkTools(own);
}

function toolChoiceOf(given: Body["tool_choice"]): ToolChoice {
  if (given === undefined || typeof given === "string") return given ?? "auto";
  if (given.type === "function") return { names: [given.name], mode: "required" };
  return { names: given.tools.map(({ name }) => name), mode: given.mode };
}

function formatOf(given: NonNullable<Body["text"]>["format"]): Format | undefined {
  if (given === undefined || given.type === "text") return undefined;
  const { schema, strict = false } = given.type === "json_schema" ? given : {};
  return { kind: "json", schema, param: "text.format", isStrict: strict === true };
}

async function response(body: Body, service: Service, model: LoadedModel, context: RequestContext) {
  const task = conversationTask(model, conversationOf(body, service, context), context.overflow);
  const { parts, written } = await writeOne(model, task, context);
  const output = (parts.length === 0 ? [""] : parts).map((part) =>
    typeof part === "string" ? messageOf(newId("msg"), part, "completed") : callOf(newId("fc"), part, "completed"),
  );
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
  let message: { readonly id: string; text: string } | undefined;
  const place = () => ({ item_id: message?.id, output_index: output.length, content_index: 0 });
  const close = function* () {
    if (message === undefined) return;
    const { id: item_id, text: whole } = message;
    yield event("response.output_text.done", { ...place(), text: whole, logprobs: [] });
    yield event("response.content_part.done", { ...place(), part: partOf(whole) });
    const done = messageOf(item_id, whole, "completed");
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
        message = { id: newId("msg"), text: "" };
        const item = { ...messageOf(message.id, "", "in_progress"), content: [] };
        yield event("response.output_item.added", { output_index: output.length, item });
        yield event("response.content_part.added", { ...place(), part: partOf("") });
      }
      message.text += said.text;
      yield event("response.output_text.delta", { ...place(), delta: said.text, logprobs: [] });
    } else if (said.kind === "call") {
      yield* close();
      const [item_id, output_index] = [newId("fc"), output.length];
      const added = { ...callOf(item_id, said.call, "in_progress"), arguments: "" };
      yield event("response.output_item.added", { output_index, item: added });
      const at = { item_id, output_index };
      yield event("response.function_call_arguments.delta", { ...at, delta: said.call.arguments });
      const { name, arguments: json } = said.call;
      yield event("response.function_call_arguments.done", { ...at, name, arguments: json });
      const done = callOf(item_id, said.call, "completed");
      yield event("response.output_item.done", { output_index, item: done });
      output.push(done);
    } else if (said.kind === "end") {
      yield* close();
      const ended = responseOf(own, body, model, output, said.written);
      yield event(ended.status === "completed" ? "response.completed" : "response.incomplete", { response: ended });
    }
  }
}

const newId = (kind: string): string => `${kind}_${randomUUID().replace(/-/g, "")}`;

const partOf = (said: string) => ({ type: "output_text", text: said, annotations: [], logprobs: [] });

const messageOf = (own: string, said: string, state: string) => ({
  ...{ id: own, type: "message", role: "assistant", status: state, content: [partOf(said)] },
});

const callOf = (own: string, call: ToolCall, state: string) => ({
  ...{ id: own, type: "function_call", call_id: call.id, name: call.name, arguments: call.arguments, status: state },
});

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
    ...{ id: own, object: "response", created_at: now(), status: state, model: model.name, output },
    ...{
      background: false,
      error: null,
      incomplete_details: state === "incomplete" ? { reason: "max_output_tokens" } : null,
    },
    ...{ instructions: body.instructions ?? null, max_output_tokens: body.max_output_tokens ?? null },
    ...{
      metadata: body.metadata ?? {},
      parallel_tool_calls: body.parallel_tool_calls ?? true,
      previous_response_id: null,
    },
    ...{ reasoning: { effort: null, summary: null }, service_tier: "default", store: false },
    ...{ temperature: body.temperature ?? 1, top_p: body.top_p ?? 1, truncation: body.truncation ?? "disabled" },
    ...{ text: { format: body.text?.format ?? { type: "text" } }, tool_choice: body.tool_choice ?? "auto" },
    ...{ tools: body.tools ?? [], user: body.user ?? null },
    usage:
      written === undefined
        ? null
        : {
            ...{ input_tokens: promptTokens, output_tokens: completionTokens },
            total_tokens: promptTokens + completionTokens,
            input_tokens_details: { cached_tokens: cachedTokens },
            output_tokens_details: { reasoning_tokens: 0 },
          },
  };
}
