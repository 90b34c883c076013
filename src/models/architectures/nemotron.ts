import { attention, layerNorm, plainFeedForward } from "../blocks/index.js";
import { choice, flag, positive, size } from "../config.js";
import { architecture, baseSchema, headsOf, rotaryOf, tooWide } from "../family.js";
import { preNormDecoder } from "../layers.js";

/** Nemotron and its Minitrons: layer norms whose stored gains are one less, squared ReLU, half of each head is rotated. */
export const nemotron = architecture({
  name: "nemotron",
  families: "Nemotron 3 and 4, Minitron 4B and 8B",
  schema: baseSchema.extend({
    hidden_act: choice("relu2"),
    max_position_embeddings: size.default(4096),
    norm_eps: positive.default(1e-5),
    attention_bias: flag(false),
    mlp_bias: flag(false),
  }),
  decoder: (c) => {
    const heads = headsOf(c);
    const rotary = rotaryOf(c, heads, { partial: 0.5 });
    const mixer = attention({ ...heads, rotary, bias: c.attention_bias });
    const feedForward = plainFeedForward({ size: c.intermediate_size, activation: c.hidden_act, bias: c.mlp_bias });
    const norm = (name: string) => layerNorm(name, { epsilon: c.norm_eps, plusOne: true, bias: true });
    return {
      ...preNormDecoder(c, norm, () => [mixer, feedForward]),
      gguf: { architecture: "nemotron", rotary, copiesHead: true, refused: tooWide("Nemotron", heads, c) },
    };
  },
  gguf: {
    className: "NemotronForCausalLM",
    fields: (read) => ({
      hidden_act: "relu2",
      norm_eps: read.optional("attention.layer_norm_epsilon"),
      partial_rotary_factor: read.rotaryShare,
      attention_bias: read.has("blk.0.attn_output.bias"),
      mlp_bias: read.has("blk.0.ffn_up.bias"),
      tie_word_embeddings: read.hasCopiedHead(),
    }),
  },
});
