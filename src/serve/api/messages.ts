import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { Conversation, ToolChoice, Turn } from "../engine/conversation.js";
import type { LoadedModel } from "../engine/model-pool.js";
import { conversationTask, type RequestContext, streamAll, usageOf, writeAll } from "../engine/writer.js";
import type { Written } from "../engine/written.js";
import { ApiError } from "../errors.js";
import { allowedTokens, endpoint, type ServerEvent, type Service, streamed, whole } from "./endpoint.js";
import { checkTools, jsonSchema, modelName, text, textOf, toolList, toolName } from "./schemas.js";

/** A hint for a cache that is kept in any case. */
const cache_control = z.looseObject({ type: z.literal("ephemeral") }).nullish();
const textBlock = z.strictObject({ type: z.literal("text"), text, cache_control, citations: z.null().optional() });
const content = z.union([text, z.array(textBlock).min(1)]);
const id = z.string().max(256);

const userBlock = z.discriminatedUnion("type", [
  textBlock,
  z.strictObject({
    ...{ type: z.literal("tool_result"), tool_use_id: id, content: z.union([text, z.array(textBlock)]).optional() },
    ...{ is_error: z.boolean().optional(), cache_control },
  }),
]);
const assistantBlock = z.discriminatedUnion("type", [
  textBlock,
  z.strictObject({
    ...{ type: z.literal("tool_use"), id, name: toolName, input: z.record(z.string(), z.unknown()), cache_control },
    caller: z.strictObject({ type: z.literal("direct") }).optional(),
  }),
]);

const shared = {
  model: modelName,
  messages: z
    .array(
      z.discriminatedUnion("role", [
        z.strictObject({ role: z.literal("user"), content: z.union([text, z.array(userBlock).min(1)]) }),
        z.strictObject({ role: z.literal("assistant"), content: z.union([text, z.array(assistantBlock).min(1)]) }),
      ]),
    )
    .min(1)
    .max(4096),
  system: content.optional(),
  tools: toolList(
    z.strictObject({
      ...{
        type: z.literal("custom").nullish(),
        name: toolName,
        description: z
          .string()
          .max(1 << 16)
          .optional(),
      },
      ...{ input_schema: jsonSchema, cache_control, strict: z.boolean().optional() },
      eager_input_streaming: z.boolean().nullish().describe("arguments come when they are complete"),
    }),
  ).optional(),
  tool_choice: z
    .discriminatedUnion("type", [
      z.strictObject({ type: z.literal("auto"), disable_parallel_tool_use: z.boolean().optional() }),
      z.strictObject({ type: z.literal("any"), disable_parallel_tool_use: z.boolean().optional() }),
      z.strictObject({ type: z.literal("tool"), name: toolName, disable_parallel_tool_use: z.boolean().optional() }),
      z.strictObject({ type: z.literal("none") }),
    ])
    .optional(),
  thinking: z.strictObject({ type: z.literal("disabled") }).optional(),
};

const schema = z.strictObject({
  ...shared,
  max_tokens: z.number().int().min(1),
  temperature: z.number().min(0).max(1).optional(),
  top_p: z.number().gt(0).max(1).optional(),
  top_k: z
    .number()
    .int()
    .min(0)
    .max(1 << 20)
    .optional(),
  stop_sequences: z.array(text.min(1)).max(16).optional(),
  stream: z.boolean().optional(),
  metadata: z.strictObject({ user_id: z.string().max(512).nullish() }).optional(),
  service_tier: z.enum(["auto", "standard_only"]).optional(),
  output_config: z
    .strictObject({ format: z.strictObject({ type: z.literal("json_schema"), schema: jsonSchema }).nullish() })
    .optional(),
});
type Body = z.infer<typeof schema>;

const countSchema = z.strictObject(shared);
type CountBody = z.infer<typeof countSchema>;

const usageSchema = z.looseObject({ input_tokens: z.number().int(), output_tokens: z.number().int() });

export const messages = endpoint<Body>({
  ...{ path: "/v1/messages", tag: "Anthropic", summary: "Answers a conversation", streams: true, body: schema },
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
  ...{
    path: "/v1/messages/count_tokens",
    tag: "Anthropic",
    summary: "How many tokens a conversation has",
    streams: false,
  },
  body: countSchema,
  reply: z.object({ input_tokens: z.number().int() }),
  answer: (body, service, context) =>
    whole(service, body.model, context, async (model) => {
      const task = conversationTask(model, conversationOf({ ...body, max_tokens: 1 }, service), "refuse");
      return { input_tokens: task.request.prompt.length };
    }),
});

function conversationOf(body: Body, service: Service): Conversation {
  const { tool_choice: choice, output_config: output } = body;
  const system: Turn[] = body.system === undefined ? [] : [{ role: "system", content: textOf(body.system) }];
  const format = output?.format
    ? { kind: "json" as const, schema: output.format.schema, param: "output_config" }
    : undefined;
  return {
    turns: [...system, ...body.messages.flatMap(turnsOf)],
    tools: checkTools(
      (body.tools ?? []).map(({ name, description, input_schema: parameters }) => ({ name, description, parameters })),
    ),
    toolChoice: toolChoiceOf(choice),
    parallelCalls: !(choice && "disable_parallel_tool_use" in choice && choice.disable_parallel_tool_use),
    format,
    sampling: {
      ...{ temperature: body.temperature ?? 1, topP: body.top_p, topK: body.top_k },
      stops: body.stop_sequences ?? [],
    },
    maxTokens: allowedTokens(service, body.max_tokens, "max_tokens"),
  };
}

/** A message of a user may hold results of tools, each a turn of its own. */
function turnsOf({ role, content: given }: Body["messages"][number]): Turn[] {
  if (typeof given === "string")
    return [role === "user" ? { role, content: given } : { role, content: given, calls: [] }];
  if (role === "user") {
    const blocks = given as z.infer<typeof userBlock>[];
    const results = blocks.flatMap((block): Turn[] =>
      block.type === "text" ? [] : [{ role: "tool", content: textOf(block.content ?? ""), callId: block.tool_use_id }],
    );
    const said = blocks.flatMap((block) => (block.type === "text" ? [block.text] : [])).join("\n");
    return said === "" ? results : [...results, { role, content: said }];
  }
  const blocks = given as z.infer<typeof assistantBlock>[];
  const calls = blocks.flatMap((block) =>
    block.type === "tool_use" ? [{ id: block.id, name: block.name, arguments: JSON.stringify(block.input) }] : [],
  );
  return [{ role, calls, content: blocks.map((block) => (block.type === "text" ? block.text : "")).join("") }];
}

function toolChoiceOf(choice: Body["tool_choice"]): ToolChoice {
  if (choice?.type === "tool") return { name: choice.name };
  return choice?.type === "any" ? "required" : (choice?.type ?? "auto");
}

async function messageAnswer(body: Body, service: Service, model: LoadedModel, context: RequestContext) {
  const task = conversationTask(model, conversationOf(body, service), context.overflow);
  const [answer] = await writeAll(model, [task], context);
  if (answer === undefined) throw new ApiError(500, "there is no answer");
  const { text: said, calls, written } = answer;
  return {
    ...headOf(model),
    content: [...(said === "" ? [] : [{ type: "text", text: said }]), ...calls.map(blockOf)],
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
  const task = conversationTask(model, conversationOf(body, service), context.overflow);
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
  ...{ id: `msg_${randomUUID().replace(/-/g, "")}`, type: "message", role: "assistant", model },
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
  ...{ type: "tool_use", id: own, name, input: JSON.parse(json) as unknown },
});

function reasonOf({ finishReason, stoppedAt }: Written, called: boolean) {
  const own = stoppedAt === undefined ? "end_turn" : "stop_sequence";
  const stop_reason = finishReason === "length" ? "max_tokens" : called ? "tool_use" : own;
  return { stop_reason, stop_sequence: stop_reason === "stop_sequence" ? (stoppedAt ?? null) : null };
}

function anthropicUsage(written: Written) {
  const { promptTokens, cachedTokens, completionTokens } = usageOf([written]);
  return {
    ...{ input_tokens: promptTokens - cachedTokens, output_tokens: completionTokens },
    ...{ cache_read_input_tokens: cachedTokens, cache_creation_input_tokens: 0 },
  };
}
