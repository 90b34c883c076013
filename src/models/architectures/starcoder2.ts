import { z } from "zod";
import { attention, layerNorm, plainFeedForward } from "../blocks/index.js";
import { choice, flag, positive, size } from "../config.js";
import { architecture, baseSchema, headsOf, tooWide, wholeRotaryOf } from "../family.js";
import { windowNotes } from "../layer-types.js";
import { preNormDecoder } from "../layers.js";

/** StarCoder 2: layer norms, biases everywhere, a plain feed-forward network of GELU. */
export const starcoder2 = architecture({
  name: "starcoder2",
  families: "StarCoder 2",
  schema: baseSchema.extend({
    num_key_value_heads: size.nullable().default(2),
    hidden_act: choice("gelu_pytorch_tanh"),
    max_position_embeddings: size.default(4096),
    norm_epsilon: positive.default(1e-5),
    sliding_window: size.nullish(),
    mlp_type: z.literal("default").default("default"),
    norm_type: z.literal("layer_norm").default("layer_norm"),
    use_bias: flag(true),
    tie_word_embeddings: flag(true),
  }),
  decoder: (c) => {
    const { use_bias: bias, intermediate_size: ffn, hidden_size: hidden, hidden_act: activation } = c;
    const heads = headsOf(c);
    const rotary = wholeRotaryOf(c, heads);
    const window = c.sliding_window ?? undefined;
    const mixer = attention({ ...heads, rotary, window, bias });
    const feedForward = plainFeedForward({ size: ffn, activation, bias, names: { up: "c_fc", down: "c_proj" } });
    const norm = (name: string) => layerNorm(name, { epsilon: c.norm_epsilon, bias: true });
    return {
      ...preNormDecoder(c, norm, () => [mixer, feedForward]),
      gguf: {
        architecture: "starcoder2",
        rotary,
        zeros: () => (bias ? {} : { "attn_output.bias": [hidden], "ffn_up.bias": [ffn], "ffn_down.bias": [hidden] }),
        refused: tooWide("StarCoder 2", heads, c),
        notes: windowNotes(window, c),
      },
    };
  },
  gguf: {
    className: "Starcoder2ForCausalLM",
    fields: (read) => ({
      hidden_act: "gelu_pytorch_tanh",
      norm_epsilon: read.optional("attention.layer_norm_epsilon"),
      use_bias: ["attn_q.bias", "attn_qkv.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias"].some(read.isSet),
      sliding_window: null,
    }),
  },
});
