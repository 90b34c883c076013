import { attention, gatedFeedForward } from "../blocks/index.js";
import { flag, positive, size } from "../config.js";
import { architecture, baseSchema, headsOf, wholeRotaryOf } from "../family.js";
import { preNormDecoder, rmsNorms } from "../layers.js";

/** ERNIE 4.5's dense models: Llama, but rotating adjacent channels of a head. */
export const ernie45 = architecture({
  name: "ernie4_5",
  families: "ERNIE 4.5 0.3B",
  schema: baseSchema.extend({
    num_key_value_heads: size.nullable().default(2),
    head_dim: size.nullable().default(128),
    max_position_embeddings: size.default(131_072),
    rms_norm_eps: positive.default(1e-5),
    tie_word_embeddings: flag(true),
    use_bias: flag(false),
  }),
  decoder: (c) => {
    const { use_bias: bias, intermediate_size } = c;
    const heads = headsOf(c);
    const rotary = wholeRotaryOf(c, heads, { theta: 500_000 });
    const mixer = attention({ ...heads, rotary, rotatesAdjacent: true, bias });
    const feedForward = gatedFeedForward({ size: intermediate_size, activation: c.hidden_act, bias });
    return {
      ...preNormDecoder(c, rmsNorms(c), () => [mixer, feedForward]),
      gguf: {
        architecture: "ernie4_5",
        rotary,
        refused: bias ? "llama.cpp's graph for ERNIE 4.5 has no biases (use_bias)" : undefined,
      },
    };
  },
  gguf: { className: "Ernie4_5ForCausalLM", fields: () => ({ use_bias: false }) },
});
