import { cpSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { Tokenizer } from "../../src/data/index.js";
import type { RunningServer } from "../../src/serve/index.js";
import { temporaryDirectory } from "../temporary.js";
import { serveTiny } from "./tiny-server.js";

const directory = path.join(temporaryDirectory(), "two-templates");
const templates = [
  { name: "default", template: "{{ messages[0].content }}" },
  {
    name: "tool_use",
    template: "{% for tool in tools %}{{ tool.function.name }}, {% endfor %}{{ messages[0].content }}",
  },
];
let server: RunningServer;
beforeAll(async () => {
  cpSync(path.resolve(import.meta.dirname, "../../examples/tiny-teacher"), directory, { recursive: true });
  const file = path.join(directory, "tokenizer_config.json");
  writeFileSync(file, JSON.stringify({ ...readJsonObject(file), chat_template: templates }));
  server = await serveTiny({ models: [directory] });
});
afterAll(() => server.close());

const tool = (name: string) => ({ type: "function", function: { name, parameters: { type: "object" } } });

it("a model's template for tools is taken where a conversation has some, and its default elsewhere", async () => {
  const tokenizer = await Tokenizer.load(directory);
  const tokensOf = async (text: string) => (await tokenizer.encode([text], true))[0]!.length;
  const promptTokens = async (settings: object) => {
    const messages = [{ role: "user", content: "One day, Tom" }];
    const body = JSON.stringify({ messages, max_tokens: 1, ...settings });
    const response = await fetch(`${server.url}/v1/chat/completions`, { method: "POST", body });
    const answer = (await response.json()) as { usage: { prompt_tokens: number } };
    expect(response.status, JSON.stringify(answer)).toBe(200);
    return answer.usage.prompt_tokens;
  };
  expect(await promptTokens({})).toBe(await tokensOf("One day, Tom"));
  expect(await promptTokens({ tools: [tool("weather"), tool("kites")] })).toBe(
    await tokensOf("weather, kites, One day, Tom"),
  );
});
