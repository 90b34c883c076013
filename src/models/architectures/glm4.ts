import { z } from "zod";
import type { Architecture } from "../architecture.js";
import { alike, BASE_SIZES, baseConfig, baseFields, headsOf, rotaryOf, sandwichLayer, widthsOf } from "../base.js";
import { attention } from "../blocks/attention.js";
import { gatedFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive, size } from "../config.js";
import type { GgufConfig } from "../gguf-config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  num_key_value_heads: size.nullable().default(2),
  head_dim: size.default(128),
  max_position_embeddings: size.default(131_072),
  rms_norm_eps: positive.default(1.5625e-7),
  attention_bias: z.boolean().default(true),
});

/** GLM-4 (0414): norms before and after each block; half of each head turns, neighbouring channels together. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["silu"], "silu");
  const norm = { epsilon: c.rms_norm_eps };
  const { heads, kvHeads, headDim } = headsOf(c);
  const rotary = rotaryOf(c, headDim, { partial: 0.5 });
  const mixer = attention({
    heads,
    kvHeads,
    headDim,
    rotary,
    turnsNeighbours: true,
    bias: { qkv: c.attention_bias, output: false },
  });
  const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: "silu", fused: true });
  const layer = sandwichLayer(mixer, feedForward, [
    ["input_layernorm", rmsNorm("attn_norm", norm)],
    ["post_self_attn_layernorm", rmsNorm("post_attention_norm", norm)],
    ["post_attention_layernorm", rmsNorm("ffn_norm", norm)],
    ["post_mlp_layernorm", rmsNorm("post_ffw_norm", norm)],
  ]);
  return {
    ...widthsOf(c),
    layers: alike(c.num_hidden_layers, layer),
    finalNorm: rmsNorm("output_norm", norm),
    gguf: { architecture: "glm4", rotary },
  };
}

function configOf(read: GgufConfig): ConfigJson {
  read.refuse("nextn_predict_layers", (layers) => layers > 0, "layers that predict further tokens");
  read.refuse("rope.dimension_sections", (section) => section > 0, "positions of several axes");
  return {
    ...baseConfig(read, "glm4", "Glm4ForCausalLM"),
    partial_rotary_factor: read.rotaryShare,
    hidden_act: "silu",
    attention_bias: read.has("blk.0.attn_q.bias") || read.has("blk.0.attn_qkv.bias"),
  };
}

export const glm4: Architecture = {
  name: "glm4",
  families: "GLM-4 (0414)",
  modelTypes: ["glm4"],
  decoder,
  fields: BASE_SIZES,
  gguf: { architectures: ["glm4"], configOf },
};
