import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { Conversation, Tool, ToolChoice, Turn } from "../engine/conversation.js";
import type { LoadedModel } from "../engine/model-pool.js";
import { conversationTask, type RequestContext, streamAll, usageOf, writeOne } from "../engine/writer.js";
import type { Written } from "../engine/written.js";
import { anthropicTool } from "./anthropic-tools.js";
import { allowedTokens, endpoint, type ServerEvent, type Service, streamed, whole } from "./endpoint.js";
import { anthropicHints, anthropicToolHints, outputConfigHints, partHints } from "./hints.js";
import { jsonSchema, modelName, text, topPOf } from "./schemas.js";
import { checkTools, leaveOut, serverTool, toolDescription, toolList, toolName } from "./tools.js";

const id = z.string().max(256);
const textBlock = z.strictObject({ ...partHints, type: z.literal("text"), text });
/** Texts that come as files. */
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
/** What has no text for the model: thoughts, what a provider's tools did, changes of the conversation's own. */
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
const told = [textBlock, documentBlock, searchResult, compaction, otherBlock] as const;
const toldBlock = z.discriminatedUnion("type", told);

const toolResult = z.strictObject({
  ...partHints,
  type: z.literal("tool_result"),
  tool_use_id: id,
  content: z.union([text, z.array(toldBlock)]).optional(),
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
const userBlock = z.discriminatedUnion("type", [...told, toolResult]);
const assistantBlock = z.discriminatedUnion("type", [...told, toolUse]);

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
        z.strictObject({ role: z.literal("system"), content: z.union([text, z.array(toldBlock)]) }),
      ]),
    )
    .min(1)
    .max(4096),
  system: z.union([text, z.array(toldBlock)]).optional(),
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
  mcp_servers: z.array(z.unknown()).optional().describe("left out, which the header Warning says"),
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
      ? streamed(service, body.model, context, (model) => messageStream(body, service, model, context))
      : whole(service, body.model, context, (model) => messageAnswer(body, service, model, context)),
});

export const countTokens = endpoint<CountBody>({
  path: "/v1/messages/count_tokens",
  tag: "Anthropic",
  summary: "How many tokens a conversation has",
  streams: false,
  body: countSchema,
  reply: z.object({ input_tokens: z.number().int() }),
  answer: (body, service, context) =>
    whole(service, body.model, context, async (model) => {
      const task = conversationTask(model, conversationOf({ ...body, max_tokens: 1 }, service, context), "refuse");
      return { input_tokens: task.request.prompt.length };
    }),
});

function conversationOf(body: Body, service: Service, context: RequestContext): Conversation {
  const { tool_choice: choice, system } = body;
  const wanted = body.output_config?.format ?? body.output_format;
  return {
    turns: [...(system === undefined ? [] : [systemTurn(system)]), ...body.messages.flatMap(turnsOf)],
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
  const own = (body.tools ?? []).flatMap((tool): Tool[] => {
    const known = customTool.safeParse(tool);
    if (!known.success) {
      const type = `${tool.type}`;
      const ready = anthropicTool(type, `${"name" in tool ? tool.name : type}`);
      return ready === undefined ? leaveOut(type, context) : [ready];
    }
    const { name, description, input_schema: parameters, strict } = known.data;
    return [{ name, description, parameters, strict: strict === true }];
  });
  return checkTools(own);
}

const systemTurn = (given: string | readonly z.infer<typeof toldBlock>[]): Turn => {
  return { role: "system", content: typeof given === "string" ? given : given.map(textIn).filter(isSaid).join("\n\n") };
};

const isSaid = (said: string): boolean => said !== "";

/** What a block says to the model. */
function textIn(block: z.infer<typeof userBlock> | z.infer<typeof assistantBlock>): string {
  switch (block.type) {
    case "text":
      return block.text;
    case "compaction":
      return block.content ?? "";
    case "search_result":
      return [`${block.title} (${block.source})`, ...block.content.map(textIn)].join("\n");
    case "document": {
      const { title = "", context = "", source } = block;
      const { type } = source;
      const said = type === "text" ? source.data : resultText(source.content);
      return [title, context, said].filter(isSaid).join("\n");
    }
    default:
      return "";
  }
}

const resultText = (given: string | readonly z.infer<typeof toldBlock>[]): string =>
  typeof given === "string" ? given : given.map(textIn).join("");

/** A message of a user may hold results of tools, each a turn of its own. */
function turnsOf({ role, content }: Body["messages"][number]): Turn[] {
  if (role === "system") return [systemTurn(content)];
  if (typeof content === "string") return [role === "user" ? { role, content } : { role, content, calls: [] }];
  if (role === "user") {
    const results = content.flatMap((block): Turn[] =>
      block.type === "tool_result"
        ? [{ role: "tool", content: resultText(block.content ?? ""), callId: block.tool_use_id }]
        : [],
    );
    const said = content.map(textIn).filter(isSaid).join("\n");
    return said === "" && results.length > 0 ? results : [...results, { role, content: said }];
  }
  const calls = content.flatMap((block) =>
    block.type === "tool_use" ? [{ id: block.id, name: block.name, arguments: JSON.stringify(block.input) }] : [],
  );
  return [{ role, calls, content: content.map(textIn).join("") }];
}

function toolChoiceOf(choice: Body["tool_choice"]): ToolChoice {
  if (choice?.type === "tool") return { names: [choice.name], mode: "required" };
  return choice?.type === "any" ? "required" : (choice?.type ?? "auto");
}

async function messageAnswer(body: Body, service: Service, model: LoadedModel, context: RequestContext) {
  const task = conversationTask(model, conversationOf(body, service, context), context.overflow);
  const { parts, calls, written } = await writeOne(model, task, context);
  return {
    ...headOf(model),
    content: parts.map((part) => (typeof part === "string" ? { type: "text", text: part } : blockOf(part))),
    ...reasonOf(written, calls.length > 0),
    usage: anthropicUsage(written),
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
  let [index, open, begun] = [0, false, false];
  const begin = function* () {
    if (!begun)
      yield event("message_start", {
        message: { ...start, usage: { input_tokens: task.request.prompt.length, output_tokens: 0 } },
      });
    begun = true;
  };
  const close = function* () {
    if (open) yield event("content_block_stop", { index: index++ });
    open = false;
  };
  for await (const { said } of streamAll(model, [task], context)) {
    yield* begin(); // not before the first of it: what is wrong until then is answered with a status
    if (said.kind === "text" && said.text !== "") {
      if (!open) yield event("content_block_start", { index, content_block: { type: "text", text: "" } });
      open = true;
      yield event("content_block_delta", { index, delta: { type: "text_delta", text: said.text } });
    } else if (said.kind === "call") {
      yield* close();
      yield event("content_block_start", { index, content_block: { ...blockOf(said.call), input: {} } });
      const delta = { type: "input_json_delta", partial_json: said.call.arguments };
      yield event("content_block_delta", { index, delta });
      yield event("content_block_stop", { index: index++ });
    } else if (said.kind === "end") {
      yield* close();
      const { written, called } = said;
      yield event("message_delta", { delta: reasonOf(written, called), usage: anthropicUsage(written) });
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

const blockOf = ({
  id: own,
  name,
  arguments: json,
}: {
  readonly id: string;
  readonly name: string;
  readonly arguments: string;
}) => ({
  type: "tool_use",
  id: own,
  name,
  input: JSON.parse(json) as unknown,
});

function reasonOf({ finishReason, stoppedAt }: Written, called: boolean) {
  const own = stoppedAt === undefined ? "end_turn" : "stop_sequence";
  const stop_reason = finishReason === "length" ? "max_tokens" : called ? "tool_use" : own;
  return { stop_reason, stop_sequence: stop_reason === "stop_sequence" ? (stoppedAt ?? null) : null };
}

function anthropicUsage(written: Written) {
  const { promptTokens, cachedTokens, completionTokens } = usageOf([written]);
  return {
    input_tokens: promptTokens - cachedTokens,
    output_tokens: completionTokens,
    cache_read_input_tokens: cachedTokens,
    cache_creation_input_tokens: 0,
  };
}
