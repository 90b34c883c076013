import { writeFileSync } from "node:fs";
import { connect } from "node:net";
import path from "node:path";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Tokenizer } from "../../src/data/index.js";
import { CompletionServer, type Likelihood } from "../../src/evaluate/index.js";
import { hashKey, type RunningServer, type ServeJob, serve } from "../../src/serve/index.js";
import { temporaryDirectory } from "../temporary.js";
import { expectSame, type ScoredText } from "./same-text.js";

const model = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");
const start = (options: Partial<ServeJob> = {}): Promise<RunningServer> =>
  serve({
    models: [model],
    port: 0,
    device: "cpu",
    threads: 1,
    logLevel: "silent",
    slots: 2,
    queueLimit: 3,
    ...options,
  });

let server: RunningServer;
let client: OpenAI;
beforeAll(async () => {
  server = await start();
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
});
afterAll(() => server.close());

/** With a seed, texts are computed in batches of their own: asked for again one after the other, they are the same to the bit. */
const story = { model: "tiny-teacher", temperature: 0, seed: 1, max_tokens: 24 };
const ask = { ...story, messages: [{ role: "user" as const, content: "Tell me about a kite." }] };
const post = (endpoint: string, body: string | Uint8Array, headers: Record<string, string> = {}) =>
  fetch(server.url + endpoint, { method: "POST", body: body as string, headers });
const metric = async (name: string): Promise<number> => {
  const text = await (await fetch(`${server.url}/v1/metrics`)).text();
  return Number(new RegExp(`^${name.replace(/[{}"]/g, "\\$&")} (.+)$`, "m").exec(text)?.[1]);
};

describe("the official OpenAI client", () => {
  it("lists the model", async () => {
    const { data } = await client.models.list();
    expect(data.map(({ id }) => id)).toEqual(["tiny-teacher"]);
    expect((await client.models.retrieve("tiny-teacher")).object).toBe("model");
  });

  it("gets a chat's answer, the same whole and streamed", async () => {
    const whole = await client.chat.completions.create(ask);
    const [choice] = whole.choices;
    expect(choice?.message.role).toBe("assistant");
    expect(choice?.message.content?.length).toBeGreaterThan(10);
    expect(choice?.finish_reason).toBe("length");
    expect(whole.usage?.completion_tokens).toBe(24);
    expect(whole.usage?.total_tokens).toBe(24 + (whole.usage?.prompt_tokens ?? 0));
    let text = "";
    let usage: OpenAI.CompletionUsage | null | undefined;
    const options = { ...ask, stream: true as const, stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create(options)) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    expect(text).toBe(choice?.message.content);
    expect(usage?.completion_tokens).toBe(24);
    expect(usage?.prompt_tokens_details?.cached_tokens).toBe((usage?.prompt_tokens ?? 0) - 1); // read before
  });

  it("gets completions: several, echoed, stopped, with log-probabilities", async () => {
    const prompt = "Once upon a time";
    const all = await client.completions.create({ ...story, prompt: [prompt, "The kite"], echo: true, n: 1 });
    expect(all.choices.map(({ index, text }) => [index, text.startsWith(index === 0 ? prompt : "The kite")])).toEqual([
      [0, true],
      [1, true],
    ]);
    const free = all.choices[0]!.text.slice(prompt.length);
    const stop = free.slice(6, 9);
    const stopped = await client.completions.create({ ...story, prompt, stop: ["never", stop] });
    expect(stopped.choices[0]).toMatchObject({ text: free.slice(0, free.indexOf(stop)), finish_reason: "stop" });
    const known = await client.completions.create({ ...story, prompt, echo: true, logprobs: 3, max_tokens: 2 });
    const {
      tokens = [],
      token_logprobs: own = [],
      top_logprobs: top = [],
      text_offset: at,
    } = known.choices[0]!.logprobs!;
    expect(tokens.join("")).toBe(known.choices[0]!.text);
    expect(at?.[0]).toBe(0);
    expect(own.every((value) => value <= 0)).toBe(true);
    top.forEach((best, i) => {
      expect(Object.keys(best).length, `${i}`).toBeGreaterThan(0);
      expect(Math.max(...Object.values(best))).toBeGreaterThanOrEqual(own[i]! - 1e-5);
    });
    const seeded = { ...story, prompt, temperature: 1, seed: 7, n: 2, logprobs: 20 };
    const [one, two] = [await client.completions.create(seeded), await client.completions.create(seeded)];
    for (const [i, choice] of one.choices.entries())
      expectSame(choice as ScoredText, two.choices[i] as ScoredText, "drawn");
    expect(one.choices[0]?.text).not.toBe(one.choices[1]?.text);
  });

  it("gets different texts where it gives no seed", async () => {
    const drawing = { ...story, prompt: "Mara found a", temperature: 1.5, max_tokens: 24, seed: null };
    const { choices, usage } = await client.completions.create({ ...drawing, n: 4 });
    const { usage: ofOne } = await client.completions.create({ ...drawing, n: 1 });
    expect(usage?.prompt_tokens).toBe(ofOne?.prompt_tokens); // counts once
    expect(usage?.completion_tokens).toBeGreaterThan(ofOne?.completion_tokens ?? 0);
    expect(new Set(choices.map(({ text }) => text)).size).toBeGreaterThan(2);
  });

  it("gets the same text for the same seed, whoever else writes", async () => {
    const seeds = [3, 4, 5];
    const drawn = (seed: number) =>
      client.completions.create({
        ...story,
        prompt: "Mara found a",
        temperature: 1,
        seed,
        max_tokens: 60,
        logprobs: 20,
      });
    const alone: OpenAI.Completion[] = [];
    for (const seed of seeds) alone.push(await drawn(seed));
    const prompts = ["Once", "The kite"];
    const others = prompts.map((prompt) =>
      client.completions.create({ ...story, seed: null, prompt, temperature: 1, max_tokens: 90 }),
    );
    const among = await Promise.all(seeds.map(drawn));
    await Promise.all(others);
    const isSame = among.map(({ choices: [choice] }, i) =>
      expectSame(choice as ScoredText, alone[i]?.choices[0] as ScoredText, "drawn"),
    );
    expect(isSame.filter(Boolean).length, "texts that are the same to their ends").toBeGreaterThan(1);
  });

  it("gets JSON where it asks for it", async () => {
    const schema = {
      type: "object",
      properties: { colour: { type: "string", enum: ["red", "blue"] }, count: { type: "integer" } },
      required: ["colour", "count"],
      additionalProperties: false,
    };
    const answer = await client.chat.completions.create({
      ...ask,
      max_tokens: 60,
      response_format: { type: "json_schema", json_schema: { name: "kite", schema } },
    });
    const value = JSON.parse(answer.choices[0]!.message.content!) as { colour: string; count: number };
    expect(["red", "blue"]).toContain(value.colour);
    expect(Number.isInteger(value.count)).toBe(true);
  });

  it("gets errors that name what is wrong", async () => {
    const bad = (changes: object) => client.chat.completions.create({ ...ask, ...changes });
    await expect(bad({ model: "gpt-5" })).rejects.toMatchObject({ status: 404, code: "model_not_found" });
    await expect(bad({ length_penalty: 2 })).rejects.toMatchObject({
      status: 400,
      code: "unsupported_parameter",
      param: "length_penalty",
    });
    await expect(bad({ temperature: 9 })).rejects.toMatchObject({ status: 400, param: "temperature" });
    await expect(bad({ messages: [{ role: "user", content: "long ".repeat(2000) }] })).rejects.toMatchObject({
      status: 400,
      code: "context_length_exceeded",
    });
    await expect(bad({ stream: true, model: "gpt-5" })).rejects.toMatchObject({ status: 404 });
  });

  it("that leaves a stream ends it at once", async () => {
    const before = await metric("vllm:generation_tokens_total");
    const stream = await client.chat.completions.create({ ...ask, max_tokens: 400, stream: true });
    for await (const _ of stream) break; // leaves
    await expect.poll(() => metric("vllm:num_requests_running")).toBe(0);
    expect(await metric("vllm:generation_tokens_total")).toBe(before); // it did not end by itself
  });
});

describe("a service", () => {
  it("gives the likelihoods that our evaluation asks for", async () => {
    const asked = [" a little girl", " zebra"].map((continuation) => ({
      kind: "log-likelihood" as const,
      context: "Once upon a time there was",
      continuation,
    }));
    const replies: Likelihood[] = [];
    const connected = await CompletionServer.connect(`${server.url}/v1`);
    await connected.logLikelihoods(asked, (i, reply) => {
      replies[i] = reply;
    });
    expect(replies[0]!.logLikelihood / 14).toBeGreaterThan(replies[1]!.logLikelihood / 6);
  });

  it("takes tokens and gives them back", async () => {
    const tokens = (await (await post("/tokenize", '{"prompt":"a little – kite"}')).json()) as { tokens: number[] };
    const text = (await (await post("/detokenize", JSON.stringify({ tokens: tokens.tokens }))).json()) as object;
    expect(text).toEqual({ prompt: "a little – kite" });
  });

  it("reads special tokens that are written out as such, unless asked not to", async () => {
    const tokenizer = await Tokenizer.load(model);
    const rendered = "<|begin|>Tom had a kite.<|end|><|begin|>It";
    const [begin, end] = (await tokenizer.encode(["<|begin|>", "<|end|>"], false)).map(([id]) => id);
    const tokens = async (options: object) => {
      const answer = await post("/tokenize", JSON.stringify({ prompt: rendered, ...options }));
      return ((await answer.json()) as { tokens: number[] }).tokens;
    };
    const [parsed = []] = await tokenizer.encode([rendered], false);
    expect(parsed.filter((id) => id === begin || id === end)).toHaveLength(3);
    expect(await tokens({})).toEqual(parsed); // the begin token is not doubled
    const plain = await tokens({ parse_special: false });
    expect(plain[0]).toBe(begin);
    expect(plain.slice(1).some((id) => id === begin || id === end)).toBe(false);
    for (const name of ["add_special", "add_special_tokens"])
      expect(await tokens({ parse_special: false, [name]: false })).toEqual(plain.slice(1));
    const used = async (options: object) =>
      (await client.completions.create({ ...story, prompt: rendered, ...options })).usage?.prompt_tokens;
    expect(await used({})).toBe(parsed.length);
    expect(await used({ parse_special: false })).toBe(plain.length);
    expect(await used({ parse_special: false, add_special: false })).toBe(plain.length - 1);
  });

  it("computes what several ask for at once, and answers 429 past its bound", async () => {
    const many = await Promise.allSettled(
      Array.from({ length: 9 }, (_, i) =>
        client.completions.create({ ...story, seed: null, prompt: `Tom saw ${i} balls and` }),
      ),
    );
    const statuses = many.map((one) => (one.status === "fulfilled" ? 200 : (one.reason as { status: number }).status));
    expect(statuses.filter((status) => status === 200)).toHaveLength(5); // two places, three that wait
    expect(statuses.filter((status) => status === 429)).toHaveLength(4);
    const refused = many.find((one) => one.status === "rejected")?.reason as { headers: Headers };
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
  });

  it("refuses what is not a request, and goes on", async () => {
    const status = async (...args: Parameters<typeof post>) => (await post(...args)).status;
    expect(await status("/v1/chat/completions", "{")).toBe(400);
    expect(await status("/v1/chat/completions", new Uint8Array([0x22, 0xff, 0x22]))).toBe(400);
    expect(await status("/v1/chat/completions", "[]")).toBe(400);
    expect(await status("/v1/completions", JSON.stringify({ prompt: [1e9] }))).toBe(400);
    expect(await status("/detokenize", JSON.stringify({ tokens: [512] }))).toBe(400);
    expect(await status("/v1/completions", JSON.stringify({ prompt: "a", logit_bias: { 512: 1 } }))).toBe(400);
    expect(await status("/v1/completions", " ".repeat(9 << 20))).toBe(413);
    expect(await status("/v1/nothing", "{}")).toBe(404);
    for (const path of ["live", "ready"]) expect((await fetch(`${server.url}/v1/health/${path}`)).status).toBe(200);
    const { port } = new URL(server.url);
    await new Promise<void>((resolve) => {
      const socket = connect(Number(port), "127.0.0.1", () => socket.end("NOT HTTP\r\n\r\n"));
      socket.on("close", () => resolve()).resume();
    });
    expect((await client.completions.create({ ...story, prompt: "Tom" })).choices).toHaveLength(1);
  });

  it("lives through settings that leave no token probable", async () => {
    const guided = { prompt: "Once", max_tokens: 20, guided_regex: "[a-c]{20}" };
    for (const extreme of [
      { repetition_penalty: 1e-75 },
      { repetition_penalty: 0.01, presence_penalty: -2 },
      { temperature: 1e-300 },
      { temperature: 1e-39, top_p: 1e-300 },
      { logit_bias: Object.fromEntries(Array.from({ length: 512 }, (_, i) => [i, -100])) },
      { ignore_eos: true, max_tokens: 40 },
    ])
      for (const stream of [false, true])
        await (await post("/v1/completions", JSON.stringify({ ...guided, ...extreme, stream }))).text();
    expect((await client.completions.create({ ...story, prompt: "Tom" })).choices).toHaveLength(1);
  });

  it("asks for keys where it has some, and ends a request that takes too long", async () => {
    const keysFile = path.join(directory, "keys");
    writeFileSync(keysFile, hashKey("secret"));
    const guarded = await start({ keysFile, timeoutSeconds: 0.02 });
    const status = async (key: string, endpoint = "/v1/models") =>
      (await fetch(guarded.url + endpoint, { headers: { authorization: `Bearer ${key}` } })).status;
    expect([await status("secret"), await status("wrong"), await status("", "/v1/health/live")]).toEqual([
      200, 401, 200,
    ]);
    const slow = new OpenAI({ baseURL: `${guarded.url}/v1`, apiKey: "secret", maxRetries: 0 });
    await expect(slow.completions.create({ ...story, prompt: "Tom", max_tokens: 450 })).rejects.toMatchObject({
      status: 408,
      code: "timeout",
    });
    await guarded.close();
  });

  it("takes its place from a client that does not read its answer, when the time is up", async () => {
    const guarded = await start({ slots: 1, timeoutSeconds: 6, queueLimit: 64 });
    const { port } = new URL(guarded.url);
    const body = JSON.stringify({
      ...story,
      seed: undefined, // many texts at once: more than what sockets hold, before the time is up
      prompt: Array.from({ length: 48 }, (_, i) => `Story ${i}`),
      max_tokens: 400,
      logprobs: 20,
      ignore_eos: true,
      stream: true,
    });
    const stalled = connect(Number(port), "127.0.0.1").pause();
    stalled.on("error", () => {});
    const head = `POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:${port}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n`;
    stalled.write(head + body);
    const short = JSON.stringify({ ...story, prompt: "Tom", max_tokens: 1 });
    const answered = async () =>
      (await fetch(`${guarded.url}/v1/completions`, { method: "POST", body: short })).status === 200;
    const running = async () =>
      /^vllm:num_requests_running(?:\{.*\})? (\d+)/m.exec(await (await fetch(`${guarded.url}/v1/metrics`)).text())?.[1];
    await expect.poll(running).toBe("1");
    await expect.poll(answered).toBe(true);
    stalled.destroy();
    await guarded.close();
  });

  it("that ends answers what is under way and takes nothing new", async () => {
    const ending = await start();
    const last = new OpenAI({ baseURL: `${ending.url}/v1`, apiKey: "none", maxRetries: 0 });
    const answer = last.completions.create({ ...story, prompt: "Once", max_tokens: 200 });
    const stream = await last.completions.create({ ...story, prompt: "Tom", stream: true });
    const closed = ending.close();
    await expect(last.completions.create({ ...story, prompt: "late" })).rejects.toThrow();
    let chunks = 0;
    for await (const _ of stream) chunks++;
    expect(chunks).toBeGreaterThan(2);
    expect((await answer).usage?.completion_tokens).toBeGreaterThan(0);
    await closed;
  });
});
