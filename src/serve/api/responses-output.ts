import { randomUUID } from "node:crypto";
import type { ToolCall } from "../engine/conversation.js";
import { type AnswerUpdate, usageOf } from "../engine/writer.js";
import type { WriteResult, WrittenToken } from "../engine/writing.js";
import { customInput } from "./custom-tools.js";
import { now, type ServerEvent } from "./endpoint.js";
import { tokenLogprobs } from "./logprobs.js";
import { type OwnTool, ownTools, type ResponseBody } from "./responses-schema.js";

/** Answers in the form of OpenAI's responses. */

type CreateEvent = (type: string, fields: object) => ServerEvent;

/** Turns the updates of an answer into the events of a streamed response. */
export class ResponseStream {
  private readonly id = newId("resp");
  private readonly output: object[] = [];
  private sequenceNumber = 0;
  private hasStarted = false;
  /** The message that is being written. */
  private message: { readonly id: string; text: string; readonly tokens: WrittenToken[] } | undefined;

  constructor(
    private readonly body: ResponseBody,
    private readonly model: string,
  ) {}

  *events(update: AnswerUpdate): Generator<ServerEvent> {
    if (!this.hasStarted) yield* this.start();
    if (update.kind === "text" && update.text !== "") yield* this.addText(update.text, update.tokens);
    else if (update.kind === "call") {
      yield* this.closeMessage();
      const item = callItem(update.call, "completed", ownTools(this.body));
      yield* callEvents(item, this.output.length, this.event);
      this.output.push(item);
    } else if (update.kind === "end") {
      yield* this.closeMessage();
      const response = this.response(update.result);
      yield this.event(response.status === "completed" ? "response.completed" : "response.incomplete", { response });
    }
  }

  private *start(): Generator<ServerEvent> {
    this.hasStarted = true;
    const response = this.response(undefined);
    yield this.event("response.created", { response });
    yield this.event("response.in_progress", { response });
  }

  private *addText(delta: string, tokens: readonly WrittenToken[]): Generator<ServerEvent> {
    if (this.message === undefined) {
      this.message = { id: newId("msg"), text: "", tokens: [] };
      const item = { ...messageItem({ id: this.message.id, text: "", status: "in_progress" }), content: [] };
      yield this.event("response.output_item.added", { output_index: this.output.length, item });
      yield this.event("response.content_part.added", { ...this.place(this.message.id), part: textPart("") });
    }
    this.message.text += delta;
    this.message.tokens.push(...tokens);
    const logprobs = tokenLogprobs(tokens);
    yield this.event("response.output_text.delta", { ...this.place(this.message.id), delta, logprobs });
  }

  private *closeMessage(): Generator<ServerEvent> {
    if (this.message === undefined) return;
    const { id, text, tokens } = this.message;
    const place = this.place(id);
    yield this.event("response.output_text.done", { ...place, text, logprobs: tokenLogprobs(tokens) });
    yield this.event("response.content_part.done", { ...place, part: textPart(text, tokens) });
    const item = messageItem({ id, text, status: "completed", tokens });
    yield this.event("response.output_item.done", { output_index: this.output.length, item });
    this.output.push(item);
    this.message = undefined;
  }

  private place(itemId: string) {
    return { item_id: itemId, output_index: this.output.length, content_index: 0 };
  }

  private response(result: WriteResult | undefined) {
    const output = result === undefined ? [] : this.output;
    return responseObject({ id: this.id, body: this.body, model: this.model, output, result });
  }

  private readonly event: CreateEvent = (type, fields) => ({
    event: type,
    data: { type, sequence_number: this.sequenceNumber++, ...fields },
  });
}

export const newId = (kind: string): string => `${kind}_${randomUUID().replace(/-/g, "")}`;

const textPart = (text: string, tokens: readonly WrittenToken[] = []) => ({
  type: "output_text",
  text,
  annotations: [],
  logprobs: tokenLogprobs(tokens),
});

interface Message {
  readonly id: string;
  readonly text: string;
  readonly status: "in_progress" | "completed";
  readonly tokens?: readonly WrittenToken[] | undefined;
}

export const messageItem = ({ id, text, status, tokens }: Message) => ({
  id,
  type: "message",
  role: "assistant",
  status,
  content: [textPart(text, tokens)],
});

/** A call as an item: of a function, or of a custom tool. */
export function callItem(call: ToolCall, status: string, tools: readonly OwnTool[]) {
  const found = tools.find(({ tool }) => tool.name === call.name);
  const from = found?.namespace === undefined ? {} : { namespace: found.namespace };
  if (found?.tool.type === "custom") {
    const input = customInput(call);
    return { id: newId("ctc"), type: "custom_tool_call", call_id: call.id, name: call.name, input, status, ...from };
  }
  const { name, arguments: json } = call;
  return { id: newId("fc"), type: "function_call", call_id: call.id, name, arguments: json, status, ...from };
}

/** The events of a call, which is sent when it is complete. */
function* callEvents(
  done: ReturnType<typeof callItem>,
  output_index: number,
  event: CreateEvent,
): Generator<ServerEvent> {
  const at = { item_id: done.id, output_index };
  const empty = "input" in done ? { input: "" } : { arguments: "" };
  yield event("response.output_item.added", { output_index, item: { ...done, ...empty, status: "in_progress" } });
  if ("input" in done) {
    yield event("response.custom_tool_call_input.delta", { ...at, delta: done.input });
    yield event("response.custom_tool_call_input.done", { ...at, input: done.input });
  } else {
    yield event("response.function_call_arguments.delta", { ...at, delta: done.arguments });
    yield event("response.function_call_arguments.done", { ...at, name: done.name, arguments: done.arguments });
  }
  yield event("response.output_item.done", { output_index, item: done });
}

interface ResponseFields {
  readonly id: string;
  readonly body: ResponseBody;
  readonly model: string;
  readonly output: readonly object[];
  /** Undefined while the answer is being written. */
  readonly result: WriteResult | undefined;
}

export function responseObject({ id, body, model, output, result }: ResponseFields) {
  const status = result === undefined ? "in_progress" : result.finishReason === "length" ? "incomplete" : "completed";
  const { promptTokens, cachedTokens, completionTokens } = usageOf(result === undefined ? [] : [result]);
  return {
    id,
    object: "response",
    created_at: now(),
    status,
    model,
    output,
    background: false,
    error: null,
    incomplete_details: status === "incomplete" ? { reason: "max_output_tokens" } : null,
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
      result === undefined
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
