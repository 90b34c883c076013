import { type Block, rmsNorm } from "./blocks/index.js";
import { type DecoderSpec, isEmpty, type Layer, type Residual } from "./spec.js";

/** The kinds of layers: with norms before their blocks, after them, or both. */

/** The fields of a configuration that every decoder has. */
export interface DecoderFields {
  readonly hidden_size: number;
  readonly vocab_size: number;
  readonly max_position_embeddings: number;
  readonly tie_word_embeddings: boolean;
  readonly num_hidden_layers: number;
}

/** Builds a norm of a name in GGUF files. */
export type Norm = (gguf: string) => Block;
/** The attention and the feed-forward network of a layer. */
export type LayerBlocks = (layer: number) => readonly [mixer: Block, feedForward: Block];
/** What is common to all decoders. */
export type BaseDecoder = Pick<DecoderSpec, "hidden" | "vocab" | "maxPositions" | "tied" | "layers" | "finalNorm">;

const decoderOf = (c: DecoderFields, norm: Norm, layerOf: (layer: number) => Layer): BaseDecoder => ({
  hidden: c.hidden_size,
  vocab: c.vocab_size,
  maxPositions: c.max_position_embeddings,
  tied: c.tie_word_embeddings,
  layers: Array.from({ length: c.num_hidden_layers }, (_, i) => layerOf(i)),
  finalNorm: norm("output_norm"),
});

/** The norm of most families. */
export const rmsNorms =
  (c: { readonly rms_norm_eps: number }, options: { readonly plusOne?: boolean | undefined } = {}): Norm =>
  (gguf) =>
    rmsNorm(gguf, { epsilon: c.rms_norm_eps, ...options });

/** Names in checkpoints of the parts of a layer, in the order of computation. */
export type LayerNames = readonly [norm: string, mixer: string, secondNorm: string, feedForward: string];
const LAYER_NAMES: LayerNames = ["input_layernorm", "self_attn", "post_attention_layernorm", "mlp"];

/** A norm before each block: Llama's layer. Blocks of size 0 are skipped. */
export const preNormDecoder = (c: DecoderFields, norm: Norm, blocksOf: LayerBlocks, names = LAYER_NAMES): BaseDecoder =>
  decoderOf(c, norm, (i) => {
    const [mixer, feedForward] = blocksOf(i);
    const residuals: Residual[] = [
      { norm: [names[0], norm("attn_norm")], block: [names[1], mixer] },
      { norm: [names[2], norm("ffn_norm")], block: [names[3], feedForward] },
    ];
    return {
      residuals: residuals.filter(({ block: [, block] }) => !isEmpty(block)),
      skipped: [mixer, feedForward].filter(isEmpty),
    };
  });

/** A norm after each block, none before: OLMo 2's layer. */
export const postNormDecoder = (c: DecoderFields, norm: Norm, blocksOf: LayerBlocks): BaseDecoder =>
  decoderOf(c, norm, (i) => {
    const [mixer, feedForward] = blocksOf(i);
    return {
      residuals: [
        { block: ["self_attn", mixer], after: ["post_attention_layernorm", norm("post_attention_norm")] },
        { block: ["mlp", feedForward], after: ["post_feedforward_layernorm", norm("post_ffw_norm")] },
      ],
    };
  });

/** A norm before and after each block: Gemma 2's layer. @param names of the norms in checkpoints, in the order of computation */
export const sandwichDecoder = (
  c: DecoderFields,
  norm: Norm,
  blocksOf: LayerBlocks,
  names: readonly [before: string, after: string, beforeFeedForward: string, afterFeedForward: string],
): BaseDecoder =>
  decoderOf(c, norm, (i) => {
    const [mixer, feedForward] = blocksOf(i);
    return {
      residuals: [
        {
          norm: [names[0], norm("attn_norm")],
          block: ["self_attn", mixer],
          after: [names[1], norm("post_attention_norm")],
        },
        { norm: [names[2], norm("ffn_norm")], block: ["mlp", feedForward], after: [names[3], norm("post_ffw_norm")] },
      ],
    };
  });
