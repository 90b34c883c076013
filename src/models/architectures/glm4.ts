import { attention, gatedFeedForward } from "../blocks/index.js";
import { flag, positive, size } from "../config.js";
import { architecture, baseSchema, headsOf, rotaryOf } from "../family.js";
import { rmsNorms, sandwichDecoder } from "../layers.js";

/** GLM-4 (0414): norms before and after each block; half of each head is rotated, by adjacent channels. */
export const glm4 = architecture({
  name: "glm4",
  families: "GLM-4 (0414)",
  schema: baseSchema.extend({
    num_key_value_heads: size.nullable().default(2),
    head_dim: size.default(128),
    max_position_embeddings: size.default(131_072),
    rms_norm_eps: positive.default(1.5625e-7),
    attention_bias: flag(true),
  }),
  decoder: (c) => {
    const heads = headsOf(c);
    const rotary = rotaryOf(c, heads, { partial: 0.5 });
    const bias = { qkv: c.attention_bias, output: false };
    const mixer = attention({ ...heads, rotary, rotatesAdjacent: true, bias });
    const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: c.hidden_act, fused: true });
    return {
      ...sandwichDecoder(c, rmsNorms(c), () => [mixer, feedForward], [
        "input_layernorm",
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "post_mlp_layernorm",
      ]),
      gguf: { architecture: "glm4", rotary },
    };
  },
  gguf: {
    className: "Glm4ForCausalLM",
    fields: (read) => {
      read.refuse("rope.dimension_sections", (section) => section > 0, "positions of several axes");
      const attention_bias = read.has("blk.0.attn_q.bias") || read.has("blk.0.attn_qkv.bias");
      return { partial_rotary_factor: read.rotaryShare, attention_bias };
    },
  },
});
