import { gguf } from "../../checkpoint/gguf.js";
import { attention, gatedFeedForward } from "../blocks/index.js";
import { flag, positive } from "../config.js";
import { architecture, baseSchema, headsOf, rotaryOf } from "../family.js";
import { preNormDecoder, rmsNorms } from "../layers.js";

/** Granite 3: Llama with multipliers for embeddings, residuals, scores and logits. */
export const granite = architecture({
  name: "granite",
  families: "Granite 3 (dense)",
  schema: baseSchema.extend({
    attention_bias: flag(false),
    mlp_bias: flag(false),
    embedding_multiplier: positive.default(1),
    residual_multiplier: positive.default(1),
    attention_multiplier: positive.default(1),
    logits_scaling: positive.default(1),
  }),
  decoder: (c) => {
    const heads = headsOf(c);
    const rotary = rotaryOf(c, heads);
    const scale = c.attention_multiplier;
    const mixer = attention({ ...heads, rotary, scale, bias: c.attention_bias, ggufInterleaved: true });
    const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: c.hidden_act, bias: c.mlp_bias });
    const base = preNormDecoder(c, rmsNorms(c), () => [mixer, feedForward]);
    return {
      ...base,
      embeddingScale: c.embedding_multiplier,
      logitScale: 1 / c.logits_scaling,
      layers: base.layers.map(({ residuals }) => ({
        residuals: residuals.map((residual) => ({ ...residual, scale: c.residual_multiplier })),
      })),
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
  },
  gguf: {
    className: "GraniteForCausalLM",
    // a scale that is absent or 0 is 1
    fields: (read) => ({
      attention_bias: read.has("blk.0.attn_q.bias"),
      mlp_bias: read.has("blk.0.ffn_up.bias"),
      embedding_multiplier: read.optional("embedding_scale") || 1,
      residual_multiplier: read.optional("residual_scale") || 1,
      attention_multiplier: read.optional("attention.scale") || read.headDim ** -0.5,
      logits_scaling: read.optional("logit_scale") || 1,
    }),
  },
});
