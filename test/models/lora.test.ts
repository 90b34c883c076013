import { copyFileSync, mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it, vi } from "vitest";
import {
  readTensor,
  resolveModel,
  type TensorSource,
  withAdapters,
  writeSafetensors,
} from "../../src/checkpoint/index.js";
import { toFloat32 } from "../../src/ggml/convert.js";
import { bytesOf } from "../../src/ggml/dtype.js";
import { loadFunctions } from "../../src/ggml/library.js";
import { openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { Random } from "../../src/system/random.js";
import { coppice, json } from "../cli/command-line.js";
import { temporaryDirectory } from "../temporary.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const root = temporaryDirectory();
const base = openCheckpoint(teacher);
const HIDDEN = base.config.hidden_size as number;
const VOCABULARY = base.config.vocab_size as number;
const FFN = base.config.intermediate_size as number;

const random = new Random(5, 0);
const normals = (count: number) => Float32Array.from({ length: count }, () => 0.1 * random.normal());

interface Tensor {
  readonly shape: readonly number[];
  readonly values: Float32Array;
}
const matrix = (rows: number, columns: number): Tensor => ({ shape: [rows, columns], values: normals(rows * columns) });

/** Writes an adapter as PEFT does. */
function adapter(name: string, config: Record<string, unknown>, tensors: Readonly<Record<string, Tensor>>): string {
  const directory = path.join(root, name);
  mkdirSync(directory, { recursive: true });
  const full = { peft_type: "LORA", base_model_name_or_path: "someone/a-model", r: 4, lora_alpha: 8, ...config };
  writeFileSync(path.join(directory, "adapter_config.json"), JSON.stringify(full));
  writeSafetensors(
    path.join(directory, "adapter_model.safetensors"),
    Object.entries(tensors).map(([tensor, { shape, values }]) => ({
      name: tensor,
      dtype: "f32" as const,
      shape,
      chunks: () => [bytesOf(values)],
    })),
  );
  return directory;
}

const valuesOf = (source: TensorSource, name: string): Float32Array =>
  toFloat32(loadFunctions(), readTensor(source, name), source.tensors.get(name)?.dtype ?? "f32").slice();

/** W + scale · B A in double precision. */
function expected(name: string, scale: number, a: Tensor, b: Tensor): Float64Array {
  const result = Float64Array.from(valuesOf(base.source, name));
  const [rank = 1, columns = 1] = a.shape;
  for (let row = 0; row < (b.shape[0] ?? 1); row++)
    for (let column = 0; column < columns; column++)
      for (let i = 0; i < rank; i++)
        result[row * columns + column]! += scale * b.values[row * rank + i]! * a.values[i * columns + column]!;
  return result;
}

/** The largest difference, in units of what rounding to the stored type allows. */
function difference(actual: Float32Array, wanted: ArrayLike<number>): number {
  const precision = base.source.tensors.get("model.norm.weight")?.dtype === "f32" ? 2 ** -23 : 2 ** -8;
  return actual.reduce(
    (most, value, i) => Math.max(most, Math.abs(value - wanted[i]!) / (precision * (Math.abs(wanted[i]!) + 1e-3))),
    0,
  );
}

const Q = "model.layers.1.self_attn.q_proj";
const UP = "model.layers.2.mlp.up_proj";
const pair = (module: string, a: Tensor, b: Tensor): Record<string, Tensor> => ({
  [`base_model.model.${module}.lora_A.weight`]: a,
  [`base_model.model.${module}.lora_B.weight`]: b,
});
const heads = base.source.tensors.get(`${Q}.weight`)?.shape[0] ?? 0;
const [qa, qb, ua, ub] = [matrix(4, HIDDEN), matrix(heads, 4), matrix(2, HIDDEN), matrix(FFN, 2)];

describe("a LoRA adapter", () => {
  const plain = adapter(
    "plain",
    { rank_pattern: { up_proj: 2 }, alpha_pattern: { "layers.2.mlp.up_proj": 6 } },
    {
      ...pair(Q, qa, qb),
      ...pair(UP, ua, ub),
    },
  );

  it("is merged into the matrices that it names, by the rank and alpha of each, and into no other", () => {
    const merged = openCheckpoint(withAdapters(teacher, [plain]));
    expect(difference(valuesOf(merged.source, `${Q}.weight`), expected(`${Q}.weight`, 2, qa, qb))).toBeLessThan(1);
    expect(difference(valuesOf(merged.source, `${UP}.weight`), expected(`${UP}.weight`, 3, ua, ub))).toBeLessThan(1);
    for (const name of base.source.tensors.keys())
      if (![`${Q}.weight`, `${UP}.weight`].includes(name))
        expect(Buffer.compare(readTensor(merged.source, name), readTensor(base.source, name))).toBe(0);
    expect(merged.files).toContain(path.join(plain, "adapter_model.safetensors"));
  });

  it("is merged at the strength that is asked for, and after another", () => {
    const half = openCheckpoint(withAdapters(teacher, [`${plain}=0.5`]));
    expect(difference(valuesOf(half.source, `${Q}.weight`), expected(`${Q}.weight`, 1, qa, qb))).toBeLessThan(1);
    const back = openCheckpoint(withAdapters(teacher, [plain, `${plain}=-1`]));
    expect(difference(valuesOf(back.source, `${Q}.weight`), valuesOf(base.source, `${Q}.weight`))).toBeLessThan(400);
  });

  it("is scaled by the root of its rank where it says so", () => {
    const rooted = adapter("rooted", { use_rslora: true }, pair(Q, qa, qb));
    const { source } = openCheckpoint(withAdapters(teacher, [rooted]));
    expect(difference(valuesOf(source, `${Q}.weight`), expected(`${Q}.weight`, 4, qa, qb))).toBeLessThan(1);
  });

  it("changes embeddings, and replaces what was trained whole", () => {
    const [a, b] = [matrix(4, VOCABULARY), matrix(HIDDEN, 4)];
    const norm: Tensor = { shape: [HIDDEN], values: normals(HIDDEN) };
    const embedding = adapter(
      "embedding",
      { modules_to_save: ["norm"] },
      {
        "base_model.model.model.embed_tokens.lora_embedding_A": a,
        "base_model.model.model.embed_tokens.lora_embedding_B": b,
        "base_model.model.model.norm.weight": norm,
      },
    );
    const { source } = openCheckpoint(withAdapters(teacher, [embedding]));
    const turned = (tensor: Tensor): Tensor => {
      const [rows = 1, columns = 1] = tensor.shape;
      const values = tensor.values.map((_, i) => tensor.values[(i % rows) * columns + Math.floor(i / rows)]!);
      return { shape: [columns, rows], values };
    };
    const name = "model.embed_tokens.weight";
    expect(difference(valuesOf(source, name), expected(name, 2, turned(b), turned(a)))).toBeLessThan(1);
    expect(difference(valuesOf(source, "model.norm.weight"), norm.values)).toBeLessThan(1);
  });

  it("changes an embedding that it holds itself, as PEFT saves one beside its change", () => {
    const name = "model.embed_tokens.weight";
    const [a, b] = [matrix(4, VOCABULARY), matrix(HIDDEN, 4)];
    const own: Tensor = { shape: [VOCABULARY, HIDDEN], values: normals(VOCABULARY * HIDDEN) };
    const module = "base_model.model.model.embed_tokens";
    const pairs = { [`${module}.lora_embedding_A`]: a, [`${module}.lora_embedding_B`]: b };
    const changed = adapter("embedding-pair", {}, pairs);
    const whole = adapter("embedding-with-base", {}, { ...pairs, [`${module}.base_layer.weight`]: own });
    const [without, withBase] = [changed, whole].map((one) =>
      valuesOf(openCheckpoint(withAdapters(teacher, [one])).source, name),
    );
    const before = valuesOf(base.source, name);
    const wanted = without!.map((value, i) => value - before[i]! + own.values[i]!);
    const errors = withBase!.map((value, i) => Math.abs(value - wanted[i]!));
    expect(Math.max(...errors)).toBeLessThan(2 ** -7 * Math.max(...wanted.map(Math.abs))); // bf16's rounding
  });

  it("is merged into a quantized model, whose other tensors stay as they are", async () => {
    const file = path.join(root, "base.gguf");
    await exportGguf(file, base, { kind: "q8_0" });
    const [own, merged] = [openCheckpoint(file), openCheckpoint(withAdapters(file, [plain]))];
    const before = valuesOf(base.source, `${Q}.weight`);
    const change = expected(`${Q}.weight`, 2, qa, qb).map((value, i) => value - before[i]!);
    const wanted = valuesOf(own.source, `${Q}.weight`).map((value, i) => value + change[i]!);
    const errors = valuesOf(merged.source, `${Q}.weight`).map((value, i) => Math.abs(value - wanted[i]!));
    expect(Math.max(...errors)).toBeLessThan(2 ** -10 * Math.max(...wanted.map(Math.abs))); // f16's rounding
    expect(merged.source.tensors.get(`${Q}.weight`)?.dtype).toBe("f16");
    expect(merged.source.tensors.get("model.layers.0.mlp.up_proj.weight")?.dtype).toBe("q8_0");
  });

  it.each<[string, string, Record<string, unknown>, Record<string, Tensor>, RegExp]>([
    ["DoRA", "dora", { use_dora: true }, pair(Q, qa, qb), /use_dora \(true\) is not supported.*merge_and_unload/],
    ["PiSSA", "pissa", { init_lora_weights: "pissa_niter_4" }, pair(Q, qa, qb), /init_lora_weights/],
    ["another kind", "ia3", { peft_type: "IA3" }, {}, /adapters of the type "IA3" cannot be merged/],
    ["a rank that is not its own", "rank", { r: 8 }, pair(Q, qa, qb), /has the rank 4, its configuration says 8/],
    ["half a change", "half", {}, { [`base_model.model.${Q}.lora_A.weight`]: qa }, /only one of its two matrices/],
    ["a layer too many", "layer", {}, pair("model.layers.9.mlp.up_proj", ua, ub), /layers\.9.*does not have/],
    ["another width", "width", {}, pair(Q, matrix(4, 8), qb), /another model/],
    ["no tensors", "none", {}, {}, /no tensors of an adapter/],
    ["NaN", "nan", {}, pair(Q, { ...qa, values: qa.values.with(3, Number.NaN) }, qb), /lora_A\.weight holds NaN/],
  ])("is refused with %s", (_, name, config, tensors, message) => {
    expect(() => openCheckpoint(withAdapters(teacher, [adapter(name, config, tensors)]))).toThrow(message);
  });

  it("is said to be one where a model is wanted, and a model where an adapter is", async () => {
    expect(() => openCheckpoint(plain)).toThrow(/is a LoRA adapter of someone\/a-model, not a model.*--lora/);
    copyFileSync(path.join(teacher, "config.json"), path.join(plain, "config.json")); // as some trainers write
    expect(() => openCheckpoint(plain)).toThrow(/is a LoRA adapter/);
    expect(() => openCheckpoint(withAdapters(teacher, [teacher]))).toThrow(/is not a LoRA adapter/);
    await expect(resolveModel(withAdapters(teacher, [path.join(root, "nowhere", "at", "all")]))).rejects.toThrow(
      /nowhere/,
    );
    expect(() => openCheckpoint(withAdapters(teacher, [`${plain}=much`]))).toThrow(/much, which is not a number/);
  });

  it("is merged by every command that opens a model", async () => {
    vi.stubEnv("COPPICE_CACHE", path.join(root, "cache"));
    const out = path.join(root, "exported");
    expect(await coppice("export", teacher, "--lora", plain, "--out", out)).toMatchObject({ status: 0 });
    const [exported, merged] = [openCheckpoint(out), openCheckpoint(withAdapters(teacher, [plain]))];
    for (const name of base.source.tensors.keys())
      expect(Buffer.compare(readTensor(exported.source, name), readTensor(merged.source, name))).toBe(0);
    const data = path.join(root, "text.txt");
    writeFileSync(data, "Tom had a kite. ".repeat(60));
    const loss = async (...args: string[]) =>
      (await json<{ loss: number }>("perplexity", ...args, "--data", data, "--compute", "f32")).loss;
    expect(await loss(teacher, "--lora", plain)).toBeCloseTo(await loss(out), 5);
    expect(Math.abs((await loss(teacher)) - (await loss(out)))).toBeGreaterThan(1e-3);
    const options = ["--prompt", "One", "--temperature", "0", "--max-tokens", "8"];
    const generated = async (...args: string[]) => (await json<{ text: string }>("generate", ...args, ...options)).text;
    expect(await generated(teacher, "--lora", plain)).toBe(await generated(out));
    expect(await generated(teacher, "--lora", `${plain}=0`)).toBe(await generated(teacher)); // another export
    expect(await coppice("inspect", plain)).toMatchObject({ status: 1 });
  });
});
