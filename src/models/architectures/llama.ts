import { z } from "zod";
import { gguf } from "../../checkpoint/gguf.js";
import { FormatError } from "../../system/errors.js";
import { attention, gatedFeedForward } from "../blocks/index.js";
import { type ConfigJson, checkHeads, choice, entryOf, flag, headSize, size } from "../config.js";
import { architecture, BASE_SIZES, baseSchema, checkWidth, wholeRotaryOf } from "../family.js";
import type { GgufConfig } from "../gguf-config.js";
import type { GgufFacts } from "../gguf-layout.js";
import { layerTypes, layerTypesOf, windowNotes } from "../layer-types.js";
import { preNormDecoder, rmsNorms } from "../layers.js";

/** A size for all layers, or a list with one for each layer, 0 where it skips the block. */
const sizes = z.union([size, z.array(z.union([size, z.literal(0)])).nonempty()]);

export const llama = architecture({
  name: "llama",
  families: "Llama 1 to 3.x, Mistral, Mistral NeMo, Ministral, SmolLM 1 and 2, Minitron (Llama 3.1, NeMo)",
  modelTypes: ["llama", "mistral", "ministral"],
  schema: baseSchema.extend({
    intermediate_size: sizes,
    num_attention_heads: sizes,
    num_key_value_heads: sizes.nullish(),
    hidden_act: choice("silu", "swish"),
    attention_bias: flag(false),
    mlp_bias: flag(false),
    // Mistral's own default where the field is absent; null means none
    sliding_window: size.nullable().default(4096),
    // Ministral's; transformers computes a mistral with such a list as one
    layer_types: layerTypes.nullish(),
  }),
  decoder: (c) => {
    // Llama never has a window and Mistral never biases, whatever their configurations say
    const isMistral = c.model_type !== "llama";
    const window = isMistral ? (c.sliding_window ?? undefined) : undefined;
    const types = layerTypesOf(isMistral ? c : { ...c, layer_types: undefined }, () => window !== undefined);
    const windowOf = (i: number) => (types[i] === "sliding_attention" ? window : undefined);
    const [attentionBias, bias] = [c.attention_bias && !isMistral, c.mlp_bias && !isMistral];
    const listed = {
      intermediate_size: c.intermediate_size,
      num_attention_heads: c.num_attention_heads,
      num_key_value_heads: c.num_key_value_heads ?? c.num_attention_heads,
    };
    const sizeIn = (field: keyof typeof listed, layer: number): number => {
      const value = listed[field];
      return typeof value === "number" ? value : entryOf(field, value, layer, c.num_hidden_layers);
    };
    const heads = [listed.num_attention_heads].flat().find((count) => count > 0);
    if (heads === undefined) throw new FormatError("config.json: num_attention_heads is 0 in every layer");
    const headDim = headSize(c.head_dim, c.hidden_size, heads);
    const rotary = wholeRotaryOf(c, { headDim });
    const mixerOf = (i: number) => {
      const [num_attention_heads, num_key_value_heads] = [
        sizeIn("num_attention_heads", i),
        sizeIn("num_key_value_heads", i),
      ];
      checkHeads(num_attention_heads, num_key_value_heads);
      const own = { heads: num_attention_heads, kvHeads: num_key_value_heads, headDim };
      return attention({ ...own, rotary, window: windowOf(i), bias: attentionBias, ggufInterleaved: true });
    };
    const feedForwardOf = (i: number) =>
      gatedFeedForward({ size: sizeIn("intermediate_size", i), activation: "silu", bias });
    const feedForwardSizes = Array.from({ length: c.num_hidden_layers }, (_, i) => sizeIn("intermediate_size", i));
    const skipsFeedForward = feedForwardSizes.includes(0);
    if (attentionBias || c.mlp_bias) checkWidth(c, { heads });
    const isMixed = skipsFeedForward || Object.values(listed).some((value) => new Set([value].flat()).size > 1);
    return {
      ...preNormDecoder(c, rmsNorms(c), (i) => [mixerOf(i), feedForwardOf(i)]),
      perLayer: isMistral && c.layer_types ? { layer_types: types } : undefined,
      hiddenAxis: { prunable: true, multipleOf: attentionBias || c.mlp_bias ? heads : 1 },
      gguf: {
        architecture: isMixed ? "deci" : "llama",
        ...(skipsFeedForward ? idleFeedForward(c.hidden_size, feedForwardSizes) : {}),
        // llama.cpp takes the size of heads from the first layer
        refused: sizeIn("num_attention_heads", 0) === 0 ? "llama.cpp needs attention in the first layer" : undefined,
        rotary,
        rotaryReads: { factors: true },
        notes: windowNotes(types.includes("sliding_attention") ? window : undefined, c),
      },
    };
  },
  sizes: {
    ...BASE_SIZES,
    ffn: { name: "intermediate_size", list: true, optional: true },
    heads: { name: "num_attention_heads", list: true, optional: true },
    kvHeads: { name: "num_key_value_heads", list: true, optional: true },
  },
  adapt,
  gguf: {
    architectures: ["llama", "deci"],
    className: "LlamaForCausalLM",
    fields: (read) => {
      const attention_bias = read.hasInLayers("attn_q.bias");
      // Qwen 2 is written as Llama where its own graph does not support its sizes
      if (attention_bias && !read.hasInLayers("attn_output.bias")) {
        if (read.headDim * read.firstHeads === read.number("embedding_length"))
          throw new FormatError(
            `${read.path}: biases of queries, keys and values alone are not supported in files of the architecture llama: open the model that the file was made of`,
          );
        return { model_type: "qwen2", architectures: ["Qwen2ForCausalLM"] };
      }
      const sizes = read.optionalNumbers("feed_forward_length");
      const intermediate_size = Array.isArray(sizes)
        ? sizes.map((size, i) => (isIdle(read, i, size) ? 0 : size))
        : sizes;
      return { attention_bias, mlp_bias: read.hasInLayers("ffn_gate.bias"), intermediate_size };
    },
  },
});

/**
 * llama.cpp's graph leaves out a whole layer whose feed-forward network has size 0, with its attention: such a network is written as one
 * neuron that gives nothing.
 */
const idleFeedForward = (hidden: number, sizes: readonly number[]): Pick<GgufFacts, "metadata" | "zeros"> => ({
  metadata: {
    feed_forward_length: gguf.numbers(
      "uint32",
      sizes.map((size) => Math.max(1, size)),
    ),
  },
  zeros: (layer): Record<string, readonly number[]> =>
    sizes[layer] === 0
      ? {
          "ffn_norm.weight": [hidden],
          "ffn_gate.weight": [1, hidden],
          "ffn_up.weight": [1, hidden],
          "ffn_down.weight": [hidden, 1],
        }
      : {},
});

const isIdle = (read: GgufConfig, layer: number, size: number): boolean =>
  size === 1 && read.values(`blk.${layer}.ffn_down.weight`)?.every((value) => value === 0) === true;

/** transformers' Llama rejects a width that its heads do not divide; its Mistral accepts it and computes the same. */
function adapt(config: ConfigJson): ConfigJson {
  const { num_attention_heads: heads, hidden_size: hidden } = config;
  const isBiased = config.attention_bias === true || config.mlp_bias === true;
  if (config.model_type !== "llama" || isBiased || typeof heads !== "number" || Number(hidden) % heads === 0)
    return config;
  return { ...config, model_type: "mistral", architectures: ["MistralForCausalLM"], sliding_window: null };
}
