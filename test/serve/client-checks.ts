import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { embed, generateObject, generateText, jsonSchema, type LanguageModel, streamText, tool } from "ai";
import { Ollama } from "ollama";
import OpenAI from "openai";

/** What a client may want of a service: the columns of the table. */
export const WANTS = ["answers", "streams", "tools", "forms", "log-probabilities", "embeddings", "models"] as const;
export type Want = (typeof WANTS)[number];

/** A client, and how it does each thing. A check says whether it got what it asked for; what it has no call for is left out. */
export interface ClientChecks {
  readonly client: string;
  /** The package that it is, by npm's name. */
  readonly packageName: string;
  readonly api: string;
  readonly checks: Partial<Record<Want, (url: string, model: string) => Promise<boolean>>>;
}

const parameters = {
  type: "object" as const,
  properties: { city: { type: "string", enum: ["Lima", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};
const isCity = (value: unknown): boolean => ["Lima", "Oslo"].includes((value as { city: string }).city);
const isJsonCity = (text: string | null | undefined): boolean => isCity(JSON.parse(text ?? "null"));
const asked = [{ role: "user" as const, content: "Will it rain?" }];
const functionTool = { type: "function" as const, function: { name: "weather", parameters } };
const jsonFormat = { type: "json_schema" as const, json_schema: { name: "city", schema: parameters } };

const openai = (url: string) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = (url: string) => new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const compatible = (url: string) =>
  createOpenAICompatible({ name: "coppice", baseURL: `${url}/v1`, supportsStructuredOutputs: true });
const aiAnthropic = (url: string) => createAnthropic({ baseURL: `${url}/v1`, apiKey: "none" });

/** The chunks of a stream: there are several, and together they are not empty. */
async function isStream<T>(stream: AsyncIterable<T>, textOf: (part: T) => string | null | undefined): Promise<boolean> {
  const texts: string[] = [];
  for await (const part of stream) texts.push(textOf(part) ?? "");
  return texts.length > 1 && texts.join("") !== "";
}

const chats: ClientChecks = {
  client: "openai, chats",
  packageName: "openai",
  api: "/v1/chat/completions",
  checks: {
    answers: async (url, model) => {
      const { choices } = await openai(url).chat.completions.create({ model, messages: asked, max_tokens: 8 });
      return choices[0]?.message.content !== "";
    },
    streams: async (url, model) => {
      const request = { model, messages: asked, max_tokens: 8, stream: true as const };
      return isStream(await openai(url).chat.completions.create(request), (part) => part.choices[0]?.delta.content);
    },
    tools: async (url, model) => {
      const { choices } = await openai(url).chat.completions.create({
        model,
        messages: asked,
        tools: [functionTool],
        tool_choice: "required",
        parallel_tool_calls: false,
      });
      const [call] = choices[0]?.message.tool_calls ?? [];
      return call?.type === "function" && isJsonCity(call.function.arguments);
    },
    forms: async (url, model) => {
      const request = { model, messages: asked, response_format: jsonFormat };
      const { choices } = await openai(url).chat.completions.create(request);
      return isJsonCity(choices[0]?.message.content);
    },
    "log-probabilities": async (url, model) => {
      const request = { model, messages: asked, max_tokens: 3, logprobs: true, top_logprobs: 2 };
      const { choices } = await openai(url).chat.completions.create(request);
      return choices[0]?.logprobs?.content?.length === 3;
    },
    embeddings: async (url, model) =>
      (await openai(url).embeddings.create({ model, input: "a kite" })).data[0]?.embedding.length === 128,
    models: async (url, model) => (await openai(url).models.list()).data.some(({ id }) => id === model),
  },
};

const responses: ClientChecks = {
  client: "openai, responses",
  packageName: "openai",
  api: "/v1/responses",
  checks: {
    answers: async (url, model) =>
      (await openai(url).responses.create({ model, input: "Once", max_output_tokens: 8 })).output_text !== "",
    streams: async (url, model) => {
      const request = { model, input: "Once", max_output_tokens: 8, stream: true as const };
      return isStream(await openai(url).responses.create(request), (event) =>
        event.type === "response.output_text.delta" ? event.delta : "",
      );
    },
    tools: async (url, model) => {
      const { output } = await openai(url).responses.create({
        model,
        input: "Once",
        tool_choice: "required",
        parallel_tool_calls: false,
        tools: [{ type: "function", name: "weather", parameters, strict: true }],
      });
      return output[0]?.type === "function_call" && isJsonCity(output[0].arguments);
    },
    forms: async (url, model) => {
      const format = { type: "json_schema" as const, name: "city", schema: parameters };
      return isJsonCity((await openai(url).responses.create({ model, input: "Once", text: { format } })).output_text);
    },
  },
};

const completions: ClientChecks = {
  client: "openai, completions",
  packageName: "openai",
  api: "/v1/completions",
  checks: {
    answers: async (url, model) =>
      (await openai(url).completions.create({ model, prompt: "Once", max_tokens: 8 })).choices[0]?.text !== "",
    streams: async (url, model) => {
      const request = { model, prompt: "Once", max_tokens: 8, stream: true as const };
      return isStream(await openai(url).completions.create(request), (part) => part.choices[0]?.text);
    },
    "log-probabilities": async (url, model) => {
      const request = { model, prompt: "Once", max_tokens: 2, logprobs: 2, echo: true };
      const [choice] = (await openai(url).completions.create(request)).choices;
      return choice?.logprobs?.tokens?.join("") === choice?.text;
    },
  },
};

const messages: ClientChecks = {
  client: "@anthropic-ai/sdk",
  packageName: "@anthropic-ai/sdk",
  api: "/v1/messages",
  checks: {
    answers: async (url, model) =>
      (await anthropic(url).messages.create({ model, messages: asked, max_tokens: 8 })).content[0]?.type === "text",
    streams: async (url, model) =>
      isStream(anthropic(url).messages.stream({ model, messages: asked, max_tokens: 8 }), (event) =>
        event.type === "content_block_delta" && event.delta.type === "text_delta" ? event.delta.text : "",
      ),
    tools: async (url, model) => {
      const { content } = await anthropic(url).messages.create({
        model,
        messages: asked,
        max_tokens: 200,
        tools: [{ name: "weather", input_schema: parameters }],
        tool_choice: { type: "any", disable_parallel_tool_use: true },
      });
      return content[0]?.type === "tool_use" && isCity(content[0].input);
    },
    forms: async (url, model) => {
      const output_config = { format: { type: "json_schema" as const, schema: parameters } };
      const { content } = await anthropic(url).messages.create({
        model,
        messages: asked,
        max_tokens: 200,
        output_config,
      });
      return content[0]?.type === "text" && isJsonCity(content[0].text);
    },
    models: async (url, model) => (await anthropic(url).models.list()).data.some(({ id }) => id === model),
  },
};

const weather = tool({
  inputSchema: jsonSchema<{ city: string }>(parameters),
  execute: async ({ city }) => `rain in ${city}`,
});

type ToolOptions = Parameters<typeof generateText>[0]["providerOptions"];

/** Checks of the AI SDK with one of its providers. @param toolOptions what makes the provider call one tool only */
function aiChecks(
  modelOf: (url: string, model: string) => LanguageModel,
  toolOptions: NonNullable<ToolOptions>,
): ClientChecks["checks"] {
  const requestOf = (url: string, model: string) => ({
    model: modelOf(url, model),
    prompt: "Once",
    maxOutputTokens: 200,
  });
  return {
    answers: async (url, model) => (await generateText({ ...requestOf(url, model), maxOutputTokens: 8 })).text !== "",
    streams: (url, model) =>
      isStream(streamText({ ...requestOf(url, model), maxOutputTokens: 8 }).textStream, (text) => text),
    tools: async (url, model) => {
      const { toolCalls } = await generateText({
        ...requestOf(url, model),
        tools: { weather },
        toolChoice: "required",
        providerOptions: toolOptions,
      });
      return isCity(toolCalls[0]?.input);
    },
    forms: async (url, model) => {
      const schema = jsonSchema<{ city: string }>(parameters);
      return isCity((await generateObject({ ...requestOf(url, model), schema })).object);
    },
  };
}

const aiChats: ClientChecks = {
  client: "ai with @ai-sdk/openai-compatible",
  packageName: "ai",
  api: "/v1/chat/completions",
  checks: {
    ...aiChecks((url, model) => compatible(url)(model), { coppice: { parallel_tool_calls: false } }),
    embeddings: async (url, model) =>
      (await embed({ model: compatible(url).embeddingModel(model), value: "a kite" })).embedding.length === 128,
  },
};

const aiMessages: ClientChecks = {
  client: "ai with @ai-sdk/anthropic",
  packageName: "ai",
  api: "/v1/messages",
  checks: aiChecks((url, model) => aiAnthropic(url)(model), { anthropic: { disableParallelToolUse: true } }),
};

const ollama: ClientChecks = {
  client: "ollama",
  packageName: "ollama",
  api: "/api",
  checks: {
    answers: async (url, model) =>
      (await new Ollama({ host: url }).chat({ model, messages: asked, options: { num_predict: 8 } })).message
        .content !== "",
    streams: async (url, model) => {
      const request = { model, messages: asked, options: { num_predict: 8 }, stream: true as const };
      return isStream(await new Ollama({ host: url }).chat(request), ({ message }) => message.content);
    },
    tools: async (url, model) => {
      // nothing forces a call in this API: an answer after one is what can be asked for
      const call = { function: { name: "weather", arguments: { city: "Lima" } } };
      const { message } = await new Ollama({ host: url }).chat({
        model,
        tools: [functionTool],
        options: { num_predict: 8 },
        messages: [
          ...asked,
          { role: "assistant", content: "", tool_calls: [call] },
          { role: "tool", tool_name: "weather", content: "rain" },
        ],
      });
      return message.role === "assistant";
    },
    forms: async (url, model) =>
      isJsonCity(
        (await new Ollama({ host: url }).chat({ model, messages: asked, format: parameters })).message.content,
      ),
    "log-probabilities": async (url, model) => {
      const request = { model, messages: asked, options: { num_predict: 3 }, logprobs: true, stream: false as const };
      return (await new Ollama({ host: url }).chat(request)).logprobs?.length === 3;
    },
    embeddings: async (url, model) =>
      (await new Ollama({ host: url }).embed({ model, input: "a kite" })).embeddings[0]?.length === 128,
    models: async (url, model) =>
      (await new Ollama({ host: url }).list()).models.some(({ name }) => name === `${model}:latest`),
  },
};

export const CLIENTS: readonly ClientChecks[] = [chats, responses, completions, messages, aiChats, aiMessages, ollama];
