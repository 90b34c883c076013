import { z } from "zod";
import { gguf } from "../../checkpoint/gguf.js";
import type { Architecture } from "../architecture.js";
import { alike, BASE_SIZES, baseConfig, baseFields, headsOf, preNormLayer, rotaryOf, widthsOf } from "../base.js";
import { attention } from "../blocks/attention.js";
import { gatedFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive } from "../config.js";
import type { GgufConfig } from "../gguf-config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  embedding_multiplier: positive.default(1),
  residual_multiplier: positive.default(1),
  attention_multiplier: positive.default(1),
  logits_scaling: positive.default(1),
});

/** Granite 3: Llama with multipliers of embedding, residual steps, scores and logits. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["silu"], "silu");
  const norm = { epsilon: c.rms_norm_eps };
  const { heads, kvHeads, headDim } = headsOf(c);
  const rotary = rotaryOf(c, headDim);
  const mixer = attention({
    heads,
    kvHeads,
    headDim,
    rotary,
    scale: c.attention_multiplier,
    bias: { qkv: c.attention_bias, output: c.attention_bias },
    ggufInterleaved: true,
  });
  const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: "silu", bias: c.mlp_bias });
  const { residuals } = preNormLayer(mixer, feedForward, [rmsNorm("attn_norm", norm), rmsNorm("ffn_norm", norm)]);
  const scaled = residuals.map((residual) => ({ ...residual, scale: c.residual_multiplier }));
  return {
    ...widthsOf(c),
    embeddingScale: c.embedding_multiplier,
    logitScale: 1 / c.logits_scaling,
    layers: alike(c.num_hidden_layers, { residuals: scaled }),
    finalNorm: rmsNorm("output_norm", norm),
    gguf: {
      architecture: "granite",
      rotary,
      rotaryReads: { factors: true },
      metadata: {
        logit_scale: gguf.float32(c.logits_scaling),
        residual_scale: gguf.float32(c.residual_multiplier),
        embedding_scale: gguf.float32(c.embedding_multiplier),
        "attention.scale": gguf.float32(c.attention_multiplier),
      },
    },
  };
}

/** Absent or 0, a scale is 1. */
const scaleOf = (read: GgufConfig, key: string, unset = 1): number => read.optional(key) || unset;

const configOf = (read: GgufConfig): ConfigJson => ({
  ...baseConfig(read, "granite", "GraniteForCausalLM"),
  hidden_act: "silu",
  attention_bias: read.has("blk.0.attn_q.bias"),
  mlp_bias: read.has("blk.0.ffn_up.bias"),
  embedding_multiplier: scaleOf(read, "embedding_scale"),
  residual_multiplier: scaleOf(read, "residual_scale"),
  attention_multiplier: scaleOf(read, "attention.scale", read.headDim ** -0.5),
  logits_scaling: scaleOf(read, "logit_scale"),
});

export const granite: Architecture = {
  name: "granite",
  families: "Granite 3 (dense)",
  modelTypes: ["granite"],
  decoder,
  fields: BASE_SIZES,
  gguf: { architectures: ["granite"], configOf },
};
