import { cpSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import { gguf, writeGguf } from "../../src/checkpoint/gguf.js";
import { type TensorSource, writeCheckpoint } from "../../src/checkpoint/index.js";
import { openCheckpoint } from "../../src/models/index.js";
import { type RunningServer, type ServeJob, serve } from "../../src/serve/index.js";
import { Random } from "../../src/system/random.js";
import { temporaryDirectory } from "../temporary.js";
import { expectSame, type ScoredText } from "./same-text.js";

const model = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");

let server: RunningServer | undefined;
afterEach(() => server?.close());
const start = async (options: Partial<ServeJob>): Promise<void> => {
  const common = { models: [model], port: 0, device: "cpu", threads: 1, logLevel: "silent", slots: 2 } as const;
  server = await serve({ ...common, ...options });
};
/** Continues a prompt by the most probable tokens, or by drawn ones. */
const complete = async (prompt: string, settings: object = {}): Promise<ScoredText> => {
  const body = JSON.stringify({ prompt, max_tokens: 32, temperature: 0, logprobs: 20, ...settings });
  const response = await fetch(`${server?.url}/v1/completions`, { method: "POST", body });
  const answer = (await response.json()) as { choices?: ScoredText[]; error?: { message: string } };
  expect(response.status, answer.error?.message).toBe(200);
  return answer.choices?.[0] as ScoredText;
};
const PROMPTS = ["Tom had a", "The kite", "Once upon a time", "Mara found a", "It was", "One day, Tom"];
const completeAll = (settings: object = {}) => Promise.all(PROMPTS.map((prompt) => complete(prompt, settings)));
const drawn = { temperature: 1, seed: 5 };

/** Expects the same texts, of which rounding may change some: see {@link expectSame}. */
function expectAllSame(found: readonly ScoredText[], wanted: readonly ScoredText[], kind: "most probable" | "drawn") {
  const same = found.filter((text, i) => expectSame(text, wanted[i] as ScoredText, kind));
  expect(same.length, `${kind} texts that are the same to their ends`).toBeGreaterThan(PROMPTS.length / 2);
}

describe("models that do not fit in memory together", () => {
  it("make room for each other, and each answers as it would alone", async () => {
    const other = path.join(directory, "other");
    cpSync(model, other, { recursive: true });
    await start({ models: [model, other], memoryLimit: 12 << 20 });
    const first = await complete("Tom had a", { model: "tiny-teacher" });
    for (const name of ["other", "tiny-teacher", "other"])
      expectSame(await complete("Tom had a", { model: name }), first, "most probable");
    const metrics = await (await fetch(`${server?.url}/v1/metrics`)).text();
    expect(metrics).toMatch(/^coppice:models_loaded 1$/m);
  });
});

const [base, merged] = [path.join(directory, "base"), path.join(directory, "merged")];

const adapter = path.join(directory, "adapter.gguf");
const [rank, alpha, scale] = [2, 8, 0.5];
const layer = "model.layers.1.mlp.down_proj.weight";

/** W + scale alpha / r B A (Hu et al. 2021, arXiv 2106.09685, section 4.1), and an adapter that says the same. */
beforeAll(async () => {
  const { config, source } = openCheckpoint(model);
  writeCheckpoint(base, config, source, { dtype: "f32", carryFrom: model });
  const whole = openCheckpoint(base).source;
  const [rows = 0, columns = 0] = whole.tensors.get(layer)?.shape ?? [];
  const random = new Random(3);
  const draw = (count: number) => Float32Array.from({ length: count }, () => 0.25 * random.normal());
  const [a, b] = [draw(rank * columns), draw(rows * rank)];
  const change = (row: number, column: number): number => {
    let sum = 0;
    for (let k = 0; k < rank; k++) sum += (b[row * rank + k] ?? 0) * (a[k * columns + column] ?? 0);
    return ((scale * alpha) / rank) * sum;
  };
  const changed: TensorSource = {
    tensors: whole.tensors,
    releaseRows: () => {},
    readRows: (name, from, to) => {
      const bytes = Uint8Array.from(whole.readRows(name, from, to));
      if (name !== layer) return bytes;
      const values = new Float32Array(bytes.buffer);
      values.forEach((value, i) => {
        values[i] = value + change(from + Math.floor(i / columns), i % columns);
      });
      return bytes;
    },
  };
  writeCheckpoint(merged, config, changed, { dtype: "f32", carryFrom: model });
  const tensor = (name: string, shape: number[], values: Float32Array) => ({
    name: `blk.1.ffn_down.weight.lora_${name}`,
    dtype: "f32" as const,
    shape,
    chunks: () => [new Uint8Array(values.buffer)],
  });
  const metadata = new Map([
    ["general.architecture", gguf.string("llama")],
    ["general.type", gguf.string("adapter")],
    ["adapter.type", gguf.string("lora")],
    ["adapter.lora.alpha", gguf.float32(alpha)],
  ]);
  await writeGguf(adapter, metadata, [tensor("a", [rank, columns], a), tensor("b", [rows, rank], b)]);
});

describe("a draft model", () => {
  it.each([
    ["right", base],
    ["wrong", merged],
  ])("whose guesses are %s changes nothing of what is written, alone or with others", async (_, draftModel) => {
    await start({ models: [base] });
    const [mostProbable, byChance] = [await completeAll(), await completeAll(drawn)];
    await server?.close();
    await start({ models: [base], draftModel });
    expectAllSame(await completeAll(), mostProbable, "most probable");
    expectAllSame(await completeAll(drawn), byChance, "drawn");
    for (const [i, prompt] of PROMPTS.entries())
      expectSame(await complete(prompt, drawn), byChance[i] as ScoredText, "drawn");
  });
});

describe("a LoRA adapter", () => {
  it("has a model write as one with changed weights does", async () => {
    await start({ models: [base] });
    const without = await completeAll();
    await server?.close();
    await start({ models: [merged] });
    const wanted = await completeAll();
    expect(wanted.map(({ text }) => text)).not.toEqual(without.map(({ text }) => text));
    await server?.close();
    await start({ models: [base], lora: [`${adapter}=${scale}`] });
    expectAllSame(await completeAll(), wanted, "most probable");
  });

  it("that is not one is refused", async () => {
    const none = path.join(directory, "none.gguf");
    writeFileSync(none, "GGUF and nothing more");
    await start({ lora: [none] });
    const response = await fetch(`${server?.url}/v1/completions`, { method: "POST", body: '{"prompt":"x"}' });
    expect(response.status).toBeGreaterThanOrEqual(400);
  });
});
