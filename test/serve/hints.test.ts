import Anthropic from "@anthropic-ai/sdk";
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

const post = async (endpoint: string, body: object) => {
  const headers = { "content-type": "application/json" };
  const response = await fetch(server.url + endpoint, { method: "POST", body: JSON.stringify(body), headers });
  const answer = (await response.json()) as Record<string, never>;
  return { status: response.status, warning: response.headers.get("warning"), answer };
};
/**
 * Answers a request whose prompt is in the cache: it is then computed in the same batches each time, and the answer is the same to the
 * bit.
 */
const postAgain = async (endpoint: string, body: object) => {
  await post(endpoint, body);
  return post(endpoint, body);
};
/** An answer without what differs from one to the next: ids, times, how much was in the cache, metadata. */
const contentOf = (answer: object): string =>
  JSON.stringify(answer)
    .replace(/"(id|created|created_at)":("[^"]*"|\d+)/g, "")
    .replace(/"(\w*cached?_\w*|input_tokens)":\d+/g, "")
    .replace(/"metadata":\{.*?\}/, "");

const short = { model, temperature: 0, max_tokens: 6 };
const asked = { role: "user", content: "Will it rain?" };
const search = { type: "web_search_20250305", name: "web_search", max_uses: 5 };

/** A request of each API, and hints that some client sends with it. */
const HINTS: readonly (readonly [endpoint: string, body: object, hints: object])[] = [
  [
    "/v1/chat/completions",
    { ...short, messages: [asked] },
    {
      reasoning_effort: "high",
      verbosity: "low",
      metadata: { session: "1" },
      store: true,
      service_tier: "flex",
      prompt_cache_key: "k",
      prompt_cache_retention: "24h",
      safety_identifier: "s",
      user: { name: "U", email: "u@example.org" },
      prediction: { type: "content", content: "no" },
      modalities: ["text"],
      stream_options: { include_obfuscation: false },
      reasoning: { enabled: true },
      usage: { include: true },
      cache_control: { type: "ephemeral" },
      chat_template_kwargs: { enable_thinking: false },
      seed: -1,
      max_completion_tokens: null,
      functions: null,
      function_call: null,
      audio: null,
      anything_else: null,
      response_format: null,
      tools: null,
      tool_choice: null,
      stop: null,
      top_k: -1,
    },
  ],
  [
    "/v1/completions",
    { ...short, prompt: "Once" },
    { user: "u", best_of: 1, suffix: null, seed: -1, logit_bias: null, logprobs: null, metadata: {}, keep_alive: "5m" },
  ],
  [
    "/v1/responses",
    { model, temperature: 0, max_output_tokens: 6, input: "Once" },
    {
      text: { format: { type: "text" }, verbosity: "low" },
      reasoning: { effort: "medium", summary: "auto" },
      include: ["reasoning.encrypted_content"],
      prompt_cache_key: "k",
      store: true,
      service_tier: "auto",
      previous_response_id: null,
      conversation: null,
      prompt: null,
      background: false,
      max_tool_calls: null,
      safety_identifier: "s",
      client_metadata: { session: "1" },
      stream_options: null,
    },
  ],
  [
    "/v1/messages?beta=true",
    { ...short, messages: [asked] },
    {
      thinking: { type: "adaptive" },
      context_management: { edits: [{ type: "clear_thinking_20251015", keep: "all" }] },
      output_config: { effort: "high" },
      metadata: { user_id: "u", other: 1 },
      service_tier: "auto",
      speed: "fast",
      cache_control: { type: "ephemeral", ttl: "1h" },
      container: null,
      inference_geo: null,
      betas: ["a-2025-01-01"],
      stop_sequences: [],
      mcp_servers: [],
    },
  ],
  ["/v1/embeddings", { model, input: "Once" }, { user: "u", encoding_format: null, dimensions: null, metadata: {} }],
];

describe("hints", () => {
  it.each(HINTS)("change nothing: %s", async (endpoint, body, hints) => {
    const [without, withAll] = [await postAgain(endpoint, body), await post(endpoint, { ...body, ...hints })];
    expect(withAll.status, JSON.stringify(withAll.answer)).toBe(200);
    const { text: _, ...rest } = withAll.answer as { text?: unknown };
    const { text: __, ...wanted } = without.answer as { text?: unknown };
    expect(contentOf(rest)).toBe(contentOf(wanted));
    for (const name of Object.keys(hints)) {
      const one = await post(endpoint, { ...body, [name]: null });
      expect(one.status, `${name}: null ${JSON.stringify(one.answer)}`).toBe(200);
    }
  });

  it.each([
    ["/v1/chat/completions", { messages: [asked], functions: [{ name: "f" }] }, "functions"],
    ["/v1/chat/completions", { messages: [asked], modalities: ["audio"] }, "modalities.0"],
    ["/v1/chat/completions", { messages: [{ ...asked, colour: "red" }] }, "messages.0.colour"],
    ["/v1/completions", { prompt: "Once", suffix: "end" }, "suffix"],
    ["/v1/responses", { input: "Once", previous_response_id: "resp_1" }, "previous_response_id"],
    ["/v1/responses", { input: "Once", background: true }, "background"],
    ["/v1/messages", { max_tokens: 1, messages: [asked], inference_geo: "eu" }, "inference_geo"],
    [
      "/v1/messages",
      { max_tokens: 1, messages: [{ role: "user", content: [{ type: "text", text: "a", colour: "red" }] }] },
      "messages.0.content.0.colour",
    ],
  ])("are not fields that change the answer, which are refused by name: %s %j", async (endpoint, body, param) => {
    const { status, answer } = await post(endpoint, { model, ...body });
    expect(status).toBe(400);
    expect(JSON.stringify(answer)).toContain(param);
  });

  it("are left alone in schemas and arguments, where null is a value", async () => {
    const schema = { type: "object", properties: { a: { const: null } }, required: ["a"] };
    const format = { type: "json_schema", json_schema: { name: "n", schema, strict: null } };
    const { answer } = await post("/v1/chat/completions", { model, messages: [asked], response_format: format });
    const { choices } = answer as unknown as { choices: { message: { content: string } }[] };
    expect(JSON.parse(choices[0]!.message.content)).toEqual({ a: null });
  });

  it("that nest without end are refused", async () => {
    const deep = `${"[".repeat(100_000)}${"]".repeat(100_000)}`;
    const body = `{"model":"${model}","prompt":"Once","metadata":${deep}}`;
    const response = await fetch(`${server.url}/v1/completions`, { method: "POST", body });
    expect([response.status, await response.text()]).toEqual([400, expect.stringContaining("nests deeper")]);
  });
});

describe("conversations that went through other services", () => {
  it("go on over OpenAI's chats, with thoughts and what SDKs send back", async () => {
    const call = { id: "c1", type: "function", function: { name: "weather", arguments: "{}", parsed_arguments: null } };
    const messages = [
      { role: "developer", content: [{ type: "text", text: "Tell.", cache_control: { type: "ephemeral" } }] },
      asked,
      {
        role: "assistant",
        content: null,
        tool_calls: [call],
        annotations: [],
        audio: null,
        function_call: null,
        refusal: null,
        reasoning_content: "Hm.",
        parsed: null,
        thinking_blocks: [{ type: "thinking", thinking: "Hm." }],
        provider_specific_fields: {},
      },
      { role: "tool", tool_call_id: "c1", content: [{ type: "text", text: "rain" }] },
      {
        role: "assistant",
        content: [
          { type: "thinking", thinking: "Hm." },
          { type: "text", text: "Yes." },
        ],
      },
      { role: "user", content: [{ type: "text", text: "And then?" }] },
    ];
    const { status, answer } = await postAgain("/v1/chat/completions", { ...short, messages });
    expect(status, JSON.stringify(answer)).toBe(200);
    const plain = messages.map((message) =>
      message.role === "assistant" && message.content !== null ? { role: "assistant", content: "Yes." } : message,
    );
    expect(contentOf((await post("/v1/chat/completions", { ...short, messages: plain })).answer)).toBe(
      contentOf(answer),
    );
  });

  it("go on over OpenAI's responses, with thoughts and searches", async () => {
    const input = [
      { type: "message", role: "user", content: [{ type: "input_text", text: "Once" }] },
      { type: "reasoning", id: "rs_1", summary: [{ type: "summary_text", text: "Hm." }], encrypted_content: "x" },
      { type: "web_search_call", id: "ws_1", status: "completed", action: { type: "search", query: "x" } },
      {
        type: "message",
        id: "msg_1",
        role: "assistant",
        status: "completed",
        phase: "final_answer",
        content: [{ type: "output_text", text: "upon", annotations: [], logprobs: [] }],
      },
      { type: "message", role: "user", content: "a time" },
    ];
    const body = { model, temperature: 0, max_output_tokens: 6 };
    const { status, answer, warning } = await postAgain("/v1/responses", {
      ...body,
      input,
      tools: [{ type: "web_search", search_context_size: "low" }],
    });
    expect(status, JSON.stringify(answer)).toBe(200);
    expect(warning).toContain("web_search is left out");
    const { output } = answer as unknown as OpenAI.Responses.Response;
    const plain = await openai.responses.create({
      ...body,
      input: [
        { role: "user", content: "Once" },
        { role: "assistant", content: "upon" },
        { role: "user", content: "a time" },
      ],
    });
    expect(contentOf(plain.output)).toBe(contentOf(output));
  });

  it("go on over Anthropic's messages, with thoughts, cached blocks and a provider's tools", async () => {
    const cached = { cache_control: { type: "ephemeral" as const } };
    const request: Anthropic.Beta.MessageCreateParamsNonStreaming = {
      ...short,
      betas: ["context-management-2025-06-27"],
      system: [
        { type: "text", text: "You tell stories.", ...cached },
        { type: "text", text: "Short ones." },
      ],
      thinking: { type: "adaptive" },
      tools: [
        search as Anthropic.Beta.BetaWebSearchTool20250305,
        { name: "weather", description: "d", input_schema: { type: "object" }, defer_loading: true, ...cached },
      ],
      tool_choice: { type: "none" },
      messages: [
        { role: "user", content: [{ type: "text", text: "Once", ...cached }] },
        {
          role: "assistant",
          content: [
            { type: "thinking", thinking: "Hm.", signature: "s" },
            { type: "redacted_thinking", data: "x" },
            { type: "server_tool_use", id: "s1", name: "web_search", input: { query: "q" } },
            { type: "web_search_tool_result", tool_use_id: "s1", content: [] },
            { type: "text", text: "upon", citations: null },
          ],
        },
        { role: "user", content: "a time" },
      ],
    };
    await anthropic.beta.messages.create(request); // from now on the prompt is in the cache
    const message = await anthropic.beta.messages.create(request);
    const plain = await anthropic.messages.create({
      ...short,
      system: "You tell stories.\n\nShort ones.",
      messages: [
        { role: "user", content: "Once" },
        { role: "assistant", content: "upon" },
        { role: "user", content: "a time" },
      ],
    });
    expect(message.content).toEqual(plain.content);
    const { warning } = await post("/v1/messages", { ...short, messages: [asked], tools: [search] });
    expect(warning).toBe('299 - "web_search_20250305 is left out: it is not available here"');
  });

  it("are refused by what they hold that the model cannot read", async () => {
    const url = "data:image/png;base64,AAAA";
    const image = { type: "image_url" as const, image_url: { url } };
    await expect(
      openai.chat.completions.create({ model, messages: [{ role: "user", content: [image] }] }),
    ).rejects.toThrow("this model reads no images");
    await expect(
      openai.responses.create({
        model,
        input: [{ role: "user", content: [{ type: "input_image", image_url: url, detail: "auto" }] }],
      }),
    ).rejects.toThrow("this model reads no images");
    const source = { type: "base64" as const, media_type: "image/png" as const, data: "AAAA" };
    await expect(
      anthropic.messages.create({ ...short, messages: [{ role: "user", content: [{ type: "image", source }] }] }),
    ).rejects.toThrow("this model reads no images");
  });

  it("call only the tools that are allowed", async () => {
    const tools = ["one", "two", "three"].map((name) => ({
      type: "function" as const,
      function: { name, parameters: { type: "object", properties: {} } },
    }));
    const only = (name: string) => ({ type: "function" as const, function: { name } });
    const { choices } = await openai.chat.completions.create({
      model,
      temperature: 0,
      tools,
      messages: [{ role: "user", content: "Call." }],
      parallel_tool_calls: false,
      tool_choice: { type: "allowed_tools", allowed_tools: { mode: "required", tools: [only("two")] } },
    });
    expect(choices[0]!.message.tool_calls).toMatchObject([{ function: { name: "two" } }]);
    const { output } = await openai.responses.create({
      model,
      temperature: 0,
      input: "Call.",
      parallel_tool_calls: false,
      tools: tools.map(({ function: own }) => ({ type: "function", strict: false, ...own })),
      tool_choice: { type: "allowed_tools", mode: "required", tools: [{ type: "function", name: "three" }] },
    });
    expect(output).toMatchObject([{ type: "function_call", name: "three" }]);
  });
});
