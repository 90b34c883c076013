import { z } from "zod";
import type { Conversation, Format, Overflow, Sampling, ToolCall, Turn } from "../engine/conversation.js";
import type { LoadedModel } from "../engine/model-pool.js";
import { conversationTask, fitTokens, formatGrammar, type WriteTask } from "../engine/write-task.js";
import { type RequestContext, streamAll, writeOne } from "../engine/writer.js";
import type { WriteResult, WrittenToken } from "../engine/writing.js";
import {
  allowedTokens,
  endpoint,
  PLAIN,
  type Reply,
  replyStreamed,
  replyWhole,
  type ServerEvent,
  type Service,
} from "./endpoint.js";
import { ollamaHints, ollamaOptionHints } from "./hints.js";
import { tokenLogprobs } from "./logprobs.js";
import { jsonSchema, MIN_PENALTY, seedOf, text, topPOf } from "./schemas.js";
import { checkTools, NO_PARAMETERS, toolDescription, toolList, toolName } from "./tools.js";

/** Ollama's chats and completions. Its lists of models are in ollama-models.ts, its embeddings in ollama-embed.ts. */

export const ollamaModel = z.string().max(256).describe("one of /api/tags, with or without :latest");
const images = z.array(z.unknown()).max(0, "this model reads no images").optional();
const integer = z.number().int().optional();

const options = z.strictObject({
  ...ollamaOptionHints,
  temperature: z.number().min(0).max(5).optional().describe("0.8 by default"),
  top_p: z.number().min(0).max(1).optional().describe("0.9 by default"),
  top_k: integer.describe("40 by default"),
  min_p: z.number().min(0).max(1).optional(),
  seed: z.number().int().optional(),
  num_predict: z.number().int().min(-2).optional().describe("-1 and -2 for as many as the context has room for"),
  stop: z.union([text, z.array(text).max(64)]).optional(),
  repeat_penalty: z.number().min(MIN_PENALTY).max(10).optional(),
  repeat_last_n: z.number().int().min(-1).optional(),
  presence_penalty: z.number().min(-2).max(2).optional(),
  frequency_penalty: z.number().min(-2).max(2).optional(),
  mirostat: z.literal(0).optional(),
  typical_p: z.literal(1).optional(),
  tfs_z: z.literal(1).optional(),
});

const shared = {
  ...ollamaHints,
  model: ollamaModel,
  stream: z.boolean().optional().describe("true by default"),
  format: z.union([z.literal(""), z.literal("json"), jsonSchema]).optional(),
  options: options.optional(),
  truncate: z.boolean().optional().describe("whether to drop the oldest part of what does not fit; true by default"),
  logprobs: z.boolean().optional(),
  top_logprobs: z.number().int().min(0).max(20).optional(),
};

const call = z.strictObject({
  id: z.string().max(256).optional(),
  type: z.literal("function").optional(),
  function: z.strictObject({
    name: toolName,
    arguments: z.record(z.string(), z.unknown()).optional(),
    index: integer,
    description: z.unknown().optional(),
  }),
});
const message = z.strictObject({
  role: z.enum(["system", "user", "assistant", "tool"]),
  content: text.optional(),
  thinking: z.unknown().optional(),
  images,
  tool_calls: z.array(call).max(256).optional(),
  tool_name: z.string().max(256).optional(),
  tool_call_id: z.string().max(256).optional(),
  name: z.string().max(256).optional(),
});

const chatSchema = z.strictObject({
  ...shared,
  messages: z.array(message).max(4096).optional(),
  tools: toolList(
    z.strictObject({
      type: z.literal("function").optional(),
      items: z.unknown().optional(),
      function: z.strictObject({
        name: toolName,
        description: toolDescription,
        parameters: jsonSchema.optional(),
        strict: z.boolean().optional(),
      }),
    }),
  ).optional(),
});
type ChatBody = z.infer<typeof chatSchema>;

const generateSchema = z.strictObject({
  ...shared,
  prompt: text.optional(),
  system: text.optional(),
  raw: z.boolean().optional().describe("whether to take the prompt as it is, without the model's chat template"),
  images,
  suffix: z.literal("").optional(),
  template: z.literal("").optional(),
  context: z.array(z.unknown()).max(0).optional(),
});
type GenerateBody = z.infer<typeof generateSchema>;
type Body = ChatBody | GenerateBody;

const answerSchema = z.looseObject({ model: z.string(), created_at: z.string(), done: z.boolean() });

export const ollamaChat = endpoint<ChatBody>({
  path: "/api/chat",
  tag: "Ollama",
  summary: "Answers a conversation",
  streams: true,
  body: chatSchema,
  reply: answerSchema,
  answer: async (body, service, context) => {
    const { messages = [] } = body;
    if (messages.length === 0)
      return replyLoaded(body, service, context, { message: { role: "assistant", content: "" } });
    const taskOf = (model: LoadedModel) => conversationTask(model, chatOf(body, service), overflowOf(body));
    return reply(body, service, context, {
      taskOf,
      show: (content, calls, firstIndex) => ({
        message: {
          role: "assistant",
          content,
          tool_calls: calls.length > 0 ? calls.map((call, i) => callOf(call, firstIndex + i)) : undefined,
        },
      }),
    });
  },
});

export const ollamaGenerate = endpoint<GenerateBody>({
  path: "/api/generate",
  tag: "Ollama",
  summary: "Answers a prompt",
  streams: true,
  body: generateSchema,
  reply: answerSchema,
  answer: async (body, service, context) => {
    if ((body.prompt ?? "") === "") return replyLoaded(body, service, context, { response: "" });
    const taskOf = (model: LoadedModel) => generateTask(body, service, model);
    return reply(body, service, context, { taskOf, show: (response) => ({ response }) });
  },
});

const overflowOf = ({ truncate }: Body): Overflow => (truncate === false ? "refuse" : "drop-oldest");

function chatOf(body: ChatBody, service: Service): Conversation {
  const tools = (body.tools ?? []).map(({ function: { parameters = NO_PARAMETERS, ...tool } }) => ({
    ...tool,
    parameters,
  }));
  return {
    ...PLAIN,
    turns: turnsOf(body.messages ?? []),
    tools: checkTools(tools),
    continues: true,
    ...answerOptions(body, service),
  };
}

/** Options of an answer that chats and completions have in common. */
const answerOptions = (body: Body, service: Service) => ({
  format: formatOf(body),
  sampling: samplingOf(body),
  maxTokens: maxTokensOf(body, service),
  topLogprobs: body.logprobs === true ? (body.top_logprobs ?? 0) : undefined,
});

function generateTask(body: GenerateBody, service: Service, model: LoadedModel): WriteTask {
  const { prompt = "", system, raw = false } = body;
  const overflow = overflowOf(body);
  if (!raw && model.model.templateSource !== undefined) {
    const turns: Turn[] = system ? [{ role: "system", content: system }] : [];
    const conversation = { ...PLAIN, ...answerOptions(body, service) };
    return conversationTask(model, { ...conversation, turns: [...turns, { role: "user", content: prompt }] }, overflow);
  }
  const { format, sampling, maxTokens, topLogprobs } = answerOptions(body, service);
  const tokens = model.model.promptOf(system && !raw ? `${system}\n\n${prompt}` : prompt);
  return {
    request: {
      ...sampling,
      prompt: fitTokens(model, tokens, maxTokens ?? model.model.contextSize, overflow),
      maxTokens,
      topLogprobs,
      grammar: format && formatGrammar(format),
    },
  };
}

/** Results of tools refer to their calls by id, by the tool's name, or by their order. */
function turnsOf(messages: readonly z.infer<typeof message>[]): Turn[] {
  const open: { readonly id: string; readonly name: string }[] = [];
  return messages.map((one, i): Turn => {
    const { role, content = "", tool_name: name = one.name, tool_call_id: id } = one;
    if (role === "assistant") {
      const calls = (one.tool_calls ?? []).map((toolCall, j) => ({
        id: toolCall.id ?? `call_${i}_${j}`,
        name: toolCall.function.name,
        arguments: JSON.stringify(toolCall.function.arguments ?? {}),
      }));
      open.push(...calls);
      return { role, content, calls };
    }
    if (role !== "tool") return { role, content };
    const at = open.findIndex((known) =>
      id === undefined ? name === undefined || known.name === name : known.id === id,
    );
    const [known] = open.splice(Math.max(0, at), 1);
    return { role, content, callId: id ?? known?.id ?? "" };
  });
}

function formatOf({ format }: Body): Format | undefined {
  if (format === undefined || format === "") return undefined;
  return { kind: "json", schema: format === "json" ? undefined : format, param: "format", isStrict: false };
}

/** With Ollama's own defaults. */
function samplingOf({ options: sampling = {} }: Body): Sampling {
  return {
    temperature: sampling.temperature ?? 0.8,
    topP: topPOf(sampling.top_p ?? 0.9),
    topK: Math.max(0, sampling.top_k ?? 40),
    minP: sampling.min_p,
    seed: seedOf(sampling.seed),
    repetitionPenalty: sampling.repeat_penalty,
    penaltyWindow:
      sampling.repeat_last_n === undefined || sampling.repeat_last_n < 0 ? undefined : sampling.repeat_last_n,
    presencePenalty: sampling.presence_penalty,
    frequencyPenalty: sampling.frequency_penalty,
    stops: [sampling.stop ?? []].flat().filter((stop) => stop !== ""),
  };
}

function maxTokensOf({ options: sampling = {} }: Body, service: Service): number | undefined {
  const { num_predict: count = -1 } = sampling;
  return allowedTokens(service, count < 0 ? undefined : count, "options.num_predict");
}

const callOf = ({ id, name, arguments: json }: ToolCall, index: number) => ({
  id,
  function: { index, name, arguments: JSON.parse(json) as unknown },
});

/** Answers a request that only asks to load the model. @param empty an empty answer */
const replyLoaded = ({ model: name }: Body, service: Service, context: RequestContext, empty: object): Promise<Reply> =>
  replyWhole(service, name, context, async () => ({
    model: name,
    created_at: new Date().toISOString(),
    ...empty,
    done: true,
    done_reason: "load",
  }));

interface ReplyOptions {
  readonly taskOf: (model: LoadedModel) => WriteTask;
  /** Fields of an answer for its text and calls. @param firstIndex the number of calls before */
  readonly show: (text: string, calls: readonly ToolCall[], firstIndex: number) => object;
}

async function reply(
  body: Body,
  service: Service,
  context: RequestContext,
  { taskOf, show }: ReplyOptions,
): Promise<Reply> {
  const receivedAt = performance.now();
  const head = () => ({ model: body.model, created_at: new Date().toISOString() });
  if (body.stream === false)
    return replyWhole(service, body.model, context, async (model) => {
      const clock = new Clock(receivedAt);
      const answer = await writeOne(model, taskOf(model), context, () => clock.first());
      const { text: content, calls, tokens, result } = answer;
      return { ...head(), ...show(content, calls, 0), ...logprobsOf(body, tokens), ...clock.end(result) };
    });
  return replyStreamed(service, body.model, context, async function* (model): AsyncGenerator<ServerEvent> {
    const clock = new Clock(receivedAt);
    let calls = 0;
    for await (const { update } of streamAll(model, [taskOf(model)], context)) {
      clock.first();
      if (update.kind === "text")
        yield { data: { ...head(), ...show(update.text, [], 0), ...logprobsOf(body, update.tokens), done: false } };
      else if (update.kind === "call") yield { data: { ...head(), ...show("", [update.call], calls++), done: false } };
      else yield { data: { ...head(), ...show("", [], 0), ...clock.end(update.result) } };
    }
  });
}

const logprobsOf = ({ logprobs }: Body, tokens: readonly WrittenToken[]): object =>
  logprobs === true && tokens.length > 0 ? { logprobs: tokenLogprobs(tokens) } : {};

/** How long an answer took, in nanoseconds. */
class Clock {
  private readonly loadedAt = performance.now();
  private firstAt: number | undefined;

  /** @param receivedAt when the request came, in milliseconds */
  constructor(private readonly receivedAt: number) {}

  /** Notes when the first part of the answer comes. */
  first(): void {
    this.firstAt ??= performance.now();
  }

  end({ finishReason, promptTokens, completionTokens }: WriteResult) {
    const now = performance.now();
    const nanoseconds = (milliseconds: number) => Math.round(1e6 * milliseconds);
    const first = this.firstAt ?? now;
    return {
      done: true,
      done_reason: finishReason,
      total_duration: nanoseconds(now - this.receivedAt),
      load_duration: nanoseconds(this.loadedAt - this.receivedAt),
      prompt_eval_count: promptTokens,
      prompt_eval_duration: nanoseconds(first - this.loadedAt),
      eval_count: completionTokens,
      eval_duration: nanoseconds(now - first),
    };
  }
}
