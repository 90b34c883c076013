import { z } from "zod";
import { attention, layerNorm, plainFeedForward } from "../blocks/index.js";
import { choice, flag, headSize, layerCount, positive, size } from "../config.js";
import { architecture, geluNotes } from "../family.js";
import { preNormDecoder } from "../layers.js";

/** GPT-2: learned positions, layer norms, matrices stored transposed. */
export const gpt2 = architecture({
  name: "gpt2",
  families: "GPT-2, DistilGPT-2, Cerebras-GPT",
  schema: z.looseObject({
    vocab_size: size.default(50_257),
    n_embd: size.default(768),
    n_layer: layerCount.default(12),
    n_head: size.default(12),
    n_inner: size.nullish(),
    n_positions: size.default(1024),
    activation_function: choice("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu"),
    layer_norm_epsilon: positive.default(1e-5),
    tie_word_embeddings: flag(true),
    scale_attn_weights: flag(true),
    // the scale of scores would depend on the layer's number, which cutting layers changes
    scale_attn_by_inverse_layer_idx: z.literal(false).default(false),
    add_cross_attention: z.literal(false).default(false),
  }),
  decoder: (c) => {
    const { n_head: heads, n_embd: hidden_size, activation_function: activation } = c;
    const mixer = attention({
      heads,
      kvHeads: heads,
      headDim: headSize(undefined, hidden_size, heads),
      rotary: undefined,
      scale: c.scale_attn_weights ? undefined : 1,
      layout: "concatenated",
      names: { fused: "c_attn", output: "c_proj" },
      bias: true,
      transposed: true,
      prunable: false,
    });
    const names = { up: "c_fc", down: "c_proj" };
    const size = c.n_inner ?? 4 * hidden_size;
    const feedForward = plainFeedForward({ size, activation, bias: true, names, transposed: true });
    const norm = (name: string) => layerNorm(name, { epsilon: c.layer_norm_epsilon, bias: true });
    const depth = { ...c, hidden_size, max_position_embeddings: c.n_positions, num_hidden_layers: c.n_layer };
    return {
      ...preNormDecoder(depth, norm, () => [mixer, feedForward], ["ln_1", "attn", "ln_2", "mlp"]),
      // the size of a head is always the width divided by the heads
      hiddenAxis: { prunable: false },
      learnedPositions: "transformer.wpe",
      names: { embedding: "transformer.wte", layers: "transformer.h", norm: "transformer.ln_f", head: "lm_head" },
      gguf: {
        architecture: "gpt2",
        refused: c.scale_attn_weights
          ? undefined
          : "llama.cpp's graph for GPT-2 always scales scores (scale_attn_weights)",
        notes: geluNotes(activation),
      },
    };
  },
  sizes: {
    vocab: { name: "vocab_size" },
    hidden: { name: "n_embd" },
    layers: { name: "n_layer" },
    ffn: { name: "n_inner" },
    heads: { name: "n_head" },
  },
  gguf: {
    className: "GPT2LMHeadModel",
    fields: (read, base) => ({
      ...Object.fromEntries(UNUSED_FIELDS.map((name) => [name, undefined])),
      n_embd: base.hidden_size,
      n_layer: base.num_hidden_layers,
      n_head: base.num_attention_heads,
      n_inner: base.intermediate_size,
      n_positions: base.max_position_embeddings,
      n_ctx: base.max_position_embeddings,
      layer_norm_epsilon: read.number("attention.layer_norm_epsilon"),
      activation_function: "gelu_new",
    }),
  },
});

/** Usual fields that GPT-2 lacks or has other names for. */
const UNUSED_FIELDS = [
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "intermediate_size",
  "max_position_embeddings",
  "hidden_act",
  "rms_norm_eps",
  "rope_theta",
  "rope_scaling",
];
