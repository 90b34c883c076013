import { cpSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openDirectory, writeCheckpoint } from "../../src/checkpoint/index.js";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { readTensor, type TensorSource } from "../../src/checkpoint/tensor-source.js";
import { Backend } from "../../src/ggml/index.js";
import {
  initialize,
  loadWeights,
  modelFromConfig,
  openCheckpoint,
  storedSource,
  writeModel,
} from "../../src/models/index.js";
import { joinedSource, memorySource, renamedSource } from "../../src/models/sources.js";
import { exportGguf } from "../../src/quantize/index.js";
import { loadInLlamaCpp, logProbabilities, writeTokenizer } from "../llama-cpp.js";
import { randomModel } from "../random-model.js";
import { temporaryDirectory } from "../temporary.js";
import { cut, cutsOf, expected, fixtures, logitsOf, models, relativeDifference } from "./architectures.js";

/** Models as people have them: older spellings, other names of tensors, more in the files than the configuration asks for. */

const backend = Backend.open({ device: "cpu", kernels: "none" });
const root = temporaryDirectory();
afterAll(() => backend.free());

/** A fixture's tensors changed on their way into another directory. */
function rewritten(
  name: string,
  label: string,
  change: (source: TensorSource) => TensorSource,
  config: object = {},
): string {
  const { config: original, source } = openDirectory(path.join(fixtures, name));
  const directory = path.join(root, `${name}-${label}`);
  writeCheckpoint(directory, { ...original, ...config }, change(source));
  return directory;
}

const named = (rename: (tensor: string) => string) => (source: TensorSource) =>
  renamedSource(source, new Map([...source.tensors.keys()].map((tensor) => [rename(tensor), tensor])));

/** Small tensors of equal numbers beside others. */
const withMore = (more: Readonly<Record<string, readonly number[]>>) => (source: TensorSource) =>
  joinedSource(
    source,
    memorySource(
      new Map(
        Object.entries(more).map(([name, shape]) => [
          name,
          { shape, values: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.5) },
        ]),
      ),
    ),
  );

const differenceFrom = async (name: string, directory: string): Promise<number> => {
  const { tokens, logits } = expected(backend, path.join(fixtures, name));
  return relativeDifference(await logitsOf(backend, openCheckpoint(directory), tokens), logits);
};

describe("configurations of older versions", () => {
  const isFlat = ({ directory }: (typeof models)[number]): boolean => {
    const { rope_parameters: rotary } = readJsonObject(path.join(directory, "config.json"));
    return typeof rotary === "object" && rotary !== null && !("full_attention" in rotary);
  };

  it.each(models.filter(isFlat))("of $name say the same", async ({ name, directory }) => {
    const copy = path.join(root, `${name}-old`);
    cpSync(directory, copy, { recursive: true });
    const { rope_parameters, ...config } = readJsonObject(path.join(copy, "config.json"));
    const { rope_theta, partial_rotary_factor, rope_type, ...rest } = rope_parameters as Record<string, unknown>;
    const scaling = rope_type === "default" ? null : { type: rope_type, ...rest };
    const rotary = name.startsWith("gpt_neox")
      ? { rotary_emb_base: rope_theta, rotary_pct: partial_rotary_factor }
      : { rope_theta, partial_rotary_factor };
    writeFileSync(path.join(copy, "config.json"), JSON.stringify({ ...config, ...rotary, rope_scaling: scaling }));
    expect(await differenceFrom(name, copy)).toBeLessThan(1e-5);
  });
});

describe("configurations with a field that transformers does not read", () => {
  it.each(["gemma2", "gemma3_text"])("of %s say the same: hidden_act beside hidden_activation", async (name) => {
    const copy = path.join(root, `${name}-hidden-act`);
    cpSync(path.join(fixtures, name), copy, { recursive: true });
    const config = readJsonObject(path.join(copy, "config.json"));
    writeFileSync(path.join(copy, "config.json"), JSON.stringify({ ...config, hidden_act: "gelu_pytorch_tanh" }));
    expect(await differenceFrom(name, copy)).toBeLessThan(1e-5);
  });
});

describe("configurations of other models", () => {
  it("of a family's embedding models, whose queries read later keys, are refused", () => {
    const config = readJsonObject(path.join(fixtures, "gemma3_text", "config.json"));
    expect(() => modelFromConfig({ ...config, use_bidirectional_attention: true })).toThrow(
      /use_bidirectional_attention/,
    );
    expect(() => modelFromConfig({ ...config, use_bidirectional_attention: false })).not.toThrow();
  });

  it("called mistral whose layers have types are Ministral's", async () => {
    const copy = rewritten("ministral", "called-mistral", (source) => source, { model_type: "mistral" });
    expect(await differenceFrom("ministral", copy)).toBeLessThan(1e-5);
  });
});

describe("names of tensors", () => {
  it.each([
    ["without their prefix", (name: string) => name.replace(/^model\./, "")],
    ["of a compiled model", (name: string) => `_orig_mod.${name}`],
    ["of a wrapper", (name: string) => `language_model.${name}`],
    ["of a wrapper's inside", (name: string) => name.replace(/^model\./, "model.language_model.")],
  ])("%s are understood", async (label, rename) => {
    const directory = rewritten("qwen3", label.replaceAll(" ", "-"), named(rename));
    expect(await differenceFrom("qwen3", directory)).toBeLessThan(1e-5);
    // and written as transformers has them
    expect([...storedSource(openCheckpoint(directory)).tensors.keys()]).toContain(
      "model.layers.0.self_attn.q_norm.weight",
    );
  });

  it("two that may be the same are refused", () => {
    const directory = rewritten("qwen3", "twice", withMore({ "norm.weight": [32] }));
    expect(() => openCheckpoint(directory)).toThrow(
      /model\.norm\.weight and norm\.weight may both be|may both be model\.norm\.weight/,
    );
  });
});

describe("tensors beyond the configuration", () => {
  it("a head of other values beside a tied embedding is used, with a note", async () => {
    const directory = rewritten("qwen3", "head", withMore({ "lm_head.weight": [96, 32] }));
    const checkpoint = openCheckpoint(directory);
    expect(checkpoint.model.tiedEmbeddings).toBe(false);
    expect(checkpoint.notes.join()).toMatch(/ties the output head.*lm_head\.weight has other values/);
    const { tokens } = expected(backend, path.join(fixtures, "qwen3"));
    const logits = await logitsOf(backend, checkpoint, tokens);
    expect(new Set(logits.subarray(0, 96)).size).toBe(1); // every row of that head is the same
  });

  it("an equal head is no news", () => {
    const directory = rewritten("qwen3", "same-head", (source) =>
      joinedSource(source, renamedSource(source, new Map([["lm_head.weight", "model.embed_tokens.weight"]]))),
    );
    const { model, notes, carried } = openCheckpoint(directory);
    expect([model.tiedEmbeddings, notes, carried]).toEqual([true, [], undefined]);
  });

  it("more layers than there are is said", () => {
    const directory = rewritten("granite", "layers", (source) => source, { num_hidden_layers: 1 });
    expect(openCheckpoint(directory).notes.join()).toMatch(/1 more layers than the configuration has \(1\)/);
  });

  it("of a tower for images go along bit by bit, and the projector is cut with the width", () => {
    const original = openCheckpoint(path.join(fixtures, "gemma3"));
    expect(original.notes.join()).toMatch(/belong to no parameter of the language model/);
    const { plan } = cutsOf(original.model).find(({ name }) => name === "hidden")!;
    const directory = path.join(root, "gemma3-narrow");
    writeModel(directory, cut(original, plan));
    const [before, after] = [path.join(fixtures, "gemma3"), directory].map((at) => openDirectory(at).source);
    const vision = [...before!.tensors.keys()].filter((name) => name.includes("vision_tower"));
    expect(vision.length).toBeGreaterThan(4);
    for (const name of vision)
      expect(Buffer.compare(readTensor(before!, name), readTensor(after!, name)), name).toBe(0);
    const projector = [...before!.tensors.keys()].find((name) => name.endsWith("mm_input_projection_weight"))!;
    expect(after!.tensors.get(projector)?.shape.at(-1)).toBe(plan.sizes.hidden);
  });

  it("that may have the width which is cut are refused, and may stay where it is not", () => {
    const directory = rewritten("qwen3", "mtp", withMore({ "mtp.projection.weight": [64, 32] }));
    const original = openCheckpoint(directory);
    const planOf = (axis: string) => cutsOf(original.model).find(({ name }) => name === axis)!.plan;
    expect(() => cut(original, planOf("hidden"))).toThrow(
      /mtp\.projection\.weight .*has an axis as long as the hidden size/,
    );
    const narrower = path.join(root, "qwen3-mtp-ffn");
    writeModel(narrower, cut(original, planOf("ffn")));
    const [before, after] = [directory, narrower].map((at) =>
      readTensor(openDirectory(at).source, "mtp.projection.weight"),
    );
    expect(Buffer.compare(before!, after!)).toBe(0);
  });
});

describe("files as hubs have them", () => {
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
    const { tokens, logits } = expected(backend, path.join(fixtures, name));
    expect(relativeDifference(await logitsOf(backend, checkpoint, tokens), logits)).toBeLessThan(1e-5);
    expect(checkpoint.notes).toEqual([]);
    expect([...storedSource(checkpoint).tensors.keys()]).toContain(
      name === "gpt2" ? "transformer.wte.weight" : "embed_out.weight",
    );
  });

  it("numbers of no axis come back from the device as they were", () => {
    const { model, source } = openCheckpoint(path.join(fixtures, "apertus"));
    const weights = loadWeights(backend, model, source, { dtype: "f32", trainable: true });
    const directory = path.join(root, "apertus-trained");
    writeModel(directory, { model, source: weights.source() });
    weights.free();
    const again = openCheckpoint(directory).source;
    for (const { name } of model.parameters) {
      expect(again.tensors.get(name)?.shape, name).toEqual(source.tensors.get(name)?.shape);
      expect(Buffer.compare(readTensor(source, name), readTensor(again, name)), name).toBe(0);
    }
    const fresh = initialize(backend, model, 1);
    const [beta] = fresh.store.read(fresh.get("model.layers.0.mlp.act_fn.beta"));
    fresh.free();
    expect(beta).toBe(0.5);
  });
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
  ["gpt_neox tied, without biases", { model_type: "gpt_neox", attention_bias: false, tie_word_embeddings: true }, 5e-3],
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

/** Logits up to their mean, which probabilities say nothing of. */
const centred = (row: ArrayLike<number>): number[] => {
  const values = Array.from(row);
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return values.map((value) => value - mean);
};

describe("settings that no fixture has", () => {
  it.each(variants)("compute in llama.cpp what they compute here: %s", async (label, changes, tolerance) => {
    const { checkpoint } = randomModel(root, `${label}-random`, { ...RANDOM, ...changes }, 0.2);
    const directory = path.join(root, `${label}-written`);
    writeModel(directory, checkpoint);
    writeTokenizer(directory, 96);
    const original = openCheckpoint(directory);
    const file = path.join(root, `${label}.gguf`);
    await exportGguf(file, original, { kind: "f32" });
    const opened = openCheckpoint(file);
    expect(opened.model.tiedEmbeddings).toBe(original.model.tiedEmbeddings);
    expect(opened.model.parameters.length).toBe(original.model.parameters.length);
    const tokens = Array.from({ length: 44 }, (_, i) => 3 + ((i * 37) % 93));
    const ours = await logitsOf(backend, original, [tokens]);
    expect(relativeDifference(await logitsOf(backend, opened, [tokens]), ours)).toBeLessThan(1e-5);
    const model = await loadInLlamaCpp(file);
    try {
      const theirs = (await logProbabilities(model, tokens, 96)).flatMap(centred);
      expect(
        relativeDifference(
          theirs,
          tokens.flatMap((_, i) => centred(ours.subarray(i * 96, (i + 1) * 96))),
        ),
      ).toBeLessThan(tolerance);
    } finally {
      await model.dispose();
    }
  });
});

describe("models that need a begin-of-sequence token before a text", () => {
  it("are Gemma's, also once they are cut", () => {
    for (const { name, directory } of models) {
      const { model } = openCheckpoint(directory);
      expect(model.needsBeginToken, name).toBe(/^gemma/.test(name));
      expect(model.resized(model.sizes).needsBeginToken, name).toBe(model.needsBeginToken);
    }
  });
});

describe("a number of layers that no model has", () => {
  it.each(models.map(({ name, directory }) => [name, directory] as const))(
    "is refused before anything is made of it: %s",
    (_, directory) => {
      const config = readJsonObject(path.join(directory, "config.json"));
      const language = (config.text_config ?? config) as Record<string, unknown>;
      const field = "n_layer" in language ? "n_layer" : "num_hidden_layers";
      const { layer_types, no_rope_layers, ...rest } = language; // lists would not be as long
      const absurd = { ...rest, [field]: 2 ** 24 };
      const changed = language === config ? absurd : { ...config, text_config: absurd };
      expect(() => modelFromConfig(changed)).toThrow(/must be at most 4096/);
    },
  );
});
