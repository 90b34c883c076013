import { z } from "zod";
import type { Conversation, Format, Overflow, Sampling, ToolCall, Turn } from "../engine/conversation.js";
import type { LoadedModel } from "../engine/model-pool.js";
import {
  conversationTask,
  fittingTokens,
  formatGrammar,
  type RequestContext,
  streamAll,
  type Task,
  writeOne,
} from "../engine/writer.js";
import type { Written, WrittenToken } from "../engine/written.js";
import { allowedTokens, endpoint, type Reply, type ServerEvent, type Service, streamed, whole } from "./endpoint.js";
import { ollamaHints, ollamaOptionHints } from "./hints.js";
import { toldTokens } from "./logprobs.js";
import { jsonSchema, LEAST_PENALTY, seedOf, text, topPOf } from "./schemas.js";
import { checkTools, NO_PARAMETERS, toolDescription, toolList, toolName } from "./tools.js";

/** Ollama's chats and texts. Its lists of models are in ollama-models.ts, its embeddings in ollama-embed.ts. */

export const ollamaModel = z.string().max(256).describe("one of /api/tags, with or without :latest");
const images = z.array(z.unknown()).max(0, "this model reads no images").optional();
const integer = z.number().int().optional();

const options = z.strictObject({
  ...ollamaOptionHints,
  temperature: z.number().min(0).max(5).optional().describe("0.8 where it is left out"),
  top_p: z.number().min(0).max(1).optional().describe("0.9 where it is left out"),
  top_k: integer.describe("40 where it is left out"),
  min_p: z.number().min(0).max(1).optional(),
  seed: z.number().int().optional(),
  num_predict: z.number().int().min(-2).optional().describe("-1 and -2 for what the context leaves"),
  stop: z.union([text, z.array(text).max(64)]).optional(),
  repeat_penalty: z.number().min(LEAST_PENALTY).max(10).optional(),
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
  stream: z.boolean().optional().describe("true where it is left out"),
  format: z.union([z.literal(""), z.literal("json"), jsonSchema]).optional(),
  options: options.optional(),
  truncate: z.boolean().optional().describe("whether the oldest part of what does not fit is left out; true"),
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
  raw: z.boolean().optional().describe("whether the prompt is taken as it stands, without the model's chat template"),
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
    if (messages.length === 0) return loaded(body, service, context, { message: { role: "assistant", content: "" } });
    const taskOf = (model: LoadedModel) => conversationTask(model, chatOf(body, service), overflowOf(body));
    return answered(body, service, context, taskOf, (said, calls, from) => ({
      message: {
        role: "assistant",
        content: said,
        tool_calls: calls.length > 0 ? calls.map((one, i) => callOf(one, from + i)) : undefined,
      },
    }));
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
    if ((body.prompt ?? "") === "") return loaded(body, service, context, { response: "" });
    const taskOf = (model: LoadedModel) => generateTask(body, service, model);
    return answered(body, service, context, taskOf, (said) => ({ response: said }));
  },
});

const overflowOf = ({ truncate }: Body): Overflow => (truncate === false ? "refuse" : "drop-oldest");

function chatOf(body: ChatBody, service: Service): Conversation {
  const tools = (body.tools ?? []).map(({ function: { parameters = NO_PARAMETERS, ...tool } }) => ({
    ...tool,
    parameters,
  }));
  return {
    turns: turnsOf(body.messages ?? []),
    tools: checkTools(tools),
    toolChoice: "auto",
    parallelCalls: true,
    continues: true,
    ...written(body, service),
  };
}

/** What both ask of an answer. */
const written = (body: Body, service: Service) => ({
  format: formatOf(body),
  sampling: samplingOf(body),
  maxTokens: maxTokensOf(body, service),
  topLogprobs: body.logprobs === true ? (body.top_logprobs ?? 0) : undefined,
});

function generateTask(body: GenerateBody, service: Service, model: LoadedModel): Task {
  const { prompt = "", system, raw = false } = body;
  const overflow = overflowOf(body);
  if (!raw && model.model.templateSource !== undefined) {
    const turns: Turn[] = system ? [{ role: "system", content: system }] : [];
    const conversation = { tools: [], toolChoice: "auto" as const, parallelCalls: true, ...written(body, service) };
    return conversationTask(model, { ...conversation, turns: [...turns, { role: "user", content: prompt }] }, overflow);
  }
  const { format, sampling, maxTokens, topLogprobs } = written(body, service);
  const tokens = model.model.promptOf(system && !raw ? `${system}\n\n${prompt}` : prompt);
  const most = maxTokens ?? model.model.contextSize;
  return {
    request: {
      ...sampling,
      prompt: fittingTokens(model, tokens, most, overflow),
      maxTokens,
      topLogprobs,
      grammar: format && formatGrammar(format),
    },
  };
}

/** Results of tools say which call they are of by its id, by the tool's name, or by their order. */
function turnsOf(messages: readonly z.infer<typeof message>[]): Turn[] {
  const open: { readonly id: string; readonly name: string }[] = [];
  return messages.map((one, i): Turn => {
    const { role, content = "", tool_name: name = one.name, tool_call_id: id } = one;
    if (role === "assistant") {
      const calls = (one.tool_calls ?? []).map((given, j) => ({
        id: given.id ?? `call_${i}_${j}`,
        name: given.function.name,
        arguments: JSON.stringify(given.function.arguments ?? {}),
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

/** Ollama's own values where a client leaves them out. */
function samplingOf({ options: given = {} }: Body): Sampling {
  return {
    temperature: given.temperature ?? 0.8,
    topP: topPOf(given.top_p ?? 0.9),
    topK: Math.max(0, given.top_k ?? 40),
    minP: given.min_p,
    seed: seedOf(given.seed),
    repetitionPenalty: given.repeat_penalty,
    penaltyWindow: given.repeat_last_n === undefined || given.repeat_last_n < 0 ? undefined : given.repeat_last_n,
    presencePenalty: given.presence_penalty,
    frequencyPenalty: given.frequency_penalty,
    stops: [given.stop ?? []].flat().filter((stop) => stop !== ""),
  };
}

function maxTokensOf({ options: given = {} }: Body, service: Service): number | undefined {
  const { num_predict: count = -1 } = given;
  return allowedTokens(service, count < 0 ? undefined : count, "options.num_predict");
}

const callOf = ({ id, name, arguments: json }: ToolCall, index: number) => ({
  id,
  function: { index, name, arguments: JSON.parse(json) as unknown },
});

/** An answer to a request that asks for nothing but that the model be there. */
const loaded = ({ model: name }: Body, service: Service, context: RequestContext, nothing: object): Promise<Reply> =>
  whole(service, name, context, async () => ({
    model: name,
    created_at: new Date().toISOString(),
    ...nothing,
    done: true,
    done_reason: "load",
  }));

/** What an answer has of text and calls. @param from the number of calls before */
type Shown = (said: string, calls: readonly ToolCall[], from: number) => object;

async function answered(
  body: Body,
  service: Service,
  context: RequestContext,
  taskOf: (model: LoadedModel) => Task,
  shown: Shown,
): Promise<Reply> {
  const asked = performance.now();
  const head = () => ({ model: body.model, created_at: new Date().toISOString() });
  if (body.stream === false)
    return whole(service, body.model, context, async (model) => {
      const clock = new Clock(asked);
      const {
        text: said,
        calls,
        tokens,
        written: end,
      } = await writeOne(model, taskOf(model), context, () => clock.first());
      return { ...head(), ...shown(said, calls, 0), ...logprobsOf(body, tokens), ...clock.end(end) };
    });
  return streamed(service, body.model, context, async function* (model): AsyncGenerator<ServerEvent> {
    const clock = new Clock(asked);
    let calls = 0;
    for await (const { said } of streamAll(model, [taskOf(model)], context)) {
      clock.first();
      if (said.kind === "text")
        yield { data: { ...head(), ...shown(said.text, [], 0), ...logprobsOf(body, said.tokens), done: false } };
      else if (said.kind === "call") yield { data: { ...head(), ...shown("", [said.call], calls++), done: false } };
      else yield { data: { ...head(), ...shown("", [], 0), ...clock.end(said.written) } };
    }
  });
}

const logprobsOf = ({ logprobs }: Body, tokens: readonly WrittenToken[]): object =>
  logprobs === true && tokens.length > 0 ? { logprobs: toldTokens(tokens) } : {};

/** How long an answer took, in nanoseconds. */
class Clock {
  private readonly began = performance.now();
  private firstAt: number | undefined;

  /** @param asked when the request came */
  constructor(private readonly asked: number) {}

  /** There is something of it. */
  first(): void {
    this.firstAt ??= performance.now();
  }

  end({ finishReason, promptTokens, completionTokens }: Written) {
    const now = performance.now();
    const nanoseconds = (milliseconds: number) => Math.round(1e6 * milliseconds);
    const first = this.firstAt ?? now;
    return {
      done: true,
      done_reason: finishReason,
      total_duration: nanoseconds(now - this.asked),
      load_duration: nanoseconds(this.began - this.asked),
      prompt_eval_count: promptTokens,
      prompt_eval_duration: nanoseconds(first - this.began),
      eval_count: completionTokens,
      eval_duration: nanoseconds(now - first),
    };
  }
}
