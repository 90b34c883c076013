import { z } from "zod";
import type { Architecture } from "../architecture.js";
import {
  BASE_SIZES,
  baseConfig,
  baseFields,
  headsOf,
  preNormLayer,
  wholeRotaryOf,
  widthsOf,
  windowNotes,
} from "../base.js";
import { attention } from "../blocks/attention.js";
import { gatedFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, entryOf, headSize, oneOf, parseConfig, size } from "../config.js";
import type { DecoderSpec } from "../spec.js";

/** One size for all layers, or a list of one per layer. */
const sizes = z.union([size, z.array(size).nonempty()]);

const schema = z.looseObject({
  ...baseFields,
  intermediate_size: sizes,
  num_attention_heads: sizes,
  num_key_value_heads: sizes.nullish(),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  // Mistral's own default where the field is absent; null means none
  sliding_window: size.nullable().default(4096),
});

function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["silu", "swish"], "silu");
  // Llama has no window and Mistral no biases, whatever their configurations say
  const isMistral = c.model_type === "mistral";
  const window = isMistral ? (c.sliding_window ?? undefined) : undefined;
  const bias = { qkv: c.attention_bias && !isMistral, output: c.attention_bias && !isMistral };
  const norm = { epsilon: c.rms_norm_eps };
  const headCount = [c.num_attention_heads].flat()[0] ?? 1;
  const headDim = headSize(c.head_dim, c.hidden_size, headCount);
  const rotary = wholeRotaryOf(c, headDim);
  const layers = Array.from({ length: c.num_hidden_layers }, (_, i) => {
    const of = (field: "intermediate_size" | "num_attention_heads" | "num_key_value_heads"): number => {
      const value = c[field] ?? c.num_attention_heads;
      return typeof value === "number" ? value : entryOf(field, value, i, c.num_hidden_layers);
    };
    const { heads, kvHeads } = headsOf({
      ...c,
      num_attention_heads: of("num_attention_heads"),
      num_key_value_heads: of("num_key_value_heads"),
      head_dim: headDim,
    });
    const mixer = attention({ heads, kvHeads, headDim, rotary, window, bias, ggufInterleaved: true });
    const feedForward = gatedFeedForward({
      size: of("intermediate_size"),
      activation: "silu",
      bias: c.mlp_bias && !isMistral,
    });
    return preNormLayer(mixer, feedForward, [rmsNorm("attn_norm", norm), rmsNorm("ffn_norm", norm)]);
  });
  const isMixed = [c.intermediate_size, c.num_attention_heads, c.num_key_value_heads].some(
    (value) => new Set([value].flat()).size > 1,
  );
  return {
    ...widthsOf(c),
    layers,
    hiddenAxis: { prunable: true, multipleOf: bias.qkv || c.mlp_bias ? headCount : 1 },
    finalNorm: rmsNorm("output_norm", norm),
    gguf: {
      architecture: isMixed ? "deci" : "llama",
      rotary,
      rotaryReads: { factors: true },
      notes: windowNotes(window, c),
    },
  };
}

/** transformers' Llama refuses a width that its heads do not divide; its Mistral takes it and computes the same. */
function adapt(config: ConfigJson): ConfigJson {
  const { num_attention_heads: heads, hidden_size: hidden } = config;
  const isBiased = config.attention_bias === true || config.mlp_bias === true;
  if (config.model_type !== "llama" || isBiased || typeof heads !== "number" || Number(hidden) % heads === 0)
    return config;
  return { ...config, model_type: "mistral", architectures: ["MistralForCausalLM"], sliding_window: null };
}

export const llama: Architecture = {
  name: "llama",
  families: "Llama 1 to 3.x, Mistral, Mistral NeMo, SmolLM 1 and 2, Minitron (Llama 3.1, NeMo)",
  modelTypes: ["llama", "mistral"],
  decoder,
  fields: {
    ...BASE_SIZES,
    ffn: { name: "intermediate_size", list: true },
    heads: { name: "num_attention_heads", list: true },
    kvHeads: { name: "num_key_value_heads", list: true },
  },
  adapt,
  gguf: {
    architectures: ["llama", "deci"],
    configOf: (read) => {
      const biased = read.has("blk.0.attn_q.bias");
      // Qwen 2 is written as Llama where its own graph does not take its sizes
      const [type, name] =
        biased && !read.has("blk.0.attn_output.bias") ? ["qwen2", "Qwen2ForCausalLM"] : ["llama", "LlamaForCausalLM"];
      const biases = type === "llama" ? { attention_bias: biased, mlp_bias: read.has("blk.0.ffn_gate.bias") } : {};
      return { ...baseConfig(read, type, name), hidden_act: "silu", ...biases };
    },
  },
};
