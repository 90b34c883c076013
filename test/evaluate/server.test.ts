import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { CompletionServer, type Likelihood, lastWord, ReplyCache } from "../../src/evaluate/index.js";
import { temporaryDirectory } from "../temporary.js";

/** Probability of a word: the same everywhere, so that every likelihood has a closed form. */
const WORDS: Record<string, number> = { a: 0.5, b: 0.25, c: 0.125 };
const seen: Record<string, unknown>[] = [];
let failures = 0;

/** A completions server whose model knows single words; it answers as vLLM does. */
const server = createServer((request, response) => {
  const json = (value: unknown, status = 200) =>
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
  if (request.url === "/v1/models") return json({ data: [{ id: "words" }, { id: "other" }] });
  if (request.url !== "/v1/completions") return json({ error: "no such page" }, 404);
  if (failures > 0) {
    failures--;
    return json({ error: "busy" }, 503);
  }
  let text = "";
  request.on("data", (chunk) => {
    text += chunk;
  });
  request.on("end", () => {
    const body = JSON.parse(text) as Record<string, unknown> & { prompt: string; echo?: boolean; model: string };
    seen.push(body);
    if (body.model === "silent") return json({ choices: [{ text: body.prompt }] });
    if (body.model === "strange") return json({ answer: 42 });
    if (!body.echo) return json({ choices: [{ text: " a b\nc STOP d" }] });
    // vLLM counts the characters of a begin token that it puts before the prompt
    const begin = body.model === "begins" ? ["<|begin|>"] : [];
    const words = [...`${body.prompt} z`.matchAll(/ ?[^ ]+/g)];
    // three tokens for a sign, each with a part of its bytes; what a server shows for them, and so its offsets, differs
    const parts = { bytes: [" \ufffd", "\ufffd", "\ufffd"], silentBytes: ["", "", " ≈"] }[body.model];
    const texts = words.flatMap(([token]) => (token === " ≈" && parts !== undefined ? parts : [token]));
    const tokens = [...begin, ...texts];
    const logProbabilities = tokens.map((token) => Math.log(WORDS[token.trim()] ?? 0.01));
    const offsets = texts.map((_, i) => [...texts.slice(0, i).join("")].length + begin.join("").length);
    json({
      choices: [
        {
          text: "",
          logprobs: {
            tokens: body.model === "others" ? tokens.map((token) => token.trim()) : tokens,
            token_logprobs: logProbabilities.map((value, i) => (i === 0 ? null : value)),
            text_offset: [...begin.map(() => 0), ...offsets],
            top_logprobs:
              body.model === "reticent"
                ? undefined
                : logProbabilities.map((_, i) => (i === 0 ? null : { a: Math.log(0.5) })),
          },
        },
      ],
    });
  });
});
let url = "";
beforeAll(async () => {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
});
afterAll(() => void server.close());

async function likelihoods(model: CompletionServer, ...texts: (readonly [string, string])[]): Promise<Likelihood[]> {
  const replies: Likelihood[] = [];
  await model.logLikelihoods(
    texts.map(([context, continuation]) => ({ kind: "log-likelihood", context, continuation })),
    (index, reply) => {
      replies[index] = reply;
    },
  );
  return replies;
}

describe("a server of completions", () => {
  it.each(["bytes", "silentBytes"])("gives them whatever it shows for parts of characters: %s", async (name) => {
    const model = await CompletionServer.connect(url, { model: name });
    const replies = await likelihoods(model, ["x ≈ y", " a b"], ["≈ ≈", " a"], ["x", " a"]);
    const expected = [Math.log(0.5 * 0.25), Math.log(0.5), Math.log(0.5)];
    for (const [i, value] of expected.entries()) expect(replies[i]!.logLikelihood).toBeCloseTo(value, 10);
    const within = likelihoods(model, ["x", " ≈ a"]);
    if (name === "bytes") await expect(within).rejects.toThrow(/cannot be told apart/);
    else expect((await within)[0]!.logLikelihood).toBeCloseTo(Math.log(0.01 ** 3 * 0.5), 10);
  });

  it("gives likelihoods of what follows a context", async () => {
    const model = await CompletionServer.connect(`${url}/`);
    expect(model.model).toBe("words");
    const replies = await likelihoods(model, ["x 𝄞 y", " a b"], ["x y ", "a"], ["x", " a a"]);
    const expected = [Math.log(0.5 * 0.25), Math.log(0.5), Math.log(0.25)];
    for (const [i, { logLikelihood }] of replies.entries()) expect(logLikelihood).toBeCloseTo(expected[i]!, 12);
    expect(replies.map(({ isGreedy }) => isGreedy)).toEqual([false, true, true]);
  });

  it("gives the same likelihoods where it puts a begin token before the prompt", async () => {
    const model = await CompletionServer.connect(url, { model: "begins" });
    const replies = await likelihoods(model, ["x y", " a b"], ["", "a"], ["x", " a a"]);
    const expected = [Math.log(0.5 * 0.25), Math.log(0.5), Math.log(0.25)];
    for (const [i, { logLikelihood }] of replies.entries()) expect(logLikelihood).toBeCloseTo(expected[i]!, 12);
  });

  it("that names no most probable tokens gives likelihoods, and no accuracy of last words", async () => {
    const model = await CompletionServer.connect(url, { model: "reticent" });
    const [reply] = await likelihoods(model, ["x y", " a b"]);
    expect(reply?.logLikelihood).toBeCloseTo(Math.log(0.5 * 0.25), 12);
    expect(reply?.isGreedy).toBeUndefined();
    const task = lastWord({
      name: "words",
      version: 1,
      dataset: { repo: "none" },
      splits: { test: "test" },
      schema: z.unknown(),
      context: () => "x y",
      continuation: () => "a",
    });
    expect(() => task.read({}).score([reply!], { passes: async () => false })).toThrow(
      /does not say which tokens are most probable/,
    );
    const cache = ReplyCache.open(temporaryDirectory(), "reticent");
    cache.set("key", reply!);
    cache.flush();
    expect(cache.get("key")).toEqual(reply);
  });

  it("is refused where its tokens are not those of the prompt", async () => {
    const model = await CompletionServer.connect(url, { model: "others" });
    await expect(likelihoods(model, ["x y", " a b"])).rejects.toThrow(/splits the prompt into tokens that do not make/);
  });

  it("writes text up to where it is to stop", async () => {
    const model = await CompletionServer.connect(url, { model: "other" });
    const replies: string[] = [];
    const request = { kind: "generate" as const, context: "x", until: ["STOP", "\n"], maxTokens: 7 };
    await model.generate([request], (_, reply) => void replies.push(reply));
    expect(replies).toEqual([" a b"]);
    expect(seen.at(-1)).toMatchObject({ model: "other", max_tokens: 7, temperature: 0, stop: ["STOP", "\n"] });
  });

  it("is asked again when it is busy", async () => {
    failures = 1;
    const replies = await likelihoods(await CompletionServer.connect(url), ["x", " a"]);
    expect(replies[0]?.logLikelihood).toBeCloseTo(Math.log(0.5), 12);
  });

  it("is asked nothing more when it has refused one request", async () => {
    const model = await CompletionServer.connect(url, { model: "strange" });
    const before = seen.length;
    const many = Array.from({ length: 200 }, (_, i) => ["x", ` ${i}`] as const);
    await expect(likelihoods(model, ...many)).rejects.toThrow(/an unexpected form/);
    const asked = seen.length - before;
    expect(asked).toBeLessThan(100);
    await likelihoods(await CompletionServer.connect(url), ["x", " a"]); // whatever was under way has arrived
    expect(seen.length - before).toBeLessThan(asked + 20);
  });

  it("that cannot give likelihoods is refused by name", async () => {
    const ask = async (model: string) => likelihoods(await CompletionServer.connect(url, { model }), ["x", " a"]);
    await expect(ask("silent")).rejects.toThrow(/does not return log-probabilities of the prompt .* gsm8k/);
    await expect(ask("strange")).rejects.toThrow(/an unexpected form/);
    await expect(CompletionServer.connect(`${url}/nothing`)).rejects.toThrow(/404/);
  });
});
