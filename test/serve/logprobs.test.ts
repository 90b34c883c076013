import { cpSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type RunningServer, serve } from "../../src/serve/index.js";
import { hasSharedData, stories260K } from "../shared-data.js";
import { temporaryDirectory } from "../temporary.js";

const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");
const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");

/** The same model without a token that every text begins with. */
function withoutBegin(): string {
  const copy = path.join(directory, "no-begin");
  cpSync(teacher, copy, { recursive: true });
  const edit = (file: string, change: (json: Record<string, unknown>) => void) => {
    const json = JSON.parse(readFileSync(path.join(copy, file), "utf8")) as Record<string, unknown>;
    change(json);
    writeFileSync(path.join(copy, file), JSON.stringify(json));
  };
  edit("tokenizer_config.json", (json) => {
    json.add_bos_token = false;
    delete json.bos_token;
  });
  edit("config.json", (json) => delete json.bos_token_id);
  edit("tokenizer.json", (json) => {
    json.post_processor = null;
  });
  return copy;
}

let server: RunningServer;
let openai: OpenAI;
beforeAll(async () => {
  const models = [teacher, withoutBegin(), ...(hasSharedData ? [stories260K] : [])];
  server = await serve({ models, port: 0, device: "cpu", threads: 1, logLevel: "silent", slots: 2, contextSize: 256 });
  openai = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
});
afterAll(() => server.close());

const messages = [{ role: "user" as const, content: "Once" }];
const festive = "a 🎉 – é 🇵🇪!";
const guided = { temperature: 0, logprobs: true as const, top_logprobs: 2, guided_choice: [festive] };
type Tokens = OpenAI.ChatCompletionTokenLogprob[];
const bytesOf = (tokens: Tokens) => Buffer.from(tokens.flatMap(({ bytes }) => bytes ?? []));
const isText = (bytes: readonly number[]) => !Buffer.from(bytes).toString().includes("\ufffd");

describe("log-probabilities", () => {
  it("name each token by its own bytes, whatever of a letter they are", async () => {
    const { choices } = await openai.chat.completions.create({ model: "tiny-teacher", messages, ...guided });
    const [choice] = choices;
    const tokens = choice?.logprobs?.content ?? [];
    expect(choice?.message.content).toBe(festive);
    expect(bytesOf(tokens).toString()).toBe(festive);
    expect(tokens.length).toBeLessThan(festive.length * 4);
    expect(tokens.some(({ bytes }) => !isText(bytes ?? []))).toBe(true);
    for (const { token, bytes, top_logprobs: top } of tokens)
      for (const one of [{ token, bytes }, ...top]) {
        const own = one.bytes ?? [];
        const hex = own.map((byte) => `\\x${byte.toString(16)}`).join("");
        expect(one.token).toBe(isText(own) ? Buffer.from(own).toString() : hex);
      }
  });

  it.skipIf(!hasSharedData)("name the bytes of a tokenizer that falls back to them", async () => {
    const { choices } = await openai.chat.completions.create({ model: "stories260K", messages, ...guided });
    const tokens = choices[0]?.logprobs?.content ?? [];
    expect(choices[0]?.message.content).toBe(festive);
    expect(bytesOf(tokens).toString().trim()).toBe(festive);
    expect(tokens.filter(({ bytes }) => bytes?.length === 1 && (bytes[0] ?? 0) > 127).length).toBeGreaterThan(4);
  });

  it("come with the text that they are of, when it is streamed", async () => {
    for (const more of [{}, { stop: ["– é nothing"] }]) {
      const stream = await openai.chat.completions.create({
        model: "tiny-teacher",
        messages,
        ...guided,
        ...more,
        stream: true as const,
      });
      let text = "";
      for await (const { choices } of stream) {
        const [choice] = choices;
        const content = choice?.delta.content ?? "";
        expect(bytesOf(choice?.logprobs?.content ?? []).toString()).toBe(content);
        text += content;
      }
      expect(text).toBe(festive);
    }
  });

  it("come with responses that include them, whole and streamed", async () => {
    const asked = { model: "tiny-teacher", input: "Once", temperature: 0, max_output_tokens: 8, top_logprobs: 2 };
    const request = { ...asked, include: ["message.output_text.logprobs" as const] };
    await openai.responses.create(request); // from now on the prompt is in the cache, and the same is computed each time
    const { output, output_text } = await openai.responses.create(request);
    const part = output[0]?.type === "message" ? output[0].content[0] : undefined;
    const tokens = part?.type === "output_text" ? (part.logprobs ?? []) : [];
    expect(tokens.map(({ token }) => token).join("")).toBe(output_text);
    expect(tokens.every(({ top_logprobs: top }) => top.length === 2)).toBe(true);
    const streamed: string[] = [];
    for await (const event of await openai.responses.create({ ...request, stream: true }))
      if (event.type === "response.output_text.delta") streamed.push(...event.logprobs.map(({ token }) => token));
    expect(streamed).toEqual(tokens.map(({ token }) => token));
  });

  it("stand in completions as bytes where they are no text, and none is of what was not shown", async () => {
    const base = { model: "tiny-teacher", prompt: "Once", logprobs: 1, temperature: 0, seed: 1, max_tokens: 60 };
    const whole = await openai.completions.create({ ...base, guided_choice: [festive] } as typeof base);
    const { tokens = [], text_offset: offsets = [] } = whole.choices[0]?.logprobs ?? {};
    const bytes = tokens.flatMap((token) =>
      token.startsWith("bytes:")
        ? token
            .slice("bytes:".length)
            .split("\\x")
            .slice(1)
            .map((hex) => Number.parseInt(hex, 16))
        : [...Buffer.from(token)],
    );
    expect(Buffer.from(bytes).toString()).toBe(festive);
    expect(offsets.every((at, i) => i === 0 || at >= (offsets[i - 1] ?? 0))).toBe(true);
    const free = await openai.completions.create(base);
    const content = free.choices[0]?.text ?? "";
    const stop = content.slice(20, 24);
    const stopped = await openai.completions.create({ ...base, stop });
    const { tokens: shown = [] } = stopped.choices[0]?.logprobs ?? {};
    expect(shown.join("").startsWith(stopped.choices[0]?.text ?? "-")).toBe(true);
    expect(shown.slice(0, -1).join("").length).toBeLessThanOrEqual(content.indexOf(stop));
  });

  it.each(["tiny-teacher", "no-begin"])("of a prompt begin with its first token: %s", async (model) => {
    const prompt = "Once upon a time";
    const { choices } = await openai.completions.create({
      model,
      prompt,
      echo: true,
      logprobs: 2,
      max_tokens: 2,
      temperature: 0,
    });
    const { text, logprobs } = choices[0]!;
    expect(text.startsWith(prompt)).toBe(true);
    expect(logprobs?.tokens?.join("")).toBe(text);
    expect(logprobs?.text_offset?.[0]).toBe(0);
    expect(logprobs?.token_logprobs?.[0] === null).toBe(model === "no-begin"); // nothing is before it
    expect(logprobs?.token_logprobs?.slice(1).every((value) => value <= 0)).toBe(true);
  });

  it("are reported of a text that ends within a character, and half a character is no text", async () => {
    for (let max_tokens = 1; max_tokens < 12; max_tokens++) {
      const asked = { model: "tiny-teacher", messages, ...guided, max_tokens };
      const [whole] = (await openai.chat.completions.create(asked)).choices;
      const content = whole?.message.content ?? "";
      expect(festive.startsWith(content), content).toBe(true);
      const tokens = whole?.logprobs?.content ?? [];
      expect(tokens).toHaveLength(max_tokens);
      expect(Buffer.from(festive).subarray(0, bytesOf(tokens).length)).toEqual(bytesOf(tokens));
      let text = "";
      for await (const { choices } of await openai.chat.completions.create({ ...asked, stream: true as const }))
        text += choices[0]?.delta.content ?? "";
      expect(text).toBe(content);
    }
  });
});

describe("a prompt that does not fit", () => {
  it("is refused in the words that clients look for", async () => {
    const long = "long ".repeat(600);
    const words = /This model's maximum context length is 256 tokens\. However, .* \d+ tokens/;
    const chat = openai.chat.completions.create({ model: "tiny-teacher", messages: [{ role: "user", content: long }] });
    await expect(chat).rejects.toMatchObject({ status: 400, code: "context_length_exceeded", message: words });
    for (const asked of [
      openai.completions.create({ model: "tiny-teacher", prompt: long }),
      openai.embeddings.create({ model: "tiny-teacher", input: long }),
      openai.responses.create({ model: "tiny-teacher", input: long }),
    ])
      await expect(asked).rejects.toMatchObject({ code: "context_length_exceeded", message: words });
    const body = JSON.stringify({ model: "tiny-teacher", max_tokens: 9, messages: [{ role: "user", content: long }] });
    const response = await fetch(`${server.url}/v1/messages`, { method: "POST", body });
    expect(await response.json()).toMatchObject({
      type: "error",
      error: {
        type: "invalid_request_error",
        message: expect.stringMatching(/^prompt is too long: \d+ tokens > 256 maximum$/),
      },
    });
  });
});
