import { z } from "zod";
import { gguf } from "../../checkpoint/gguf.js";
import type { Architecture } from "../architecture.js";
import { alike, baseConfig, baseFields, geluNotes, preNormLayer, rotaryOf, WIDTH_SIZES, widthsOf } from "../base.js";
import { attention } from "../blocks/attention.js";
import { plainFeedForward } from "../blocks/feed-forward.js";
import { layerNorm } from "../blocks/norm.js";
import { type ConfigJson, headSize, oneOf, parseConfig, positive } from "../config.js";
import { defined, type GgufConfig } from "../gguf-config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  layer_norm_eps: positive.default(1e-5),
  use_parallel_residual: z.boolean().default(true),
  attention_bias: z.boolean().default(true),
  rotary_pct: positive.max(1).default(0.25),
  rotary_emb_base: positive.default(10_000),
});

/** GPT-NeoX and Pythia: attention and feed-forward network read the same input; a quarter of each head turns. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  const activation = oneOf(config, "hidden_act", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"], "gelu");
  const norm = { epsilon: c.layer_norm_eps, bias: true };
  const heads = c.num_attention_heads;
  const headDim = headSize(undefined, c.hidden_size, heads);
  // it has names of its own for what others call rope_theta and partial_rotary_factor, and reads no others
  const rotary = rotaryOf({ ...c, rope_theta: c.rotary_emb_base, partial_rotary_factor: c.rotary_pct }, headDim);
  const mixer = attention({
    heads,
    kvHeads: heads,
    headDim,
    rotary,
    layout: "by head",
    names: { fused: "query_key_value", output: "dense" },
    bias: { qkv: c.attention_bias, output: c.attention_bias },
    prunable: false,
  });
  const names = { up: "dense_h_to_4h", down: "dense_4h_to_h" };
  const feedForward = plainFeedForward({ size: c.intermediate_size, activation, bias: true, names });
  const norms = [layerNorm("attn_norm", norm), layerNorm("ffn_norm", norm)] as const;
  const layer = preNormLayer(mixer, feedForward, norms, [
    "input_layernorm",
    "attention",
    "post_attention_layernorm",
    "mlp",
  ]);
  return {
    ...widthsOf(c),
    layers: alike(c.num_hidden_layers, { ...layer, parallel: c.use_parallel_residual }),
    // a head is always the share of the width that falls to it
    hiddenAxis: { prunable: false },
    finalNorm: layerNorm("output_norm", norm),
    names: {
      embedding: "gpt_neox.embed_in",
      layers: "gpt_neox.layers",
      norm: "gpt_neox.final_layer_norm",
      head: "embed_out",
    },
    gguf: {
      architecture: "gptneox",
      rotary,
      metadata: { use_parallel_residual: gguf.bool(c.use_parallel_residual) },
      copiesHead: true,
      zeros: c.attention_bias ? {} : { "attn_qkv.bias": 3 * c.hidden_size, "attn_output.bias": c.hidden_size },
      notes: geluNotes(activation),
    },
  };
}

function configOf(read: GgufConfig): ConfigJson {
  const {
    rope_theta,
    head_dim: _,
    num_key_value_heads: __,
    ...base
  } = baseConfig(read, "gpt_neox", "GPTNeoXForCausalLM");
  return defined({
    ...base,
    layer_norm_eps: read.optional("attention.layer_norm_epsilon"),
    rotary_emb_base: rope_theta,
    rotary_pct: read.rotaryShare,
    hidden_act: "gelu",
    use_parallel_residual: read.boolean("use_parallel_residual"),
    attention_bias: read.isSet("attn_qkv.bias") || read.isSet("attn_output.bias"),
    tie_word_embeddings: read.hasCopiedHead(),
  });
}

export const gptNeox: Architecture = {
  name: "gpt_neox",
  families: "GPT-NeoX, Pythia, RedPajama-INCITE, Dolly 2",
  modelTypes: ["gpt_neox"],
  decoder,
  fields: WIDTH_SIZES,
  gguf: { architectures: ["gptneox"], configOf },
};
