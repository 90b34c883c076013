import { existsSync } from "node:fs";
import path from "node:path";
import Anthropic from "@anthropic-ai/sdk";
import { Ajv } from "ajv";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type RunningServer, serve } from "../../src/serve/index.js";
import { temporaryDirectory } from "../temporary.js";

/**
 * What coding assistants send, over several turns with tools. The quick tests ask a tiny model; with COPPICE_REAL_MODELS naming a folder
 * that has SmolLM2-135M-Instruct.Q4_1.gguf, a real chat model is asked the same.
 */
process.env.COPPICE_CACHE = path.join(temporaryDirectory(), "cache");
const real = path.join(process.env.COPPICE_REAL_MODELS ?? "", "SmolLM2-135M-Instruct.Q4_1.gguf");
const hasReal = process.env.COPPICE_REAL_MODELS !== undefined && existsSync(real);

const MODELS = [
  { name: "tiny", file: path.resolve(import.meta.dirname, "../../examples/tiny-teacher"), skip: false },
  { name: "SmolLM2 (skipped unless COPPICE_REAL_MODELS has it)", file: real, skip: !hasReal },
];

const ajv = new Ajv({ strict: false, validateFormats: false });
const cached = { cache_control: { type: "ephemeral" as const } };

/** Tools as an assistant has them: long bounds, formats, tuples, nullable fields, recursion. */
const read = {
  type: "object" as const,
  properties: {
    path: { type: "string", minLength: 1, maxLength: 4096, description: "absolute path" },
    limit: { anyOf: [{ type: "integer", exclusiveMinimum: 0, maximum: 9007199254740991 }, { type: "null" }] },
  },
  required: ["path"],
  additionalProperties: false,
  $schema: "http://json-schema.org/draft-07/schema#",
};
const edit = {
  type: "object" as const,
  properties: {
    path: { type: "string", maxLength: 10_000 },
    edits: {
      type: "array",
      maxItems: 600,
      items: {
        type: "object",
        properties: { old: { type: "string" }, new: { type: "string" } },
        required: ["old", "new"],
      },
    },
    mode: { oneOf: [{ const: "once" }, { const: "all" }], default: "once" },
    range: { type: "array", items: [{ type: "integer" }, { type: "integer" }], additionalItems: false, minItems: 2 },
  },
  required: ["path", "edits"],
};
const todo = {
  type: "object" as const,
  properties: { items: { type: "array", items: { $ref: "#/$defs/item" }, minItems: 1, maxItems: 3 } },
  required: ["items"],
  $defs: {
    item: {
      type: "object",
      properties: {
        what: { type: "string", maxLength: 40 },
        parts: { type: "array", items: { $ref: "#/$defs/item" } },
      },
      required: ["what"],
    },
  },
};

describe.each(MODELS)("with $name, a coding assistant", ({ file, skip }) => {
  let server: RunningServer;
  let openai: OpenAI;
  let anthropic: Anthropic;
  const model = "model";
  beforeAll(async () => {
    if (skip) return;
    const options = { device: "cpu", logLevel: "silent", slots: 1, contextSize: 4096, timeoutSeconds: 300 } as const;
    server = await serve({ models: [file], names: [model], port: 0, ...options });
    openai = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
    anthropic = new Anthropic({ baseURL: server.url, apiKey: "none", maxRetries: 0 });
  });
  afterAll(() => server?.close());

  /** As Claude Code asks: cached blocks, thinking, context management, deferred and server-side tools. */
  const asClaude = (messages: Anthropic.Beta.BetaMessageParam[], more: object = {}) =>
    ({
      model,
      max_tokens: 400,
      messages,
      system: [
        { type: "text", text: "You are a coding assistant.", ...cached },
        {
          type: "text",
          text: "The project is a parser in TypeScript.",
          cache_control: { type: "ephemeral", ttl: "1h" },
        },
      ],
      tools: [
        { name: "Read", description: "Reads a file", input_schema: read },
        { name: "mcp__editor__Edit", description: "Edits a file", input_schema: edit, defer_loading: true },
        { name: "Todo", description: "Keeps a list", input_schema: todo, eager_input_streaming: true, ...cached },
        { type: "web_search_20250305", name: "web_search", max_uses: 8 },
        { type: "bash_20250124", name: "bash" },
      ],
      thinking: { type: "adaptive" },
      context_management: { edits: [{ type: "clear_thinking_20251015", keep: "all" }] },
      output_config: { effort: "high" },
      metadata: { user_id: '{"device_id":"1"}' },
      temperature: 0,
      betas: ["claude-code-20250219", "context-management-2025-06-27"],
      ...more,
    }) as Anthropic.Beta.MessageCreateParamsNonStreaming;

  it.skipIf(skip)("works over Anthropic's messages for several turns", async () => {
    const messages: Anthropic.Beta.BetaMessageParam[] = [
      { role: "user", content: [{ type: "text", text: "Read /src/parser.ts and fix it.", ...cached }] },
      { role: "system", content: "Files were changed outside." },
    ];
    const schemas = { Read: read, mcp__editor__Edit: edit, Todo: todo } as const;
    for (const name of ["Read", "mcp__editor__Edit", "Todo"] as const) {
      const choice = { tool_choice: { type: "tool", name, disable_parallel_tool_use: true }, max_tokens: 200 };
      const message = await anthropic.beta.messages.stream(asClaude(messages, choice)).finalMessage();
      expect(message.content.map(({ type }) => type)).toEqual(message.stop_reason === "max_tokens" ? [] : ["tool_use"]);
      const [block] = message.content;
      if (block?.type === "tool_use")
        expect(ajv.validate(schemas[name], block.input), JSON.stringify(block)).toBe(true);
      const use = {
        type: "tool_use" as const,
        id: `toolu_${name}`,
        name,
        input: block?.type === "tool_use" ? block.input : {},
      };
      messages.push(
        {
          role: "assistant",
          content: [{ type: "thinking", thinking: "I look.", signature: "s" }, { type: "text", text: "I look." }, use],
        },
        {
          role: "user",
          content: [
            {
              type: "tool_result",
              tool_use_id: use.id,
              is_error: false,
              ...cached,
              content: [{ type: "text", text: "export const parse = (text: string) => JSON.parse(text);" }],
            },
            { type: "text", text: "<system-reminder>Be brief.</system-reminder>" },
          ],
        },
      );
    }
    const request = asClaude(messages, { max_tokens: 40, tool_choice: { type: "none" } });
    const last = await anthropic.beta.messages.create(request);
    expect(last.content.every(({ type }) => type === "text")).toBe(true);
    const { input_tokens } = await anthropic.beta.messages.countTokens(request);
    expect(input_tokens).toBe(last.usage.input_tokens + (last.usage.cache_read_input_tokens ?? 0));
    expect(last.usage.cache_read_input_tokens).toBeGreaterThan(0);
    const auto = await anthropic.beta.messages.stream(asClaude(messages, { max_tokens: 60 })).finalMessage();
    for (const block of auto.content) if (block.type === "text") expect(block.text).not.toContain("<tool_call>");
  });

  it.skipIf(skip)("goes on with an answer that it has begun", async () => {
    const begun = "The answer is:";
    const asked = { model, max_tokens: 8, temperature: 0 };
    const user = { role: "user" as const, content: "What is 2 + 2?" };
    const { content } = await anthropic.messages.create({
      ...asked,
      messages: [user, { role: "assistant", content: begun }],
    });
    const plain = await anthropic.messages.create({ ...asked, messages: [user] });
    expect(content).not.toEqual(plain.content);
    expect(content[0]?.type === "text" && content[0].text.startsWith(begun)).toBe(false);
  });

  /** As Codex asks. */
  const asCodex = (input: OpenAI.Responses.ResponseInputItem[], more: object = {}) =>
    ({
      model,
      input,
      instructions: "You are a coding agent.",
      tools: [
        { type: "function", name: "shell", description: "Runs", strict: false, parameters: shell },
        {
          type: "custom",
          name: "apply_patch",
          description: "Patches",
          format: { type: "grammar", syntax: "lark", definition: "start: line+" },
        },
        {
          type: "custom",
          name: "pick",
          description: "Picks",
          format: { type: "grammar", syntax: "regex", definition: "[ab]\\d" },
        },
        { type: "web_search", external_web_access: true },
        {
          type: "namespace",
          name: "files",
          description: "Files",
          tools: [{ type: "function", name: "list", parameters: read, strict: false }],
        },
      ],
      parallel_tool_calls: false,
      reasoning: { effort: "medium", summary: "auto" },
      include: ["reasoning.encrypted_content"],
      prompt_cache_key: "0199-1",
      text: { verbosity: "low" },
      client_metadata: { session: "1" },
      store: false,
      service_tier: "auto",
      temperature: 0,
      max_output_tokens: 150,
      ...more,
    }) as unknown as OpenAI.Responses.ResponseCreateParamsNonStreaming;
  const shell = {
    type: "object",
    properties: {
      command: { type: "array", items: { type: "string", maxLength: 20 }, minItems: 1, maxItems: 4 },
      workdir: { type: "string", maxLength: 40 },
      timeout_ms: { type: "number" },
    },
    required: ["command"],
    additionalProperties: false,
  };

  it.skipIf(skip)("works over OpenAI's responses for several turns", async () => {
    const input: OpenAI.Responses.ResponseInputItem[] = [
      { type: "message", role: "developer", content: [{ type: "input_text", text: "<permissions>all</permissions>" }] },
      { type: "message", role: "user", content: [{ type: "input_text", text: "List the files." }] },
    ];
    for (const name of ["shell", "pick", "list"] as const) {
      const choice = { tool_choice: { type: name === "pick" ? "custom" : "function", name } };
      const { output, status } = await openai.responses
        .stream(asCodex(input, choice) as unknown as OpenAI.Responses.ResponseCreateParamsStreaming)
        .finalResponse();
      const [item] = output;
      if (status === "incomplete") expect(output).toEqual([]);
      if (item === undefined) continue;
      if (name === "pick")
        expect(item).toMatchObject({ type: "custom_tool_call", input: expect.stringMatching(/^[ab]\d$/) });
      if (item.type === "function_call")
        expect(ajv.validate(name === "shell" ? shell : read, JSON.parse(item.arguments)), item.arguments).toBe(true);
      if (name === "list") expect(item).toMatchObject({ namespace: "files" });
      const { call_id } = item as OpenAI.Responses.ResponseFunctionToolCall;
      input.push({ type: "reasoning", id: "rs_1", summary: [], encrypted_content: "x" } as never, item as never);
      if (item.type === "custom_tool_call") input.push({ type: "custom_tool_call_output", call_id, output: "done" });
      else input.push({ type: "function_call_output", call_id, output: "parser.ts\nREADME.md" });
    }
    const last = await openai.responses.create(asCodex(input, { tool_choice: "none", max_output_tokens: 30 }));
    expect(last.output_text).not.toBe("");
    const auto = await openai.responses.create(asCodex(input, { max_output_tokens: 60 }));
    expect(auto.output_text).not.toContain("<tool_call>");
  });

  it.skipIf(skip)("works over OpenAI's chats for several turns", async () => {
    const tools = [
      { type: "function" as const, function: { name: "read_file", description: "Reads", parameters: read } },
      {
        type: "custom" as const,
        custom: {
          name: "pick",
          format: { type: "grammar" as const, grammar: { syntax: "regex" as const, definition: "[ab]\\d" } },
        },
      },
    ];
    const messages: OpenAI.ChatCompletionMessageParam[] = [
      { role: "system", content: [{ type: "text", text: "You are Cline.", ...cached } as never] },
      {
        role: "user",
        content: [
          { type: "text", text: "<task>Read it</task>" },
          { type: "text", text: "<environment/>" },
        ],
      },
    ];
    const base = { model, temperature: 0, tools, max_completion_tokens: 150, parallel_tool_calls: false };
    const choice = { type: "function" as const, function: { name: "read_file" } };
    const first = await openai.chat.completions.create({ ...base, messages, tool_choice: choice });
    const answer = first.choices[0]!.message;
    for (const call of answer.tool_calls ?? []) {
      if (call.type === "function" && first.choices[0]?.finish_reason === "tool_calls")
        expect(ajv.validate(read, JSON.parse(call.function.arguments))).toBe(true);
      messages.push(answer, { role: "tool", tool_call_id: call.id, content: [{ type: "text", text: "text" }] });
    }
    const picked = await openai.chat.completions.create({
      ...base,
      messages,
      tool_choice: { type: "custom", custom: { name: "pick" } },
    });
    const [custom] = picked.choices[0]!.message.tool_calls ?? [];
    expect(custom).toMatchObject({
      type: "custom",
      custom: { name: "pick", input: expect.stringMatching(/^[ab]\d$/) },
    });
    messages.push(picked.choices[0]!.message, { role: "tool", tool_call_id: custom?.id ?? "", content: "ok" });
    const end = await openai.chat.completions.create({
      ...base,
      messages,
      tool_choice: "none",
      max_completion_tokens: 20,
    });
    expect(end.choices[0]?.message.content).not.toBe("");
  });
});
