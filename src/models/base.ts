import { z } from "zod";
import type { SizeFields } from "./architecture.js";
import type { Block } from "./blocks/block.js";
import { checkHeads, headSize, layerCount, positive, size } from "./config.js";
import { defined, type GgufConfig } from "./gguf-config.js";
import { parseRotary, type RotaryConfig, type RotaryJson, rotarySchema } from "./rotary.js";
import { rotaryScaling } from "./rotary-gguf.js";
import type { Layer, NamedBlock } from "./spec.js";

/** What most configurations share: fields, their defaults in transformers, and how a GGUF file says them. */

export const baseFields = {
  model_type: z.string(),
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  head_dim: size.nullish(),
  max_position_embeddings: size.default(2048),
  rms_norm_eps: positive.default(1e-6),
  tie_word_embeddings: z.boolean().default(false),
  rope_theta: positive.nullish(),
  rope_scaling: rotarySchema.nullish(),
  rope_parameters: rotarySchema.nullish(),
  partial_rotary_factor: positive.max(1).nullish(),
};

/** Where most configurations say their sizes. */
export const BASE_SIZES: SizeFields = {
  vocab: { name: "vocab_size" },
  hidden: { name: "hidden_size" },
  layers: { name: "num_hidden_layers" },
  ffn: { name: "intermediate_size" },
  heads: { name: "num_attention_heads" },
  kvHeads: { name: "num_key_value_heads" },
  headDim: { name: "head_dim" },
};

interface HeadFields {
  readonly hidden_size: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads?: number | null | undefined;
  readonly head_dim?: number | null | undefined;
}

/** Query heads, key-value heads and their size. @throws FormatError when they do not go together */
export function headsOf(c: HeadFields): { readonly heads: number; readonly kvHeads: number; readonly headDim: number } {
  const [heads, kvHeads] = [c.num_attention_heads, c.num_key_value_heads ?? c.num_attention_heads];
  checkHeads(heads, kvHeads);
  return { heads, kvHeads, headDim: headSize(c.head_dim, c.hidden_size, heads) };
}

interface RotaryFields {
  readonly max_position_embeddings: number;
  readonly rope_theta?: number | null | undefined;
  readonly rope_scaling?: RotaryJson | null | undefined;
  readonly rope_parameters?: RotaryJson | null | undefined;
  readonly partial_rotary_factor?: number | null | undefined;
}

/** How heads turn. @param partial the share of each head that turns where the configuration does not say it */
export const rotaryOf = (c: RotaryFields, headDim: number, { partial = 1, theta = 10_000 } = {}): RotaryConfig =>
  parseRotary({
    scaling: c.rope_parameters ?? c.rope_scaling,
    theta: c.rope_theta ?? theta,
    partial: c.partial_rotary_factor ?? partial,
    headDim,
    maxPositions: c.max_position_embeddings,
  });

/** A layer with a norm before each of its blocks. */
export const preNormLayer = (mixer: Block, feedForward: Block, norms: readonly [Block, Block]): Layer => ({
  residuals: [
    { norm: ["input_layernorm", norms[0]], block: ["self_attn", mixer] },
    { norm: ["post_attention_layernorm", norms[1]], block: ["mlp", feedForward] },
  ],
});

/** So many layers that are all alike. */
export const alike = (count: number, layer: Layer): Layer[] => Array.from({ length: count }, () => layer);

/** A layer with a norm before and after each of its blocks. */
export const sandwichLayer = (
  mixer: Block,
  feedForward: Block,
  norms: readonly [before: NamedBlock, after: NamedBlock, beforeFeedForward: NamedBlock, afterFeedForward: NamedBlock],
): Layer => ({
  residuals: [
    { norm: norms[0], block: ["self_attn", mixer], after: norms[1] },
    { norm: norms[2], block: ["mlp", feedForward], after: norms[3] },
  ],
});

/** The fields of {@link baseFields} as a GGUF file has them. */
export function baseConfig(read: GgufConfig, modelType: string, className: string) {
  const theta = read.optional("rope.freq_base") ?? 10_000;
  const rotaryDim = read.optional("rope.dimension_count") ?? read.headDim;
  const maxPositions = read.number("context_length");
  return defined({
    ...read.common(modelType, className),
    rms_norm_eps: read.optional("attention.layer_norm_rms_epsilon"),
    rope_theta: theta,
    rope_scaling: rotaryScaling(read, { theta, rotaryDim, maxPositions }),
  });
}
