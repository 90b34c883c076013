import { z } from "zod";
import type { Architecture } from "../architecture.js";
import { alike, BASE_SIZES, baseConfig, baseFields, headsOf, preNormLayer, wholeRotaryOf, widthsOf } from "../base.js";
import { attention } from "../blocks/attention.js";
import { gatedFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive, size } from "../config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  num_key_value_heads: size.nullable().default(2),
  head_dim: size.nullable().default(128),
  max_position_embeddings: size.default(131_072),
  rms_norm_eps: positive.default(1e-5),
  tie_word_embeddings: z.boolean().default(true),
  use_bias: z.boolean().default(false),
});

/** ERNIE 4.5's dense models: Llama, but neighbouring channels of a head turn together. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["silu"], "silu");
  const norm = { epsilon: c.rms_norm_eps };
  const bias = c.use_bias;
  const { heads, kvHeads, headDim } = headsOf(c);
  const rotary = wholeRotaryOf(c, headDim, { theta: 500_000 });
  const mixer = attention({
    heads,
    kvHeads,
    headDim,
    rotary,
    turnsNeighbours: true,
    bias: { qkv: bias, output: bias },
  });
  const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: "silu", bias });
  const layer = preNormLayer(mixer, feedForward, [rmsNorm("attn_norm", norm), rmsNorm("ffn_norm", norm)]);
  return {
    ...widthsOf(c),
    layers: alike(c.num_hidden_layers, layer),
    finalNorm: rmsNorm("output_norm", norm),
    gguf: {
      architecture: "ernie4_5",
      rotary,
      refused: bias ? "llama.cpp's graph for ERNIE 4.5 has no biases (use_bias)" : undefined,
    },
  };
}

export const ernie45: Architecture = {
  name: "ernie4_5",
  families: "ERNIE 4.5 0.3B",
  modelTypes: ["ernie4_5"],
  decoder,
  fields: BASE_SIZES,
  gguf: {
    architectures: ["ernie4_5"],
    configOf: (read) => ({
      ...baseConfig(read, "ernie4_5", "Ernie4_5ForCausalLM"),
      hidden_act: "silu",
      use_bias: false,
    }),
  },
};
