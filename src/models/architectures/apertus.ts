import { z } from "zod";
import { attention, plainFeedForward } from "../blocks/index.js";
import { choice, flag, positive, size } from "../config.js";
import { architecture, baseSchema, headsOf, wholeRotaryOf } from "../family.js";
import { preNormDecoder, rmsNorms } from "../layers.js";
import type { RotaryJson } from "../rotary.js";

const THETA = 12_000_000;
/** transformers' rotary settings for configurations that have none, not even a `rope_theta`. */
const DEFAULT_ROTARY: RotaryJson = {
  rope_type: "llama3",
  rope_theta: THETA,
  factor: 8,
  low_freq_factor: 1,
  high_freq_factor: 4,
  original_max_position_embeddings: 8192,
};

/** Apertus: queries and keys are normalized before rotation; xIELU, with parameters in each layer, replaces the gate. */
export const apertus = architecture({
  name: "apertus",
  families: "Apertus 8B and 70B",
  schema: baseSchema.extend({
    hidden_act: choice("xielu"),
    max_position_embeddings: size.default(65_536),
    rms_norm_eps: positive.default(1e-5),
    attention_bias: flag(false),
    qk_norm: z.literal(true).default(true),
    post_norm: z.literal(false).default(false),
  }),
  decoder: (c) => {
    const heads = headsOf(c);
    const rope_scaling = c.rope_scaling ?? c.rope_parameters ?? DEFAULT_ROTARY;
    const rotary = wholeRotaryOf({ ...c, rope_scaling }, heads, { theta: THETA });
    const norms = { of: "head", epsilon: c.rms_norm_eps } as const;
    const mixer = attention({ ...heads, rotary, norms, bias: c.attention_bias });
    const feedForward = plainFeedForward({ size: c.intermediate_size, activation: c.hidden_act });
    const names = ["attention_layernorm", "self_attn", "feedforward_layernorm", "mlp"] as const;
    return {
      ...preNormDecoder(c, rmsNorms(c), () => [mixer, feedForward], names),
      gguf: { architecture: "apertus", rotary, rotaryReads: { factors: true }, copiesHead: true },
    };
  },
  gguf: {
    className: "ApertusForCausalLM",
    fields: (read, { rope_theta, rope_scaling }) => ({
      hidden_act: "xielu",
      rope_theta: undefined,
      rope_scaling: undefined,
      rope_parameters: { rope_type: "default", ...rope_scaling, rope_theta },
      attention_bias: read.has("blk.0.attn_output.bias"),
      tie_word_embeddings: read.hasCopiedHead(),
    }),
  },
});
