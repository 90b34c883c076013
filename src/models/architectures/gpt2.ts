import { z } from "zod";
import type { Architecture } from "../architecture.js";
import { alike, baseConfig, geluNotes, preNormLayer } from "../base.js";
import { attention } from "../blocks/attention.js";
import { plainFeedForward } from "../blocks/feed-forward.js";
import { layerNorm } from "../blocks/norm.js";
import { type ConfigJson, headSize, layerCount, oneOf, parseConfig, positive, size } from "../config.js";
import type { GgufConfig } from "../gguf-config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  vocab_size: size.default(50_257),
  n_embd: size.default(768),
  n_layer: layerCount.default(12),
  n_head: size.default(12),
  n_inner: size.nullish(),
  n_positions: size.default(1024),
  layer_norm_epsilon: positive.default(1e-5),
  tie_word_embeddings: z.boolean().default(true),
  scale_attn_weights: z.boolean().default(true),
  // the score's scale then depends on the layer's number, which cutting layers changes
  scale_attn_by_inverse_layer_idx: z.literal(false).default(false),
  add_cross_attention: z.literal(false).default(false),
});

/** GPT-2: learnt positions, layer norms, matrices stored with their axes swapped. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  const known = ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu"] as const;
  const activation = oneOf(config, "activation_function", known, "gelu_new");
  const norm = { epsilon: c.layer_norm_epsilon, bias: true };
  const mixer = attention({
    heads: c.n_head,
    kvHeads: c.n_head,
    headDim: headSize(undefined, c.n_embd, c.n_head),
    rotary: undefined,
    scale: c.scale_attn_weights ? undefined : 1,
    layout: "concatenated",
    names: { fused: "c_attn", output: "c_proj" },
    bias: { qkv: true, output: true },
    transposed: true,
    prunable: false,
  });
  const feedForward = plainFeedForward({
    size: c.n_inner ?? 4 * c.n_embd,
    activation,
    bias: true,
    names: { up: "c_fc", down: "c_proj" },
    transposed: true,
  });
  const norms = [layerNorm("attn_norm", norm), layerNorm("ffn_norm", norm)] as const;
  return {
    hidden: c.n_embd,
    vocab: c.vocab_size,
    maxPositions: c.n_positions,
    layers: alike(c.n_layer, preNormLayer(mixer, feedForward, norms, ["ln_1", "attn", "ln_2", "mlp"])),
    // a head is always the share of the width that falls to it
    hiddenAxis: { prunable: false },
    finalNorm: layerNorm("output_norm", norm),
    tied: c.tie_word_embeddings,
    learntPositions: "transformer.wpe",
    names: { embedding: "transformer.wte", layers: "transformer.h", norm: "transformer.ln_f", head: "lm_head" },
    gguf: {
      architecture: "gpt2",
      refused: c.scale_attn_weights ? undefined : "llama.cpp's graph for GPT-2 scales scores (scale_attn_weights)",
      notes: geluNotes(activation),
    },
  };
}

function configOf(read: GgufConfig): ConfigJson {
  const base = baseConfig(read, "gpt2", "GPT2LMHeadModel");
  return {
    architectures: base.architectures,
    model_type: "gpt2",
    vocab_size: base.vocab_size,
    n_embd: base.hidden_size,
    n_layer: base.num_hidden_layers,
    n_head: base.num_attention_heads,
    n_inner: base.intermediate_size,
    n_positions: base.max_position_embeddings,
    n_ctx: base.max_position_embeddings,
    layer_norm_epsilon: read.number("attention.layer_norm_epsilon"),
    activation_function: "gelu_new",
    tie_word_embeddings: base.tie_word_embeddings,
    ...read.specialTokens,
    torch_dtype: base.torch_dtype,
  };
}

export const gpt2: Architecture = {
  name: "gpt2",
  families: "GPT-2, DistilGPT-2, Cerebras-GPT",
  modelTypes: ["gpt2"],
  decoder,
  fields: {
    vocab: { name: "vocab_size" },
    hidden: { name: "n_embd" },
    layers: { name: "n_layer" },
    ffn: { name: "n_inner" },
    heads: { name: "n_head" },
  },
  gguf: { architectures: ["gpt2"], configOf },
};
