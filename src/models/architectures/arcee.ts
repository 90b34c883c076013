import { attention, plainFeedForward } from "../blocks/index.js";
import { choice, flag, positive, size } from "../config.js";
import { architecture, baseSchema, checkWidth, headsOf, wholeRotaryOf } from "../family.js";
import { preNormDecoder, rmsNorms } from "../layers.js";

/** Arcee's AFM: Llama with squared ReLU instead of a gate. */
export const arcee = architecture({
  name: "arcee",
  families: "Arcee AFM 4.5B",
  schema: baseSchema.extend({
    hidden_act: choice("relu2"),
    max_position_embeddings: size.default(4096),
    rms_norm_eps: positive.default(1e-5),
    attention_bias: flag(false),
    mlp_bias: flag(false),
  }),
  decoder: (c) => {
    const heads = headsOf(c);
    checkWidth(c, heads);
    const rotary = wholeRotaryOf(c, heads);
    const mixer = attention({ ...heads, rotary, bias: c.attention_bias, ggufInterleaved: true });
    const feedForward = plainFeedForward({ size: c.intermediate_size, activation: c.hidden_act, bias: c.mlp_bias });
    const isBiased = c.attention_bias || c.mlp_bias;
    return {
      ...preNormDecoder(c, rmsNorms(c), () => [mixer, feedForward]),
      hiddenAxis: { prunable: true, multipleOf: heads.heads },
      gguf: {
        architecture: "arcee",
        rotary,
        rotaryReads: { factors: true },
        refused: isBiased ? "llama.cpp's graph for Arcee has no biases (attention_bias, mlp_bias)" : undefined,
      },
    };
  },
  gguf: { className: "ArceeForCausalLM", fields: () => ({ hidden_act: "relu2" }) },
});
