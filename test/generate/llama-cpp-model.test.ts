import { cpSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Tokenizer } from "../../src/data/index.js";
import { EngineLikelihoods, type Likelihood } from "../../src/evaluate/index.js";
import { LlamaCppModel } from "../../src/generate/index.js";
import { Backend } from "../../src/ggml/index.js";
import { exportModel } from "../../src/index.js";
import { loadWeights, modelFromConfig, openCheckpoint } from "../../src/models/index.js";
import { loadInLlamaCpp } from "../llama-cpp.js";
import { temporaryDirectory } from "../temporary.js";
import { clearTokens } from "./clear-tokens.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const file = path.join(temporaryDirectory(), "teacher-f32.gguf");
await exportModel({ model: teacher, out: file, dtype: "f32" });
const tokenizer = await Tokenizer.load(teacher);

/** A list of replies, and a callback that fills it. */
function collector<T>() {
  const replies: T[] = [];
  const onReply = (index: number, reply: T) => {
    replies[index] = reply;
  };
  return { replies, onReply };
}

describe("llama.cpp", async () => {
  const model = await LlamaCppModel.open(file, tokenizer, { device: "cpu", threads: 1, maxLength: 96, exact: true });
  afterAll(() => model.dispose());
  const story = "Once upon a time there was a little cat. It liked to play with a ball.";

  it("finds texts as likely as our engine does", async () => {
    const requests = [
      ...[" The cat", " happy", "", " ball ball"].map((continuation) => ({
        kind: "log-likelihood" as const,
        context: story,
        continuation,
      })),
      { kind: "log-likelihood" as const, context: "", continuation: "Once upon" },
      { kind: "rolling" as const, text: story.repeat(5) },
    ];
    const { config, source } = openCheckpoint(teacher);
    const backend = Backend.open({ device: "cpu" });
    const weights = loadWeights(backend, modelFromConfig(config), source, { dtype: "f32", trainable: false });
    const engine = new EngineLikelihoods(backend, weights, tokenizer, { maxLength: 96 });
    const [expected, found] = [collector<Likelihood>(), collector<Likelihood>()];
    await engine.logLikelihoods(requests, expected.onReply);
    await model.logLikelihoods(requests, found.onReply);
    weights.free();
    backend.free();
    expect(found.replies).toHaveLength(requests.length);
    for (const [i, { logLikelihood, isGreedy }] of expected.replies.entries()) {
      expect(Math.abs(found.replies[i]!.logLikelihood - logLikelihood), `request ${i}`).toBeLessThan(1e-3);
      expect(found.replies[i]!.isGreedy).toBe(isGreedy);
    }
  });

  it("ends an answer at each of the tokens that the model's configuration lists", async () => {
    const answer = async (answering: LlamaCppModel) => {
      const { replies, onReply } = collector<string>();
      await answering.generate([{ kind: "generate", context: story, until: [], maxTokens: 24 }], onReply);
      return (await tokenizer.encode([replies[0] ?? ""], false))[0] ?? [];
    };
    const whole = await answer(model);
    const end = whole[8]!;
    const copy = temporaryDirectory();
    cpSync(teacher, copy, { recursive: true });
    writeFileSync(path.join(copy, "generation_config.json"), JSON.stringify({ eos_token_id: [0, end] }));
    const options = { device: "cpu", threads: 1, maxLength: 96, exact: true } as const;
    const ending = await LlamaCppModel.open(file, await Tokenizer.load(copy), options);
    expect(await answer(ending)).toEqual(whole.slice(0, whole.indexOf(end)));
    await ending.dispose();
  });

  it("stops at the requested texts, and continues a text in the same way alone or after another", async () => {
    const ask = async (...requests: { context: string; until: string[]; maxTokens: number }[]) => {
      const { replies, onReply } = collector<string>();
      await model.generate(
        requests.map((request) => ({ kind: "generate", ...request })),
        onReply,
      );
      return replies;
    };
    const free = { context: story, until: [], maxTokens: 24 };
    const [long = "", other] = await ask(free, { ...free, context: `${story} Then` });
    // another batch reads its prompt now: the texts may part where two tokens are equally probable
    const [alone = ""] = await ask({ ...free, context: `${story} Then` });
    const reference = await loadInLlamaCpp(file);
    const [prompt = [], written = []] = await tokenizer.encode([`${story} Then`, alone], false);
    const begin = tokenizer.bos === undefined ? [] : [tokenizer.bos.id];
    const clear = written.slice(0, await clearTokens(reference, [...begin, ...prompt], written));
    await reference.dispose();
    expect(clear).not.toEqual([]);
    expect(other?.startsWith((await tokenizer.decode(clear)).replace(/\ufffd+$/, ""))).toBe(true);
    expect((await tokenizer.encode([long], false))[0]?.length).toBeLessThanOrEqual(24);
    const [first = ""] = long.split(".", 1);
    expect(first.length).toBeLessThan(long.length);
    expect(await ask({ ...free, until: ["never", "."] })).toEqual([first]);
    await expect(ask({ ...free, maxTokens: 96 })).rejects.toThrow(/--max-gen-tokens less than/);
  });

  it("samples different texts at a temperature, the same ones each time", async () => {
    const draw = async () => {
      const { replies, onReply } = collector<string>();
      const request = {
        kind: "generate" as const,
        context: story,
        until: [],
        maxTokens: 16,
        temperature: 1,
        topP: 0.95,
      };
      await model.generate(
        [0, 1, 2].map((sample) => ({ ...request, sample })),
        onReply,
      );
      return replies;
    };
    const texts = await draw();
    expect(new Set(texts).size).toBeGreaterThan(1);
    expect(await draw()).toEqual(texts);
  });
});
