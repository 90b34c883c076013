import { gguf } from "../../checkpoint/gguf.js";
import { attention, layerNorm, plainFeedForward } from "../blocks/index.js";
import { choice, flag, headSize, positive } from "../config.js";
import { architecture, baseSchema, geluNotes, rotaryOf, WIDTH_SIZES } from "../family.js";
import { preNormDecoder } from "../layers.js";

/** GPT-NeoX and Pythia: attention and feed-forward network read the same input; a quarter of each head is rotated. */
export const gptNeox = architecture({
  name: "gpt_neox",
  families: "GPT-NeoX, Pythia, RedPajama-INCITE, Dolly 2",
  schema: baseSchema.extend({
    hidden_act: choice("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
    layer_norm_eps: positive.default(1e-5),
    use_parallel_residual: flag(true),
    attention_bias: flag(true),
    rotary_pct: positive.max(1).default(0.25),
    rotary_emb_base: positive.default(10_000),
  }),
  decoder: (c) => {
    const { num_attention_heads: heads, hidden_size: hidden, attention_bias: bias } = c;
    const headDim = headSize(undefined, hidden, heads);
    // it has its own names for rope_theta and partial_rotary_factor, and does not read these
    const rotary = rotaryOf({ ...c, rope_theta: c.rotary_emb_base, partial_rotary_factor: c.rotary_pct }, { headDim });
    const names = { fused: "query_key_value", output: "dense" };
    // the size of a head is always the width divided by the heads
    const prunable = false;
    const mixer = attention({ heads, kvHeads: heads, headDim, rotary, layout: "by head", names, bias, prunable });
    const feedForward = plainFeedForward({
      size: c.intermediate_size,
      activation: c.hidden_act,
      bias: true,
      names: { up: "dense_h_to_4h", down: "dense_4h_to_h" },
    });
    const norm = (name: string) => layerNorm(name, { epsilon: c.layer_norm_eps, bias: true });
    const parts = ["input_layernorm", "attention", "post_attention_layernorm", "mlp"] as const;
    const base = preNormDecoder(c, norm, () => [mixer, feedForward], parts);
    return {
      ...base,
      layers: base.layers.map((layer) => ({ ...layer, parallel: c.use_parallel_residual })),
      hiddenAxis: { prunable },
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
        zeros: () => (bias ? {} : { "attn_qkv.bias": [3 * hidden], "attn_output.bias": [hidden] }),
        notes: geluNotes(c.hidden_act),
      },
    };
  },
  sizes: WIDTH_SIZES,
  gguf: {
    architectures: ["gptneox"],
    className: "GPTNeoXForCausalLM",
    fields: (read, { rope_theta }) => ({
      head_dim: undefined,
      num_key_value_heads: undefined,
      rope_theta: undefined,
      rotary_emb_base: rope_theta,
      rotary_pct: read.rotaryShare,
      layer_norm_eps: read.optional("attention.layer_norm_epsilon"),
      hidden_act: "gelu",
      use_parallel_residual: read.boolean("use_parallel_residual"),
      attention_bias: read.isSet("attn_qkv.bias") || read.isSet("attn_output.bias"),
      tie_word_embeddings: read.hasCopiedHead(),
    }),
  },
});
