import { z } from "zod";
import type { Architecture } from "../architecture.js";
import {
  alike,
  BASE_SIZES,
  baseConfig,
  baseFields,
  headsOf,
  preNormLayer,
  tooWide,
  wholeRotaryOf,
  widthsOf,
  windowNotes,
} from "../base.js";
import { attention } from "../blocks/attention.js";
import { plainFeedForward } from "../blocks/feed-forward.js";
import { layerNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive, size } from "../config.js";
import type { GgufConfig } from "../gguf-config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  num_key_value_heads: size.nullable().default(2),
  max_position_embeddings: size.default(4096),
  norm_epsilon: positive.default(1e-5),
  sliding_window: size.nullish(),
  mlp_type: z.literal("default").default("default"),
  norm_type: z.literal("layer_norm").default("layer_norm"),
  use_bias: z.boolean().default(true),
  tie_word_embeddings: z.boolean().default(true),
});

/** StarCoder 2: layer norms, biases everywhere, a plain feed-forward network of GELU. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  const activation = oneOf(config, "hidden_act", ["gelu_pytorch_tanh"], "gelu_pytorch_tanh");
  const norm = { epsilon: c.norm_epsilon, bias: true };
  const { heads, kvHeads, headDim } = headsOf(c);
  const rotary = wholeRotaryOf(c, headDim);
  const window = c.sliding_window ?? undefined;
  const [bias, ffn] = [c.use_bias, c.intermediate_size];
  const mixer = attention({ heads, kvHeads, headDim, rotary, window, bias: { qkv: bias, output: bias } });
  const names = { up: "c_fc", down: "c_proj" };
  const feedForward = plainFeedForward({ size: ffn, activation, bias, names });
  const layer = preNormLayer(mixer, feedForward, [layerNorm("attn_norm", norm), layerNorm("ffn_norm", norm)]);
  return {
    ...widthsOf(c),
    layers: alike(c.num_hidden_layers, layer),
    finalNorm: layerNorm("output_norm", norm),
    gguf: {
      architecture: "starcoder2",
      rotary,
      zeros: bias ? {} : { "attn_output.bias": c.hidden_size, "ffn_up.bias": ffn, "ffn_down.bias": c.hidden_size },
      refused: tooWide("StarCoder 2", heads, headDim, c.hidden_size),
      notes: windowNotes(window, c),
    },
  };
}

const configOf = (read: GgufConfig): ConfigJson => ({
  ...baseConfig(read, "starcoder2", "Starcoder2ForCausalLM"),
  norm_epsilon: read.optional("attention.layer_norm_epsilon"),
  hidden_act: "gelu_pytorch_tanh",
  use_bias: ["attn_q.bias", "attn_qkv.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias"].some(read.isSet),
  sliding_window: null,
});

export const starcoder2: Architecture = {
  name: "starcoder2",
  families: "StarCoder 2",
  modelTypes: ["starcoder2"],
  decoder,
  fields: BASE_SIZES,
  gguf: { architectures: ["starcoder2"], configOf },
};
