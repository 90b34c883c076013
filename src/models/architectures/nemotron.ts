import { z } from "zod";
import type { Architecture } from "../architecture.js";
import {
  alike,
  BASE_SIZES,
  baseConfig,
  baseFields,
  headsOf,
  preNormLayer,
  rotaryOf,
  tooWide,
  widthsOf,
} from "../base.js";
import { attention } from "../blocks/attention.js";
import { plainFeedForward } from "../blocks/feed-forward.js";
import { layerNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive, size } from "../config.js";
import type { GgufConfig } from "../gguf-config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  max_position_embeddings: size.default(4096),
  norm_eps: positive.default(1e-5),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
});

/** Nemotron and its Minitrons: layer norms whose gains are stored less one, squared ReLU, half of each head turns. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["relu2"], "relu2");
  const norm = { epsilon: c.norm_eps, plusOne: true, bias: true };
  const { heads, kvHeads, headDim } = headsOf(c);
  const rotary = rotaryOf(c, headDim, { partial: 0.5 });
  const bias = { qkv: c.attention_bias, output: c.attention_bias };
  const mixer = attention({ heads, kvHeads, headDim, rotary, bias });
  const feedForward = plainFeedForward({ size: c.intermediate_size, activation: "relu2", bias: c.mlp_bias });
  const layer = preNormLayer(mixer, feedForward, [layerNorm("attn_norm", norm), layerNorm("ffn_norm", norm)]);
  return {
    ...widthsOf(c),
    layers: alike(c.num_hidden_layers, layer),
    finalNorm: layerNorm("output_norm", norm),
    gguf: {
      architecture: "nemotron",
      rotary,
      copiesHead: true,
      refused: tooWide("Nemotron", heads, headDim, c.hidden_size),
    },
  };
}

const configOf = (read: GgufConfig): ConfigJson => ({
  ...baseConfig(read, "nemotron", "NemotronForCausalLM"),
  norm_eps: read.optional("attention.layer_norm_epsilon"),
  partial_rotary_factor: read.rotaryShare,
  hidden_act: "relu2",
  attention_bias: read.has("blk.0.attn_output.bias"),
  mlp_bias: read.has("blk.0.ffn_up.bias"),
  tie_word_embeddings: read.hasCopiedHead(),
});

export const nemotron: Architecture = {
  name: "nemotron",
  families: "Nemotron 3 and 4, Minitron 4B and 8B",
  modelTypes: ["nemotron"],
  decoder,
  fields: BASE_SIZES,
  gguf: { architectures: ["nemotron"], configOf },
};
