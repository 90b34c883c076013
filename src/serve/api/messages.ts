import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { Conversation, Tool, ToolCall, ToolChoice, Turn } from "../engine/conversation.js";
import type { LoadedModel } from "../engine/model-pool.js";
import { conversationTask } from "../engine/write-task.js";
import { type RequestContext, streamAll, writeOne } from "../engine/writer.js";
import type { WriteResult } from "../engine/writing.js";
import { anthropicTool } from "./anthropic-tools.js";
import { allowedTokens, endpoint, replyStreamed, replyWhole, type ServerEvent, type Service } from "./endpoint.js";
import { anthropicHints, anthropicToolHints, outputConfigHints, partHints } from "./hints.js";
import { jsonSchema, modelName, text, topPOf } from "./schemas.js";
import { checkTools, leaveOut, serverTool, toolDescription, toolList, toolName } from "./tools.js";

const id = z.string().max(256);
const textBlock = z.strictObject({ ...partHints, type: z.literal("text"), text });
/** A document of text. */
const documentBlock = z.strictObject({
  ...partHints,
  type: z.literal("document"),
  title: text.optional(),
  context: text.optional(),
  source: z.discriminatedUnion("type", [
    z.strictObject({ type: z.literal("text"), media_type: z.literal("text/plain"), data: text }),
    z.strictObject({ type: z.literal("content"), content: z.union([text, z.array(textBlock)]) }),
  ]),
});
const searchResult = z.strictObject({
  ...partHints,
  type: z.literal("search_result"),
  source: text,
  title: text,
  content: z.array(textBlock),
});
/** Blocks without text for the model: reasoning, results of a provider's tools, changes of the conversation itself. */
const otherBlock = z.looseObject({
  type: z.enum([
    "thinking",
    "redacted_thinking",
    "fallback",
    "server_tool_use",
    "mcp_tool_use",
    "mcp_tool_result",
    "mcp_tool_listing",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "advisor_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "tool_reference",
    "tool_addition",
    "tool_removal",
  ]),
});
const compaction = z.looseObject({ type: z.literal("compaction"), content: text.optional() });
const textBlocks = [textBlock, documentBlock, searchResult, compaction, otherBlock] as const;
const anyTextBlock = z.discriminatedUnion("type", textBlocks);

const toolResult = z.strictObject({
  ...partHints,
  type: z.literal("tool_result"),
  tool_use_id: id,
  content: z.union([text, z.array(anyTextBlock)]).optional(),
  is_error: z.boolean().optional(),
});
const toolUse = z.strictObject({
  ...partHints,
  type: z.literal("tool_use"),
  id,
  name: toolName,
  input: z.record(z.string(), z.unknown()),
  caller: z.unknown().optional(),
});
const userBlock = z.discriminatedUnion("type", [...textBlocks, toolResult]);
const assistantBlock = z.discriminatedUnion("type", [...textBlocks, toolUse]);

const customTool = z.strictObject({
  ...anthropicToolHints,
  type: z.literal("custom").optional(),
  name: toolName,
  description: toolDescription,
  input_schema: jsonSchema,
  strict: z.boolean().optional(),
});

const parallel = { disable_parallel_tool_use: z.boolean().optional() };
const format = z.strictObject({ type: z.literal("json_schema"), schema: jsonSchema }).optional();

const shared = {
  ...anthropicHints,
  model: modelName,
  messages: z
    .array(
      z.discriminatedUnion("role", [
        z.strictObject({ role: z.literal("user"), content: z.union([text, z.array(userBlock)]) }),
        z.strictObject({ role: z.literal("assistant"), content: z.union([text, z.array(assistantBlock)]) }),
        z.strictObject({ role: z.literal("system"), content: z.union([text, z.array(anyTextBlock)]) }),
      ]),
    )
    .min(1)
    .max(4096),
  system: z.union([text, z.array(anyTextBlock)]).optional(),
  tools: toolList(z.union([customTool, serverTool])).optional(),
  tool_choice: z
    .discriminatedUnion("type", [
      z.strictObject({ ...parallel, type: z.literal("auto") }),
      z.strictObject({ ...parallel, type: z.literal("any") }),
      z.strictObject({ ...parallel, type: z.literal("tool"), name: toolName }),
      z.strictObject({ ...parallel, type: z.literal("none") }),
    ])
    .optional(),
  output_config: z.strictObject({ ...outputConfigHints, format }).optional(),
  output_format: format.describe("the same as output_config.format"),
  mcp_servers: z.array(z.unknown()).optional().describe("left out, as the header Warning says"),
};

const sampled = {
  temperature: z.number().min(0).max(1).optional(),
  top_p: z.number().min(0).max(1).optional(),
  top_k: z
    .number()
    .int()
    .min(-1)
    .max(1 << 20)
    .optional(),
  stop_sequences: z.array(text).max(64).optional(),
  stream: z.boolean().optional(),
};

const schema = z.strictObject({ ...shared, ...sampled, max_tokens: z.number().int().min(1) });
type Body = z.infer<typeof schema>;

const countSchema = z.strictObject({ ...shared, ...sampled, max_tokens: z.number().int().min(1).optional() });
type CountBody = z.infer<typeof countSchema>;

const usageSchema = z.looseObject({ input_tokens: z.number().int(), output_tokens: z.number().int() });

export const messages = endpoint<Body>({
  path: "/v1/messages",
  tag: "Anthropic",
  summary: "Answers a conversation",
  streams: true,
  body: schema,
  reply: z.looseObject({
    id: z.string(),
    type: z.literal("message"),
    role: z.literal("assistant"),
    model: z.string(),
    content: z.array(z.looseObject({ type: z.enum(["text", "tool_use"]) })),
    stop_reason: z.enum(["end_turn", "max_tokens", "stop_sequence", "tool_use"]).nullable(),
    stop_sequence: z.string().nullable(),
    usage: usageSchema,
  }),
  answer: async (body, service, context) =>
    body.stream
      ? replyStreamed(service, body.model, context, (model) => messageStream(body, service, model, context))
      : replyWhole(service, body.model, context, (model) => messageAnswer(body, service, model, context)),
});

export const countTokens = endpoint<CountBody>({
  path: "/v1/messages/count_tokens",
  tag: "Anthropic",
  summary: "How many tokens a conversation has",
  streams: false,
  body: countSchema,
  reply: z.object({ input_tokens: z.number().int() }),
  answer: (body, service, context) =>
    replyWhole(service, body.model, context, async (model) => {
      const task = conversationTask(model, conversationOf({ ...body, max_tokens: 1 }, service, context), "refuse");
      return { input_tokens: task.request.prompt.length };
    }),
});

function conversationOf(body: Body, service: Service, context: RequestContext): Conversation {
  const { tool_choice: choice, system } = body;
  const wanted = body.output_config?.format ?? body.output_format;
  const turns = body.messages.flatMap(turnsOf);
  return {
    turns: system === undefined ? turns : [systemTurn(system), ...turns],
    tools: toolsOf(body, context),
    continues: true,
    toolChoice: toolChoiceOf(choice),
    parallelCalls: choice?.disable_parallel_tool_use !== true,
    format: wanted && { kind: "json", schema: wanted.schema, param: "output_config", isStrict: false },
    sampling: {
      temperature: body.temperature ?? 1,
      topP: topPOf(body.top_p),
      topK: body.top_k === undefined ? undefined : Math.max(0, body.top_k),
      stops: (body.stop_sequences ?? []).filter((stop) => stop !== ""),
    },
    maxTokens: allowedTokens(service, body.max_tokens, "max_tokens"),
  };
}

function toolsOf(body: Pick<Body, "tools" | "mcp_servers">, context: RequestContext): readonly Tool[] {
  if ((body.mcp_servers ?? []).length > 0) leaveOut("mcp_servers", context);
  const tools = (body.tools ?? []).flatMap((tool): Tool[] => {
    const known = customTool.safeParse(tool);
    if (!known.success) {
      const type = `${tool.type}`;
      const clientTool = anthropicTool(type, `${"name" in tool ? tool.name : type}`);
      return clientTool === undefined ? leaveOut(type, context) : [clientTool];
    }
    const { name, description, input_schema: parameters, strict } = known.data;
    return [{ name, description, parameters, strict: strict === true }];
  });
  return checkTools(tools);
}

type TextContent = string | readonly z.infer<typeof anyTextBlock>[];

const systemTurn = (system: TextContent): Turn => ({
  role: "system",
  content: typeof system === "string" ? system : joined(system.map(textOf), "\n\n"),
});

/** Joins texts, without empty ones. */
const joined = (texts: readonly string[], separator: string): string =>
  texts.filter((one) => one !== "").join(separator);

/** The text of a block. */
function textOf(block: z.infer<typeof userBlock> | z.infer<typeof assistantBlock>): string {
  switch (block.type) {
    case "text":
      return block.text;
    case "compaction":
      return block.content ?? "";
    case "search_result":
      return [`${block.title} (${block.source})`, ...block.content.map(textOf)].join("\n");
    case "document": {
      const { title = "", context = "", source } = block;
      const content = source.type === "text" ? source.data : plainText(source.content);
      return joined([title, context, content], "\n");
    }
    default:
      return "";
  }
}

const plainText = (content: TextContent): string =>
  typeof content === "string" ? content : content.map(textOf).join("");

/** The turns of a message: the results of tools in a user's message are turns of their own. */
function turnsOf({ role, content }: Body["messages"][number]): Turn[] {
  if (role === "system") return [systemTurn(content)];
  if (typeof content === "string") return [role === "user" ? { role, content } : { role, content, calls: [] }];
  if (role === "user") {
    const results = content.flatMap((block): Turn[] =>
      block.type === "tool_result"
        ? [{ role: "tool", content: plainText(block.content ?? ""), callId: block.tool_use_id }]
        : [],
    );
    const message = joined(content.map(textOf), "\n");
    return message === "" && results.length > 0 ? results : [...results, { role, content: message }];
  }
  const calls = content.flatMap((block) =>
    block.type === "tool_use" ? [{ id: block.id, name: block.name, arguments: JSON.stringify(block.input) }] : [],
  );
  return [{ role, calls, content: content.map(textOf).join("") }];
}

function toolChoiceOf(choice: Body["tool_choice"]): ToolChoice {
  if (choice?.type === "tool") return { names: [choice.name], mode: "required" };
  return choice?.type === "any" ? "required" : (choice?.type ?? "auto");
}

async function messageAnswer(body: Body, service: Service, model: LoadedModel, context: RequestContext) {
  const task = conversationTask(model, conversationOf(body, service, context), context.overflow);
  const { parts, calls, result } = await writeOne(model, task, context);
  return {
    ...headOf(model),
    content: parts.map((part) => (typeof part === "string" ? { type: "text", text: part } : blockOf(part))),
    ...reasonOf(result, calls.length > 0),
    usage: anthropicUsage(result),
  };
}

async function* messageStream(
  body: Body,
  service: Service,
  model: LoadedModel,
  context: RequestContext,
): AsyncGenerator<ServerEvent> {
  const task = conversationTask(model, conversationOf(body, service, context), context.overflow);
  const event = (type: string, fields: object): ServerEvent => ({ event: type, data: { type, ...fields } });
  const start = { ...headOf(model), content: [], stop_reason: null, stop_sequence: null };
  let [index, isOpen, hasStarted] = [0, false, false];
  const begin = function* () {
    if (!hasStarted)
      yield event("message_start", {
        message: { ...start, usage: { input_tokens: task.request.prompt.length, output_tokens: 0 } },
      });
    hasStarted = true;
  };
  const close = function* () {
    if (isOpen) yield event("content_block_stop", { index: index++ });
    isOpen = false;
  };
  for await (const { update } of streamAll(model, [task], context)) {
    yield* begin(); // not before the first update: an error until then is answered with its status
    if (update.kind === "text" && update.text !== "") {
      if (!isOpen) yield event("content_block_start", { index, content_block: { type: "text", text: "" } });
      isOpen = true;
      yield event("content_block_delta", { index, delta: { type: "text_delta", text: update.text } });
    } else if (update.kind === "call") {
      yield* close();
      yield event("content_block_start", { index, content_block: { ...blockOf(update.call), input: {} } });
      const delta = { type: "input_json_delta", partial_json: update.call.arguments };
      yield event("content_block_delta", { index, delta });
      yield event("content_block_stop", { index: index++ });
    } else if (update.kind === "end") {
      yield* close();
      const { result, hasCalls } = update;
      yield event("message_delta", { delta: reasonOf(result, hasCalls), usage: anthropicUsage(result) });
    }
  }
  yield event("message_stop", {});
}

const headOf = ({ name: model }: LoadedModel) => ({
  id: `msg_${randomUUID().replace(/-/g, "")}`,
  type: "message",
  role: "assistant",
  model,
});

const blockOf = (call: ToolCall) => ({
  type: "tool_use",
  id: call.id,
  name: call.name,
  input: JSON.parse(call.arguments) as unknown,
});

function reasonOf({ finishReason, stoppedAt }: WriteResult, hasCalls: boolean) {
  const end = stoppedAt === undefined ? "end_turn" : "stop_sequence";
  const stop_reason = finishReason === "length" ? "max_tokens" : hasCalls ? "tool_use" : end;
  return { stop_reason, stop_sequence: stop_reason === "stop_sequence" ? (stoppedAt ?? null) : null };
}

function anthropicUsage({ promptTokens, cachedTokens, completionTokens }: WriteResult) {
  return {
    input_tokens: promptTokens - cachedTokens,
    output_tokens: completionTokens,
    cache_read_input_tokens: cachedTokens,
    cache_creation_input_tokens: 0,
  };
}
