import { z } from "zod";
import type { Conversation, Format, Tool, ToolChoice, Turn } from "../engine/conversation.js";
import type { LoadedModel } from "../engine/model-pool.js";
import { conversationTask } from "../engine/write-task.js";
import { type RequestContext, streamAll, writeOne } from "../engine/writer.js";
import type { WrittenToken } from "../engine/writing.js";
import { type MessageContent, textOf } from "./content.js";
import { customAsTool, customCall } from "./custom-tools.js";
import { allowedTokens, endpoint, replyStreamed, replyWhole, type ServerEvent, type Service } from "./endpoint.js";
import { callItem, messageItem, newId, ResponseStream, responseObject } from "./responses-output.js";
import { isOwnTool, ownTools, type ResponseBody, type ResponseItem, responseBody } from "./responses-schema.js";
import { countOf, topPOf } from "./schemas.js";
import { checkTools, leaveOut, NO_PARAMETERS } from "./tools.js";

/** The value of `include` that asks for log-probabilities. */
const LOGPROBS = "message.output_text.logprobs";

export const responses = endpoint<ResponseBody>({
  path: "/v1/responses",
  tag: "OpenAI",
  summary: "Answers a conversation",
  streams: true,
  body: responseBody,
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
      ? replyStreamed(service, body.model, context, (model) => responseStream(body, service, model, context))
      : replyWhole(service, body.model, context, (model) => wholeResponse(body, service, model, context)),
});

function conversationOf(body: ResponseBody, service: Service, context: RequestContext): Conversation {
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

/** Calls are items of their own; those of one answer become one turn. */
function turnsOf(items: readonly ResponseItem[]): Turn[] {
  const turns: Turn[] = [];
  for (const one of items) {
    if ("role" in one) turns.push(messageTurn(one.role as string, textOf(one.content as MessageContent)));
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

function messageTurn(role: string, message: string): Turn {
  if (role === "assistant") return { role, content: message, calls: [] };
  return { role: role === "user" ? "user" : "system", content: message };
}

function toolsOf(body: ResponseBody, context: RequestContext): readonly Tool[] {
  for (const tool of body.tools ?? []) if (!isOwnTool(tool)) leaveOut(tool.type, context);
  const tools = ownTools(body).map(({ tool }): Tool => {
    if (tool.type === "custom") return customAsTool(tool);
    const { name, description, parameters = NO_PARAMETERS, strict } = tool;
    return { name, description, parameters, strict };
  });
  return checkTools(tools);
}

function toolChoiceOf(choice: ResponseBody["tool_choice"]): ToolChoice {
  if (choice === undefined || typeof choice === "string") return choice ?? "auto";
  if (choice.type !== "allowed_tools") return { names: [choice.name], mode: "required" };
  return { names: choice.tools.map(({ name }) => name), mode: choice.mode };
}

function formatOf(format: NonNullable<ResponseBody["text"]>["format"]): Format | undefined {
  if (format === undefined || format.type === "text") return undefined;
  const { schema, strict = false } = format.type === "json_schema" ? format : {};
  return { kind: "json", schema, param: "text.format", isStrict: strict === true };
}

async function wholeResponse(body: ResponseBody, service: Service, model: LoadedModel, context: RequestContext) {
  const task = conversationTask(model, conversationOf(body, service, context), context.overflow);
  const { parts, tokens, result } = await writeOne(model, task, context);
  let pending: readonly WrittenToken[] = tokens; // all belong to the first text
  const output = (parts.length === 0 ? [""] : parts).map((part) => {
    if (typeof part !== "string") return callItem(part, "completed", ownTools(body));
    const partTokens = pending;
    pending = [];
    return messageItem({ id: newId("msg"), text: part, status: "completed", tokens: partTokens });
  });
  return responseObject({ id: newId("resp"), body, model: model.name, output, result });
}

async function* responseStream(
  body: ResponseBody,
  service: Service,
  model: LoadedModel,
  context: RequestContext,
): AsyncGenerator<ServerEvent> {
  const task = conversationTask(model, conversationOf(body, service, context), context.overflow);
  const stream = new ResponseStream(body, model.name);
  for await (const { update } of streamAll(model, [task], context)) yield* stream.events(update);
}
