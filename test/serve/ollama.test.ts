import path from "node:path";
import { type Message, Ollama, type Tool } from "ollama";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openCheckpoint } from "../../src/models/index.js";
import type { RunningServer } from "../../src/serve/index.js";
import { model, serveTiny } from "./tiny-server.js";

let server: RunningServer;
let ollama: Ollama;
beforeAll(async () => {
  server = await serveTiny({ contextSize: 512 });
  ollama = new Ollama({ host: server.url });
});
afterAll(() => server.close());

const messages: Message[] = [{ role: "user", content: "Will it rain?" }];
/** With a seed, the same request is computed the same again, whether or not its prompt is in the cache. */
const options = { temperature: 0, seed: 1, num_predict: 12, num_ctx: 4096, num_gpu: 0 };
const tools: Tool[] = [
  {
    type: "function",
    function: {
      name: "weather",
      description: "The weather",
      parameters: {
        type: "object",
        properties: { city: { type: "string", enum: ["Lima", "Oslo"] } },
        required: ["city"],
      },
    },
  },
];
const post = async (endpoint: string, body: object) => {
  const response = await fetch(server.url + endpoint, { method: "POST", body: JSON.stringify(body) });
  return { status: response.status, type: response.headers.get("content-type"), text: await response.text() };
};

interface Line {
  readonly message: { readonly content: string };
  readonly logprobs?: readonly { readonly token: string; readonly top_logprobs: readonly unknown[] }[];
}

describe("Ollama's client", () => {
  it("gets a chat's answer, the same whole and streamed, and as OpenAI's client gets it", async () => {
    const whole = await ollama.chat({ model, messages, options, keep_alive: "5m", think: false });
    expect(whole).toMatchObject({
      model,
      done: true,
      done_reason: "length",
      eval_count: 12,
      message: { role: "assistant" },
    });
    for (const key of ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"] as const)
      expect(Number.isInteger(whole[key]) && whole[key] >= 0, key).toBe(true);
    let text = "";
    let ends = 0;
    for await (const part of await ollama.chat({ model, messages, options, stream: true })) {
      text += part.message.content;
      if (part.done) ends++;
      else expect(part.eval_count).toBeUndefined();
    }
    expect([text, ends]).toEqual([whole.message.content, 1]);
    const openai = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
    const { choices } = await openai.chat.completions.create({
      model,
      temperature: 0,
      seed: 1,
      max_tokens: 12,
      messages: [{ role: "user", content: "Will it rain?" }],
    });
    expect(choices[0]?.message.content).toBe(text);
  });

  it("gets texts after a prompt, as it stands or as a message", async () => {
    const asked = { model: `${model}:latest`, prompt: "Once upon a time", options };
    const raw = await ollama.generate({ ...asked, raw: true });
    expect(raw).toMatchObject({ model: `${model}:latest`, done: true, eval_count: 12, response: expect.any(String) });
    let text = "";
    for await (const { response } of await ollama.generate({ ...asked, raw: true, stream: true })) text += response;
    expect(text).toBe(raw.response);
    const stop = text.slice(4, 7);
    const stopped = await ollama.generate({ ...asked, raw: true, options: { ...options, stop: [stop] } });
    expect(stopped).toMatchObject({ response: text.slice(0, text.indexOf(stop)), done_reason: "stop" });
    expect((await ollama.generate({ ...asked, system: "Tell a story." })).response).not.toBe("");
    expect(await ollama.generate({ model, prompt: "" })).toMatchObject({ done: true, done_reason: "load" });
  });

  it("gets answers of a form", async () => {
    const schema = { type: "object", properties: { colour: { enum: ["red", "blue"] } }, required: ["colour"] };
    const answer = await ollama.chat({ model, messages, format: schema, options: { temperature: 0 } });
    expect(["red", "blue"]).toContain((JSON.parse(answer.message.content ?? "") as { colour: string }).colour);
    const free = await ollama.generate({ model, prompt: "A kite", format: schema, options: { temperature: 0 } });
    expect(JSON.parse(free.response ?? "")).toHaveProperty("colour");
  });

  it("goes on after calls of tools, whose results have no ids", async () => {
    const history: Message[] = [
      ...messages,
      { role: "assistant", content: "", tool_calls: [{ function: { name: "weather", arguments: { city: "Lima" } } }] },
      { role: "tool", tool_name: "weather", content: "rain" },
    ];
    const { message } = await ollama.chat({ model, messages: history, tools, options });
    expect(message.role).toBe("assistant");
    const openai = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
    const call = { id: "c", type: "function" as const, function: { name: "weather", arguments: '{"city":"Lima"}' } };
    const { choices } = await openai.chat.completions.create({
      model,
      temperature: 0,
      seed: 1,
      max_tokens: 12,
      tools: tools as never,
      messages: [
        { role: "user", content: "Will it rain?" },
        { role: "assistant", content: "", tool_calls: [call] },
        { role: "tool", tool_call_id: "c", content: "rain" },
      ],
    });
    expect(message.content).toBe(choices[0]?.message.content);
  });

  it("finds the models, and what they are", async () => {
    const { models } = await ollama.list();
    expect(models).toMatchObject([{ name: `${model}:latest`, details: { format: "gguf", family: "llama" } }]);
    expect(models[0]?.digest).toMatch(/^[0-9a-f]{64}$/);
    const { source } = openCheckpoint(path.resolve(import.meta.dirname, "../../examples", model));
    const sizes = [...source.tensors.values()].map(({ shape }) => shape.reduce((a, b) => a * b, 1));
    const parameters = sizes.reduce((a, b) => a + b, 0) / 1e6;
    const shown = await ollama.show({ model });
    expect(shown).toMatchObject({
      capabilities: ["completion", "tools"],
      details: { parameter_size: `${parameters.toFixed(2)}M` },
    });
    const info = new Map(Object.entries(shown.model_info));
    expect(info.get("general.architecture")).toBe("llama");
    expect(info.get("llama.context_length")).toBe(512);
    expect((await ollama.ps()).models).toMatchObject([{ name: `${model}:latest`, context_length: 512 }]);
    const { version } = (await (await fetch(`${server.url}/api/version`)).json()) as { version: string };
    expect(version).toMatch(/^0\.\d+\.\d+$/);
    expect(await ollama.pull({ model })).toMatchObject({ status: "success" });
  });

  it("gets embeddings: those of OpenAI's API", async () => {
    const openai = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
    const input = ["a kite", "the kite"];
    const { embeddings, prompt_eval_count } = await ollama.embed({ model, input });
    const { data, usage } = await openai.embeddings.create({ model, input, encoding_format: "float" });
    expect(embeddings).toEqual(data.map(({ embedding }) => embedding));
    expect(prompt_eval_count).toBe(usage.prompt_tokens);
    expect((await ollama.embeddings({ model, prompt: "a kite" })).embedding).toEqual(embeddings[0]);
    expect((await ollama.embed({ model, input: [] })).embeddings).toEqual([]);
    const long = "kite ".repeat(2000);
    expect((await ollama.embed({ model, input: long })).embeddings[0]).toHaveLength(128);
    await expect(ollama.embed({ model, input: long, truncate: false })).rejects.toThrow("maximum context length");
  });

  it("leaves the oldest part of a long conversation out, unless it is not to", async () => {
    const long = Array.from({ length: 60 }, (_, i): Message => {
      return { role: i % 2 === 0 ? "user" : "assistant", content: `The kite number ${i} flew far over the sea.` };
    });
    const answer = await ollama.chat({ model, messages: [...long, ...messages], options });
    expect(answer.prompt_eval_count).toBeLessThan(512);
    const { status, text } = await post("/api/chat", { model, messages: long, truncate: false, stream: false });
    expect([status, JSON.parse(text)]).toMatchObject([
      400,
      { error: expect.stringContaining("maximum context length") },
    ]);
  });

  it("gets errors in the form of its own API", async () => {
    await expect(ollama.chat({ model: "other", messages })).rejects.toMatchObject({
      status_code: 404,
      error: expect.stringContaining("not found"),
    });
    await expect(
      ollama.chat({ model, messages: [{ role: "user", content: "What is this?", images: ["AAAA"] }] }),
    ).rejects.toThrow("this model reads no images");
    for (const bad of [{ options: { mirostat: 2 } }, { colour: "red" }, { template: "{{ .Prompt }}" }])
      expect((await post("/api/generate", { model, prompt: "Once", ...bad })).status).toBe(400);
  });

  it("gets lines of JSON, with log-probabilities where it asks for them", async () => {
    const { type, text } = await post("/api/chat", { model, messages, options, logprobs: true, top_logprobs: 2 });
    expect(type).toBe("application/x-ndjson");
    const lines = text
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as Line);
    const tokens = lines.flatMap(({ logprobs = [] }) => logprobs);
    expect(tokens).toHaveLength(12);
    expect(tokens.every(({ top_logprobs: top }) => top.length === 2)).toBe(true);
    const content = lines.map(({ message }) => message.content).join("");
    expect(tokens.map(({ token }) => token).join("")).toBe(content);
  });
});
