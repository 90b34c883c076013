import { z } from "zod";
import { attention, gatedFeedForward } from "../blocks/index.js";
import { type ConfigJson, choice, entryOf, flag, headSize, size } from "../config.js";
import { architecture, BASE_SIZES, baseSchema, headsOf, wholeRotaryOf } from "../family.js";
import { windowNotes } from "../layer-types.js";
import { preNormDecoder, rmsNorms } from "../layers.js";

/** A size for all layers, or a list with one for each layer. */
const sizes = z.union([size, z.array(size).nonempty()]);

export const llama = architecture({
  name: "llama",
  families: "Llama 1 to 3.x, Mistral, Mistral NeMo, SmolLM 1 and 2, Minitron (Llama 3.1, NeMo)",
  modelTypes: ["llama", "mistral"],
  schema: baseSchema.extend({
    intermediate_size: sizes,
    num_attention_heads: sizes,
    num_key_value_heads: sizes.nullish(),
    hidden_act: choice("silu", "swish"),
    attention_bias: flag(false),
    mlp_bias: flag(false),
    // Mistral's own default where the field is absent; null means none
    sliding_window: size.nullable().default(4096),
  }),
  decoder: (c) => {
    // Llama never has a window and Mistral never biases, whatever their configurations say
    const isMistral = c.model_type === "mistral";
    const window = isMistral ? (c.sliding_window ?? undefined) : undefined;
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
    const heads = sizeIn("num_attention_heads", 0);
    const headDim = headSize(c.head_dim, c.hidden_size, heads);
    const rotary = wholeRotaryOf(c, { headDim });
    const mixerOf = (i: number) => {
      const [num_attention_heads, num_key_value_heads] = [
        sizeIn("num_attention_heads", i),
        sizeIn("num_key_value_heads", i),
      ];
      const own = headsOf({ hidden_size: c.hidden_size, head_dim: headDim, num_attention_heads, num_key_value_heads });
      return attention({ ...own, rotary, window, bias: attentionBias, ggufInterleaved: true });
    };
    const feedForwardOf = (i: number) =>
      gatedFeedForward({ size: sizeIn("intermediate_size", i), activation: "silu", bias });
    const isMixed = Object.values(listed).some((value) => new Set([value].flat()).size > 1);
    return {
      ...preNormDecoder(c, rmsNorms(c), (i) => [mixerOf(i), feedForwardOf(i)]),
      hiddenAxis: { prunable: true, multipleOf: attentionBias || c.mlp_bias ? heads : 1 },
      gguf: {
        architecture: isMixed ? "deci" : "llama",
        rotary,
        rotaryReads: { factors: true },
        notes: windowNotes(window, c),
      },
    };
  },
  sizes: {
    ...BASE_SIZES,
    ffn: { name: "intermediate_size", list: true },
    heads: { name: "num_attention_heads", list: true },
    kvHeads: { name: "num_key_value_heads", list: true },
  },
  adapt,
  gguf: {
    architectures: ["llama", "deci"],
    className: "LlamaForCausalLM",
    fields: (read) => {
      const attention_bias = read.has("blk.0.attn_q.bias");
      // Qwen 2 is written as Llama where its own graph does not support its sizes
      if (attention_bias && !read.has("blk.0.attn_output.bias"))
        return { model_type: "qwen2", architectures: ["Qwen2ForCausalLM"] };
      return { attention_bias, mlp_bias: read.has("blk.0.ffn_gate.bias") };
    },
  },
});

/** transformers' Llama rejects a width that its heads do not divide; its Mistral accepts it and computes the same. */
function adapt(config: ConfigJson): ConfigJson {
  const { num_attention_heads: heads, hidden_size: hidden } = config;
  const isBiased = config.attention_bias === true || config.mlp_bias === true;
  if (config.model_type !== "llama" || isBiased || typeof heads !== "number" || Number(hidden) % heads === 0)
    return config;
  return { ...config, model_type: "mistral", architectures: ["MistralForCausalLM"], sliding_window: null };
}
