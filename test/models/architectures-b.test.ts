import { cpSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openDirectory, writeCheckpoint } from "../../src/checkpoint/index.js";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { readTensor } from "../../src/checkpoint/tensor-source.js";
import { crossEntropyObjective } from "../../src/distill/index.js";
import { Backend } from "../../src/ggml/index.js";
import { initialise, loadWeights, openCheckpoint, storedSource, writeModel } from "../../src/models/index.js";
import { joinedSource, memorySource, renamedSource } from "../../src/models/sources.js";
import { keptIndices, planWithLayers, prune } from "../../src/prune/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { Random } from "../../src/system/random.js";
import { Graph, gradients } from "../../src/tensor/index.js";
import { loadInLlamaCpp, logProbabilities, writeTokenizer } from "../llama-cpp.js";
import { randomModel } from "../random-model.js";
import { temporaryDirectory } from "../temporary.js";
import { expected, fixtures, logitsOf, relativeDifference } from "./architectures.js";

const NAMES = [
  "glm4",
  "exaone4",
  "exaone4-window",
  "hunyuan_v1_dense",
  "ernie4_5",
  "nemotron",
  "arcee",
  "apertus",
  "starcoder2",
  "gpt_neox",
  "gpt_neox-sequential",
  "gpt2",
];

const expectedOf = (name: string) => expected(plain, path.join(fixtures, name));
const difference = relativeDifference;

const centred = (row: ArrayLike<number>): number[] => {
  const values = Array.from(row);
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return values.map((value) => value - mean);
};

const auto = Backend.open({ device: "cpu" });
const plain = Backend.open({ device: "cpu", kernels: "none" });
const root = temporaryDirectory();
afterAll(() => {
  auto.free();
  plain.free();
});

describe.each(NAMES)("%s", (name) => {
  it("gives transformers' logits", async () => {
    const { tokens, logits } = expectedOf(name);
    const checkpoint = openCheckpoint(path.join(fixtures, name));
    for (const [which, backend] of Object.entries({ auto, plain })) {
      const found = difference(await logitsOf(backend, checkpoint, tokens), logits);
      console.log(name, which, found.toExponential(1));
      expect(found).toBeLessThan(1e-5);
    }
  });

  it("is written as it was", () => {
    const checkpoint = openCheckpoint(path.join(fixtures, name));
    const directory = path.join(root, `${name}-again`);
    writeModel(directory, checkpoint);
    const again = openCheckpoint(directory);
    const stored = storedSource(checkpoint);
    const back = storedSource(again);
    expect([...back.tensors.keys()].sort()).toEqual([...stored.tensors.keys()].sort());
    for (const tensor of stored.tensors.keys())
      expect(Buffer.compare(readTensor(stored, tensor), readTensor(back, tensor)), tensor).toBe(0);
  });
});

/** What llama.cpp cannot do is left out of the comparison. */
const CHANGES: Readonly<Record<string, Record<string, unknown>>> = { starcoder2: { sliding_window: null } };

async function compareWithLlamaCpp(label: string, directory: string, tolerance: number, kind: "f32" | "q8_0" = "f32") {
  const original = openCheckpoint(directory);
  const file = path.join(root, `${label}.gguf`);
  const { notes } = await exportGguf(file, original, { kind });
  const opened = openCheckpoint(file);
  let worst = 0;
  for (const { name } of kind === "f32" ? original.model.parameters : []) {
    const [a, b] = [original, opened].map(({ source }) => readTensor(source, name));
    if (Buffer.compare(a!, b!) === 0) continue;
    const floats = (bytes: Uint8Array) => new Float32Array(bytes.slice().buffer);
    worst = Math.max(worst, difference(floats(b!), floats(a!)));
  }
  const { vocabSize } = original.model;
  const tokens = Array.from({ length: 44 }, (_, i) => 3 + ((i * 37) % (vocabSize - 3)));
  const ours = await logitsOf(plain, kind === "f32" ? original : opened, [tokens]);
  const back = difference(await logitsOf(plain, opened, [tokens]), ours);
  const model = await loadInLlamaCpp(file);
  try {
    const theirs = await logProbabilities(model, tokens, vocabSize);
    let found = 0;
    let scale = 0;
    tokens.forEach((_, i) => {
      const row = centred(ours.subarray(i * vocabSize, (i + 1) * vocabSize));
      centred(theirs[i]!).forEach((value, j) => {
        found = Math.max(found, Math.abs(value - row[j]!));
        scale = Math.max(scale, Math.abs(value));
      });
    });
    if (process.env.BACK_OUT) {
      const directory = path.join(process.env.BACK_OUT, label.replace(/[ ,]+/g, "-"));
      writeModel(directory, opened);
      writeFileSync(path.join(directory, "tokens.bin"), Int32Array.from(tokens));
      writeFileSync(path.join(directory, "ours.bin"), ours);
    }
    console.log(
      label,
      "llama.cpp",
      (found / scale).toExponential(1),
      "weights",
      worst.toExponential(1),
      "back",
      back.toExponential(1),
      notes,
    );
    expect(found / scale).toBeLessThan(tolerance);
    expect(back).toBeLessThan(1e-5);
    return { original, opened, worst };
  } finally {
    await model.dispose();
  }
}

const changed = (name: string, label: string, changes: Record<string, unknown>): string => {
  const directory = path.join(root, label);
  cpSync(path.join(fixtures, name), directory, { recursive: true });
  const config = { ...readJsonObject(path.join(directory, "config.json")), ...changes };
  writeFileSync(path.join(directory, "config.json"), JSON.stringify(config));
  writeTokenizer(directory, Number(config.vocab_size));
  return directory;
};

describe("in llama.cpp", () => {
  const GELU = ["starcoder2", "gpt_neox", "gpt_neox-sequential", "gpt2"];
  it.each(NAMES.filter((name) => name !== "nemotron" && name !== "exaone4-window"))("%s", async (name) => {
    const directory = changed(name, `${name}-gguf`, CHANGES[name] ?? {});
    const { worst } = await compareWithLlamaCpp(name, directory, GELU.includes(name) ? 5e-3 : 1e-3);
    expect(worst).toBe(0);
  });

  const RANDOM = {
    vocab_size: 96,
    hidden_size: 64,
    intermediate_size: 96,
    num_hidden_layers: 3,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 16,
    max_position_embeddings: 64,
  };
  const variants: [string, Record<string, unknown>, number][] = [
    ["nemotron", { model_type: "nemotron" }, 1e-3],
    [
      "nemotron tied, biased",
      { model_type: "nemotron", tie_word_embeddings: true, attention_bias: true, mlp_bias: true },
      1e-3,
    ],
    ["apertus tied, biased", { model_type: "apertus", tie_word_embeddings: true, attention_bias: true }, 1e-3],
    [
      "apertus without scaling",
      { model_type: "apertus", rope_parameters: { rope_type: "default", rope_theta: 1e4 } },
      1e-3,
    ],
    ["starcoder2 without biases", { model_type: "starcoder2", use_bias: false }, 5e-3],
    [
      "gpt_neox tied, without biases",
      { model_type: "gpt_neox", attention_bias: false, tie_word_embeddings: true },
      5e-3,
    ],
    ["exaone4 of 64 layers", { model_type: "exaone4", num_hidden_layers: 64, sliding_window: null }, 1e-3],
    ["exaone4 of 64 layers with windows", { model_type: "exaone4", num_hidden_layers: 64, sliding_window: 8 }, 1e-3],
    ["glm4 tied without biases", { model_type: "glm4", attention_bias: false, tie_word_embeddings: true }, 1e-3],
    ["ernie4_5 untied", { model_type: "ernie4_5", head_dim: 12 }, 1e-3],
    [
      "arcee llama3",
      {
        model_type: "arcee",
        rope_theta: 1e4,
        rope_scaling: {
          rope_type: "llama3",
          factor: 8,
          low_freq_factor: 1,
          high_freq_factor: 4,
          original_max_position_embeddings: 16,
        },
      },
      1e-3,
    ],
    [
      "gpt2 n_inner",
      {
        model_type: "gpt2",
        n_embd: 64,
        n_layer: 2,
        n_head: 4,
        n_inner: 96,
        n_positions: 64,
        tie_word_embeddings: false,
      },
      5e-3,
    ],
  ];
  it.each(variants)("%s", async (label, changes, tolerance) => {
    const { checkpoint } = randomModel(root, `${label}-random`, { ...RANDOM, ...changes }, 0.2);
    const directory = path.join(root, `${label}-written`);
    writeModel(directory, checkpoint);
    writeTokenizer(directory, 96);
    const { original, opened } = await compareWithLlamaCpp(label, directory, tolerance);
    expect(opened.model.tiedEmbeddings).toBe(original.model.tiedEmbeddings);
    expect(opened.model.parameters.length).toBe(original.model.parameters.length);
  });
});

const cuts: Readonly<Record<string, readonly Record<string, number>[]>> = {
  default: [{ hidden: 24 }, { ffn: 40 }, { heads: 2 }, { kvHeads: 1, heads: 2 }, { layers: 1 }],
  "exaone4-window": [{ hidden: 24 }, { ffn: 40 }, { heads: 2 }, { kvHeads: 1, heads: 2 }, { layers: 3 }, { layers: 2 }],
  gpt_neox: [{ ffn: 40 }, { layers: 1 }],
  "gpt_neox-sequential": [{ ffn: 40 }, { layers: 1 }],
  gpt2: [{ ffn: 40 }, { layers: 1 }],
};
const out = process.env.CUT_OUT ?? path.join(root, "cuts");

describe("cut", () => {
  it.each(NAMES)("%s", async (name) => {
    const original = openCheckpoint(path.join(fixtures, name));
    const { tokens } = expectedOf(name);
    const wanted = cuts[name] ?? cuts.default ?? [];
    const random = new Random(3);
    const scores = new Map(
      Object.entries(original.model.sizes).map(([dimension, size]) => [
        dimension,
        Float32Array.from({ length: size }, () => random.uniform()),
      ]),
    );
    for (const sizes of wanted) {
      const kept = original.model.layerCount - (sizes.layers ?? original.model.layerCount);
      const layers = Array.from({ length: original.model.layerCount }, (_, i) => i).slice(kept);
      const plan = planWithLayers(original.model, sizes, layers);
      const pruned = prune(original, plan, keptIndices(original.model, plan, scores));
      const directory = path.join(out, `${name}-${Object.entries(sizes).flat().join("-")}`);
      writeModel(directory, pruned);
      const opened = openCheckpoint(directory);
      const ours = await logitsOf(plain, opened, tokens);
      expect(difference(await logitsOf(plain, pruned, tokens), ours)).toBe(0);
      writeFileSync(path.join(directory, "tokens.bin"), Int32Array.from(tokens.flat()));
      writeFileSync(path.join(directory, "ours.bin"), ours);
    }
    expect(original.model.axes.map(({ name: axis }) => axis)).toEqual(
      name.startsWith("gpt") ? ["ffn", "layers"] : ["hidden", "ffn", "heads", "kvHeads", "layers"],
    );
  });
});

describe("old spellings", () => {
  const rewrite = (name: string, change: (config: Record<string, unknown>) => void): string => {
    const directory = path.join(root, `${name}-old`);
    cpSync(path.join(fixtures, name), directory, { recursive: true });
    const config = { ...readJsonObject(path.join(directory, "config.json")) };
    change(config);
    writeFileSync(path.join(directory, "config.json"), JSON.stringify(config));
    return directory;
  };
  const flat = (config: Record<string, unknown>) => {
    const { rope_theta, partial_rotary_factor, rope_type, ...rest } = config.rope_parameters as Record<string, unknown>;
    delete config.rope_parameters;
    Object.assign(config, { rope_theta, ...(partial_rotary_factor === undefined ? {} : { partial_rotary_factor }) });
    config.rope_scaling = rope_type === "default" ? null : { type: rope_type, ...rest };
  };
  it.each(NAMES.filter((name) => name !== "gpt2"))("%s", async (name) => {
    const { tokens, logits } = expectedOf(name);
    const directory = rewrite(name, (config) => {
      flat(config);
      if (!name.startsWith("gpt_neox")) return;
      config.rotary_emb_base = config.rope_theta;
      config.rotary_pct = config.partial_rotary_factor;
      delete config.rope_theta;
      delete config.partial_rotary_factor;
    });
    expect(difference(await logitsOf(plain, openCheckpoint(directory), tokens), logits)).toBeLessThan(1e-5);
  });
});

describe("gradients", () => {
  it.each(NAMES)("%s", async (name) => {
    const { source, model } = openCheckpoint(path.join(fixtures, name));
    const weights = loadWeights(plain, model, source, { dtype: "f32", trainable: true });
    const g = new Graph(plain);
    const tokens = expectedOf(name).tokens;
    const input = g.input("tokens", "i32", [2, 44]);
    const { loss, feed } = crossEntropyObjective.build({
      ...{ g, model, tokens: input, student: model.forward(g, weights.get, input), taps: new Map() },
      auxiliary: () => {
        throw new Error("not needed");
      },
    });
    g.output(loss);
    const derived = gradients(g, loss, weights.trained).map((gradient) => g.output(gradient));
    g.write(input, Int32Array.from(tokens.flat()));
    await feed({ tokens: Int32Array.from(tokens.flat()), targets: Int32Array.from(tokens.flat()).reverse() }, [0, 1]);
    await g.run();
    const values = derived.map((gradient) => g.read(gradient).slice());
    const random = new Random(5);
    const directions = values.map((v) => Float32Array.from(v, () => random.normal()));
    const at = weights.trained.map((weight) => weights.store.read(weight).slice());
    const lossAt = async (step: number) => {
      for (const [i, weight] of weights.trained.entries())
        weights.store.write(
          weight,
          at[i]!.map((value, j) => value + step * directions[i]![j]!),
        );
      await g.run();
      return g.read(loss)[0]!;
    };
    const h = 3e-4;
    const numeric = ((await lossAt(h)) - (await lossAt(-h))) / (2 * h);
    const analytic = values.reduce((sum, v, i) => sum + v.reduce((part, x, j) => part + x * directions[i]![j]!, 0), 0);
    const norm = Math.sqrt(values.reduce((sum, v) => sum + v.reduce((part, x) => part + x * x, 0), 0));
    console.log(name, "slope", analytic, numeric, norm);
    expect(Math.abs(analytic - numeric)).toBeLessThan(0.02 * norm + 2e-3);
    g.free();
    weights.free();
  });
});

describe("as hubs have them", () => {
  /** A fixture's tensors under other names, and buffers beside them. */
  function stored(name: string, rename: (tensor: string) => string, buffers: readonly string[]): string {
    const { config, source } = openDirectory(path.join(fixtures, name));
    const directory = path.join(root, `${name}-hub`);
    const names = new Map([...source.tensors.keys()].map((tensor) => [rename(tensor), tensor]));
    const extra = buffers.map((buffer) => [buffer, { shape: [1, 4], values: new Float32Array(4) }] as const);
    writeCheckpoint(directory, config, joinedSource(renamedSource(source, names), memorySource(new Map(extra))));
    return directory;
  }

  it.each([
    ["gpt2", (tensor: string) => tensor.replace("transformer.", ""), ["h.0.attn.bias", "h.1.attn.masked_bias"]],
    [
      "gpt_neox",
      (tensor: string) => tensor.replace("embed_out", "lm_head"),
      ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"],
    ],
  ] as const)("%s", async (name, rename, buffers) => {
    const checkpoint = openCheckpoint(stored(name, rename, buffers));
    const { tokens, logits } = expectedOf(name);
    expect(difference(await logitsOf(plain, checkpoint, tokens), logits)).toBeLessThan(1e-5);
    expect(checkpoint.notes).toEqual([]);
    expect([...storedSource(checkpoint).tensors.keys()]).toContain(
      name === "gpt2" ? "transformer.wte.weight" : "embed_out.weight",
    );
  });

  it("numbers of no axis come back from the device as they were", () => {
    const { model, source } = openCheckpoint(path.join(fixtures, "apertus"));
    const weights = loadWeights(plain, model, source, { dtype: "f32", trainable: true });
    const directory = path.join(root, "apertus-trained");
    writeModel(directory, { model, source: weights.source() });
    weights.free();
    const again = openCheckpoint(directory).source;
    for (const { name } of model.parameters) {
      expect(again.tensors.get(name)?.shape, name).toEqual(source.tensors.get(name)?.shape);
      expect(Buffer.compare(readTensor(source, name), readTensor(again, name)), name).toBe(0);
    }
    const fresh = initialise(plain, model, 1);
    const [beta] = fresh.store.read(fresh.get("model.layers.0.mlp.act_fn.beta"));
    fresh.free();
    expect(beta).toBe(0.5);
  });

  it.each(["glm4", "gpt_neox", "gpt2", "apertus", "starcoder2"])("%s in eight bits", async (name) => {
    const directory = changed(name, `${name}-q8`, CHANGES[name] ?? {});
    await compareWithLlamaCpp(`${name} q8_0`, directory, 3e-2, "q8_0");
  });
});
