import { cpSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import { gguf, writeGguf } from "../../src/checkpoint/gguf.js";
import { type TensorSource, writeCheckpoint } from "../../src/checkpoint/index.js";
import { openCheckpoint } from "../../src/models/index.js";
import { type RunningServer, type ServeJob, serve } from "../../src/serve/index.js";
import { Random } from "../../src/system/random.js";
import { temporaryDirectory } from "../temporary.js";

const model = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");

let server: RunningServer | undefined;
afterEach(() => server?.close());
const start = async (options: Partial<ServeJob>): Promise<void> => {
  const common = { models: [model], port: 0, device: "cpu", threads: 1, logLevel: "silent", slots: 2 } as const;
  server = await serve({ ...common, ...options });
};
/** What a model writes after a prompt: the likeliest tokens, or drawn by a seed. */
const written = async (prompt: string, settings: object = {}): Promise<string> => {
  const body = JSON.stringify({ prompt, max_tokens: 32, temperature: 0, ...settings });
  const response = await fetch(`${server?.url}/v1/completions`, { method: "POST", body });
  const answer = (await response.json()) as { choices?: { text: string }[]; error?: { message: string } };
  expect(response.status, answer.error?.message).toBe(200);
  return answer.choices?.[0]?.text ?? "";
};
const PROMPTS = ["Tom had a", "The kite", "Once upon a time"];
const all = (settings: object = {}) => Promise.all(PROMPTS.map((prompt) => written(prompt, settings)));

describe("models that do not fit in memory together", () => {
  it("make room for each other, and each answers as it would alone", async () => {
    const other = path.join(directory, "other");
    cpSync(model, other, { recursive: true });
    await start({ models: [model, other], memoryLimit: 12 << 20 });
    const [first] = [await written("Tom had a", { model: "tiny-teacher" })];
    for (const name of ["other", "tiny-teacher", "other"])
      expect(await written("Tom had a", { model: name })).toBe(first);
    const metrics = await (await fetch(`${server?.url}/v1/metrics`)).text();
    expect(metrics).toMatch(/^coppice:models_loaded 1$/m);
  });
});

describe("a draft model", () => {
  it("changes nothing of what is written, by likelihood or by seed, alone or with others", async () => {
    await start({});
    const [likeliest, drawn] = [await all(), await all({ temperature: 1, seed: 5 })];
    await server?.close();
    await start({ draftModel: model });
    expect(await all()).toEqual(likeliest);
    expect(await all({ temperature: 1, seed: 5 })).toEqual(drawn);
  });
});

describe("a LoRA adapter", () => {
  const [base, merged] = [path.join(directory, "base"), path.join(directory, "merged")];
  const adapter = path.join(directory, "adapter.gguf");
  const [rank, alpha, scale] = [2, 8, 0.5];
  const layer = "model.layers.1.mlp.down_proj.weight";

  /** W + scale alpha / r B A (Hu et al. 2021, arXiv 2106.09685, section 4.1), beside an adapter that says the same. */
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

  it("has a model write as one whose weights were changed so", async () => {
    await start({ models: [base] });
    const without = await all();
    await server?.close();
    await start({ models: [merged] });
    const wanted = await all();
    expect(wanted).not.toEqual(without);
    await server?.close();
    await start({ models: [base], lora: [`${adapter}=${scale}`] });
    expect(await all()).toEqual(wanted);
  });

  it("that is none is refused", async () => {
    const none = path.join(directory, "none.gguf");
    writeFileSync(none, "GGUF and nothing more");
    await start({ lora: [none] });
    const response = await fetch(`${server?.url}/v1/completions`, { method: "POST", body: '{"prompt":"x"}' });
    expect(response.status).toBeGreaterThanOrEqual(400);
  });
});
