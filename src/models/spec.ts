import type { Block, Dimension } from "./blocks/block.js";
import type { GgufFacts } from "./gguf-layout.js";

/** A block with its name in checkpoints. */
export type NamedBlock = readonly [name: string, block: Block];

/** One residual step: x + scale · after(block(norm(x))). */
export interface Residual {
  readonly norm?: NamedBlock | undefined;
  readonly block: NamedBlock;
  readonly after?: NamedBlock | undefined;
  readonly scale?: number | undefined;
}

/** A layer of a decoder. */
export interface Layer {
  readonly residuals: readonly Residual[];
  /** Blocks that it does without: nothing is computed, and a size of theirs is 0. */
  readonly skipped?: readonly Block[] | undefined;
  /** Every residual reads the layer's input rather than the previous residual's output (GPT-NeoX). */
  readonly parallel?: boolean | undefined;
}

/** The names in checkpoints of the parts outside the layers. */
export interface DecoderNames {
  readonly embedding: string;
  readonly layers: string;
  readonly norm: string;
  readonly head: string;
}

const DEFAULT_NAMES: DecoderNames = {
  embedding: "model.embed_tokens",
  layers: "model.layers",
  norm: "model.norm",
  head: "lm_head",
};

/** A decoder made of blocks. */
export interface DecoderSpec {
  readonly hidden: number;
  readonly vocab: number;
  readonly maxPositions: number;
  readonly layers: readonly Layer[];
  readonly finalNorm: Block;
  readonly tied: boolean;
  /** Whether it predicts text badly without a begin-of-sequence token; false by default. */
  readonly needsBeginToken?: boolean | undefined;
  /** Multiplies the embeddings (Gemma, Granite). */
  readonly embeddingScale?: number | undefined;
  /** Multiplies the logits (Granite). */
  readonly logitScale?: number | undefined;
  /** Logits are c · tanh(logit / c) (Gemma 2). */
  readonly logitCap?: number | undefined;
  /** The name of the learned position embeddings, for models that have them (GPT-2). */
  readonly learnedPositions?: string | undefined;
  readonly names?: Partial<DecoderNames> | undefined;
  /** Whether the width can be cut, and what it must be a multiple of. */
  readonly hiddenAxis?: { readonly prunable: boolean; readonly multipleOf?: number | undefined } | undefined;
  /** Lists with an entry for each layer, including those that a pattern implies: when layers are cut, their entries are too. */
  readonly perLayer?: Readonly<Record<string, readonly unknown[]>> | undefined;
  readonly gguf: GgufFacts;
}

export const namesOf = ({ names }: DecoderSpec): DecoderNames => ({ ...DEFAULT_NAMES, ...names });

export const mainBlocks = ({ residuals }: Layer): NamedBlock[] => residuals.map(({ block }) => block);

/** Every block of a layer in the order of computation. */
export const blocksOf = ({ residuals }: Layer): NamedBlock[] =>
  residuals.flatMap(({ norm, block, after }) => [norm, block, after].filter((named) => named !== undefined));

/** The blocks that a layer does without. */
export const skippedIn = ({ skipped = [] }: Layer): readonly Block[] => skipped;

/** Whether there is nothing to compute in a block. */
export const isEmpty = ({ dimensions }: Block): boolean => Object.values(dimensions).some(({ size }) => size === 0);

/** A layer's dimensions by local name. */
export function layerDimensions(layer: Layer): Readonly<Record<string, Dimension>> {
  const blocks = [...mainBlocks(layer).map(([, block]) => block), ...skippedIn(layer)];
  return Object.assign({}, ...blocks.map(({ dimensions }) => dimensions));
}
