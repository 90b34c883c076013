import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { embedMany, generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { RunningServer } from "../../src/serve/index.js";
import { model, serveTiny } from "./tiny-server.js";

let server: RunningServer;
let openai: OpenAI;
let anthropic: Anthropic;
beforeAll(async () => {
  server = await serveTiny({ contextSize: 1024 });
  openai = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
  anthropic = new Anthropic({ baseURL: server.url, apiKey: "none", maxRetries: 0 });
});
afterAll(() => server.close());

const city = { type: "string", enum: ["Lima", "Oslo"] };
const parameters = {
  type: "object" as const,
  properties: { city, days: { type: "integer", minimum: 1, maximum: 7 } },
  required: ["city", "days"],
  additionalProperties: false,
};
const weather = { name: "weather", description: "The weather of the next days", parameters };
const kite = { type: "object" as const, properties: { colour: { enum: ["red", "blue"] } }, required: ["colour"] };
const isForecast = (value: unknown) => {
  const { city: place, days } = value as { readonly city: string; readonly days: number };
  expect(city.enum).toContain(place);
  expect(days >= 1 && days <= 7 && Number.isInteger(days), `${days}`).toBe(true);
};
const asked = { role: "user" as const, content: "Will it rain?" };

describe("the official OpenAI client", () => {
  const tools = [{ type: "function" as const, function: weather }];
  /** With a seed, the same request is computed the same again, whether or not its prompt is in the cache. */
  const base = { model, messages: [asked], temperature: 0, seed: 1 };

  it("gets a call of a tool, whole and streamed, and goes on with its result", async () => {
    const request = { ...base, tools, tool_choice: "required" as const, parallel_tool_calls: false };
    const { choices } = await openai.chat.completions.create(request);
    const call = choices[0]!.message.tool_calls![0]!;
    if (call.type !== "function") throw new Error(call.type);
    expect(choices[0]).toMatchObject({ finish_reason: "tool_calls", message: { content: null } });
    isForecast(JSON.parse(call.function.arguments));
    const streamed = await openai.chat.completions.stream(request).finalChatCompletion();
    expect(streamed.choices[0]!.message.tool_calls![0]).toMatchObject({ function: call.function });
    const messages = [asked, choices[0]!.message, { role: "tool" as const, tool_call_id: call.id, content: "rain" }];
    const answer = await openai.chat.completions.create({
      ...base,
      messages,
      tools,
      tool_choice: "none",
      max_tokens: 8,
    });
    expect(answer.choices[0]!.message.content).not.toBe("");
    const wrong = { type: "function" as const, function: { name: "other" } };
    await expect(openai.chat.completions.create({ ...base, tools, tool_choice: wrong })).rejects.toMatchObject({
      status: 400,
      param: "tool_choice",
    });
  });

  it("gets what it guides", async () => {
    const guided = async (more: object) => {
      const { choices } = await openai.chat.completions.create({ ...base, max_tokens: 60, ...more });
      return choices[0]!.message.content!;
    };
    expect(["a kite", "a ball"]).toContain(await guided({ guided_choice: ["a kite", "a ball"] }));
    expect(await guided({ guided_regex: "\\d{3}-[a-f]{2}" })).toMatch(/^\d{3}-[a-f]{2}$/);
    expect(await guided({ nvext: { guided_grammar: 'root ::= "x" [0-9]{2} "y"' } })).toMatch(/^x\d\dy$/);
    expect(JSON.parse(await guided({ structured_outputs: { json: kite } }))).toHaveProperty("colour");
    await expect(guided({ guided_choice: ["a"], guided_regex: "b" })).rejects.toThrow("one form only");
    await expect(guided({ guided_json: { type: "string", not: {} } })).rejects.toMatchObject({
      status: 400,
      code: "invalid_schema",
      param: "guided_json/not",
    });
  });

  it("gets embeddings: those of the reference", async () => {
    const of = async (input: string | string[], more = {}) =>
      (await openai.embeddings.create({ model, input, ...more })).data.map(({ embedding }) => embedding);
    const [kites = []] = await of("a kite"); // base64, which the client asks for
    // last_hidden_state of the last token in transformers 5.23, divided by its length
    for (const [i, value] of [0.013536, 0.013795, 0.013917, -0.079143, -0.044253, -0.059359].entries())
      expect(kites[i]).toBeCloseTo(value, 3);
    expect(Math.hypot(...kites)).toBeCloseTo(1, 5);
    const two = await of(["a kite", "the kite"], { encoding_format: "float" });
    expect(two[0]![3]).toBeCloseTo(kites[3]!, 5);
    expect(two[1]![1]).toBeCloseTo(0.096246, 3);
    await expect(of("a kite", { dimensions: 3 })).rejects.toMatchObject({ status: 400, param: "dimensions" });
  });

  it("gets responses: text, calls, forms, as a stream with its events in order", async () => {
    const short = { model, input: "Once", max_output_tokens: 12, temperature: 0 };
    await openai.responses.create({ ...short, instructions: "Tell a story." }); // from now on the prompt is in the cache
    const response = await openai.responses.create({ ...short, instructions: "Tell a story." });
    expect(response).toMatchObject({ status: "incomplete", usage: { output_tokens: 12 } });
    const types: string[] = [];
    let text = "";
    for await (const event of await openai.responses.create({
      ...short,
      instructions: "Tell a story.",
      stream: true,
    })) {
      types.push(event.type);
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    expect(text).toBe(response.output_text);
    expect([types[0], types[1], types.at(-1)]).toEqual([
      "response.created",
      "response.in_progress",
      "response.incomplete",
    ]);
    const called = await openai.responses
      .stream({
        model,
        input: "Once",
        tool_choice: "required" as const,
        parallel_tool_calls: false,
        temperature: 0,
        tools: [{ type: "function", strict: true, ...weather }],
      })
      .finalResponse();
    const [item] = called.output;
    if (item?.type !== "function_call") throw new Error(item?.type);
    isForecast(JSON.parse(item.arguments));
    const format = { type: "json_schema" as const, name: "kite", schema: kite };
    const input = [
      { role: "user" as const, content: "Once" },
      item,
      { type: "function_call_output" as const, call_id: item.call_id, output: "rain" },
    ];
    const formed = await openai.responses.create({ model, input, text: { format } });
    expect(JSON.parse(formed.output_text)).toHaveProperty("colour");
    await expect(openai.responses.create({ ...short, previous_response_id: "resp_1" })).rejects.toMatchObject({
      status: 400,
      code: "unsupported_parameter",
      param: "previous_response_id",
    });
  });
});

describe("the official Anthropic client", () => {
  const base = { model, max_tokens: 16, messages: [asked], temperature: 0 };
  const tools = [{ name: weather.name, description: weather.description, input_schema: parameters }];

  it("gets a message, the same whole and streamed", async () => {
    await anthropic.messages.create({ ...base, system: "You tell stories." }); // from now on the prompt is in the cache
    const message = await anthropic.messages.create({ ...base, system: "You tell stories." });
    expect(message).toMatchObject({ type: "message", role: "assistant", stop_reason: "max_tokens" });
    const events: string[] = [];
    const stream = anthropic.messages.stream({ ...base, system: "You tell stories." });
    stream.on("streamEvent", ({ type }) => events.push(type));
    expect((await stream.finalMessage()).content).toEqual(message.content);
    expect([events[0], events[1], events.at(-1)]).toEqual(["message_start", "content_block_start", "message_stop"]);
    const { usage } = message;
    const { input_tokens } = await anthropic.messages.countTokens({
      model,
      messages: [asked],
      system: "You tell stories.",
    });
    expect(usage.input_tokens + (usage.cache_read_input_tokens ?? 0)).toBe(input_tokens);
    const [block] = message.content;
    const stop = block?.type === "text" ? block.text.slice(3, 6) : "";
    const stopped = await anthropic.messages.create({ ...base, system: "You tell stories.", stop_sequences: [stop] });
    expect(stopped).toMatchObject({ stop_reason: "stop_sequence", stop_sequence: stop });
  });

  it("gets a call of a tool and goes on with its result", async () => {
    const choice = { type: "any" as const, disable_parallel_tool_use: true };
    const message = await anthropic.messages
      .stream({ ...base, max_tokens: 300, tools, tool_choice: choice })
      .finalMessage();
    const [block] = message.content;
    if (block?.type !== "tool_use") throw new Error(block?.type);
    expect(message.stop_reason).toBe("tool_use");
    isForecast(block.input);
    const result = { type: "tool_result" as const, tool_use_id: block.id, content: "rain" };
    const answer = await anthropic.messages.create({
      ...base,
      tools,
      tool_choice: { type: "none" as const },
      messages: [asked, { role: "assistant", content: message.content }, { role: "user", content: [result] }],
    });
    expect(answer.content[0]?.type).toBe("text");
  });

  it("gets errors in the form of its own API", async () => {
    const bad = (more: object) => anthropic.messages.create({ ...base, ...more });
    await expect(bad({ model: "other" })).rejects.toBeInstanceOf(Anthropic.NotFoundError);
    await expect(bad({ temperature: 3 })).rejects.toMatchObject({
      status: 400,
      error: { type: "error", error: { type: "invalid_request_error" } },
    });
    await expect(bad({ inference_geo: "eu" })).rejects.toThrow("the field inference_geo is not supported");
  });
});

describe("the Vercel AI SDK", () => {
  const forecast = tool({
    description: weather.description,
    inputSchema: jsonSchema<{ city: string; days: number }>(parameters),
    execute: async ({ city: place }) => `rain in ${place}`,
  });

  it("writes, streams, calls tools, makes objects and embeds over the OpenAI API", async () => {
    const provider = createOpenAICompatible({
      name: "coppice",
      baseURL: `${server.url}/v1`,
      supportsStructuredOutputs: true,
      includeUsage: true,
    });
    const base = { model: provider(model), temperature: 0, seed: 1, maxRetries: 0 };
    const whole = await generateText({ ...base, prompt: "Once", maxOutputTokens: 12 });
    expect(whole.usage.outputTokens).toBe(12);
    const streamed = streamText({ ...base, prompt: "Once", maxOutputTokens: 12 });
    let text = "";
    for await (const part of streamed.textStream) text += part;
    expect(text).toBe(whole.text);
    expect((await streamed.usage).outputTokens).toBe(12);
    const { steps } = await generateText({
      ...base,
      prompt: "Will it rain?",
      tools: { weather: forecast },
      stopWhen: stepCountIs(2),
      maxOutputTokens: 200,
      providerOptions: { coppice: { parallel_tool_calls: false } },
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
    });
    isForecast(steps[0]!.toolCalls[0]!.input);
    expect(steps[0]!.toolResults[0]!.output).toMatch(/^rain in /);
    expect(steps).toHaveLength(2);
    const { object } = await generateObject({
      ...base,
      prompt: "A kite",
      schema: jsonSchema<{ colour: string }>(kite),
    });
    expect(["red", "blue"]).toContain(object.colour);
    const { embeddings } = await embedMany({ model: provider.embeddingModel(model), values: ["a kite", "the kite"] });
    expect(embeddings.map(({ length }) => length)).toEqual([128, 128]);
    await expect(generateText({ ...base, model: provider("other"), prompt: "Once" })).rejects.toMatchObject({
      statusCode: 404,
    });
  });

  it("is stopped by its own signal", async () => {
    const provider = createOpenAICompatible({ name: "coppice", baseURL: `${server.url}/v1` });
    const abort = new AbortController();
    let aborted = false;
    const onAbort = () => {
      aborted = true;
    };
    const { textStream } = streamText({
      model: provider(model),
      prompt: "Once",
      abortSignal: abort.signal,
      onAbort,
      providerOptions: { coppice: { ignore_eos: true } },
    });
    for await (const _ of textStream) abort.abort();
    expect(aborted).toBe(true);
  });

  it("streams and calls tools over the Anthropic API", async () => {
    const provider = createAnthropic({ baseURL: `${server.url}/v1`, apiKey: "none" });
    const base = { model: provider(model), temperature: 0, maxRetries: 0, maxOutputTokens: 300 };
    const providerOptions = { anthropic: { disableParallelToolUse: true } };
    const streamed = streamText({
      ...base,
      providerOptions,
      prompt: "Will it rain?",
      tools: { weather: forecast },
      toolChoice: "required",
    });
    isForecast((await streamed.toolCalls)[0]!.input);
    expect((await generateText({ ...base, prompt: "Once", maxOutputTokens: 8 })).text).not.toBe("");
  });
});
