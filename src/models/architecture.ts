import type { Graph, ops, Tensor } from "../tensor/index.js";
import type { ContextCost } from "./blocks/block.js";
import type { ConfigJson } from "./config.js";
import type { DimensionName, ParameterSpec, Sizes } from "./dimensions.js";
import type { GgufConfig } from "./gguf-config.js";
import type { GgufLayout } from "./gguf-layout.js";
import type { DecoderSpec } from "./spec.js";

/** A named activation of a forward pass, for example `layers.3.mlp.down_proj.input`, [tokens, channels]. */
export type Tap = (name: string, activation: Tensor) => void;

/** What a forward pass is given beside the tokens. */
export interface ForwardOptions {
  /** Called with every named activation. */
  readonly tap?: Tap | undefined;
  /** Which layers to run, in order; all by default. */
  readonly layers?: readonly number[] | undefined;
  /** Where `tokens` [1, places] is a forest of sequences that share their beginnings. */
  readonly forest?: ops.Forest | undefined;
}

/** A forward pass up to the output head: the head is apart so that losses may choose how to compute it. */
export interface ForwardResult {
  /** After the final normalisation, [batch · seq, hidden]. */
  readonly hidden: Tensor;
  /** Logits of rows of `hidden`, all by default: [rows, vocab]. */
  readonly logits: (hidden?: Tensor) => Tensor;
}

/** Looks up a parameter by its name. */
export type Weights = (name: string) => Tensor;

/** A size that pruning may cut, in every layer alike or layer by layer. */
export interface PruningAxis {
  /** `hidden`, `ffn`, `heads`, ...: the name of the dimension within its layer. */
  readonly name: string;
  /** Its dimension in each layer that has one; the dimension itself where it is the whole model's. */
  readonly dimensions: readonly DimensionName[];
  /** The axis whose indices each own an equal run of this one's. */
  readonly groupedBy?: string | undefined;
  /** What its sizes must be multiples of for the checkpoint's format. */
  readonly multipleOf?: number | undefined;
}

/** A model of a known architecture with concrete sizes: all that the rest of the program knows about it. */
export interface Model {
  readonly architecture: string;
  readonly config: ConfigJson;
  /** Every dimension and its size, `layers` (their number) included. */
  readonly sizes: Sizes;
  readonly parameters: readonly ParameterSpec[];
  readonly layerCount: number;
  readonly vocabSize: number;
  /** Longest sequence the positions allow. */
  readonly maxPositions: number;
  readonly tiedEmbeddings: boolean;
  /** Whether it predicts text badly without the begin-of-sequence token before it. */
  readonly needsBeginToken: boolean;
  /** What may be cut, `layers` last. */
  readonly axes: readonly PruningAxis[];
  /** Which tapped activations score which dimension. The channels of a tap are the dimension's, in equal runs. */
  readonly scoredBy: readonly { readonly dimension: DimensionName; readonly tap: string }[];
  /** Dimensions whose indices belong, in equal runs, to those of another: query heads to key-value heads. */
  readonly groups: readonly { readonly dimension: DimensionName; readonly groupedBy: DimensionName }[];
  /** What a token costs beside the matrices it is multiplied by, with so many tokens before it. */
  cost(context: number): ContextCost;
  /** tokens: i32 [batch, seq]. */
  forward(g: Graph, weights: Weights, tokens: Tensor, options?: ForwardOptions): ForwardResult;
  /**
   * The same architecture at other sizes.
   * @param keptLayers for each layer of the result, the layer of this model it comes from; the first ones by default
   * @throws FormatError when the architecture's configuration cannot say it
   */
  resized(sizes: Sizes, keptLayers?: readonly number[]): Model;
  /** How it is written to a GGUF file. @throws FormatError when llama.cpp has no graph for it */
  gguf(): GgufLayout;
}

/** Where a configuration says a size. */
export interface SizeField {
  readonly name: string;
  /** Whether it may list a size for each layer. */
  readonly list?: boolean | undefined;
}

/** Where a configuration says its sizes, by dimension: `hidden`, `vocab`, `layers`, and those of layers by local names. */
export type SizeFields = Readonly<Record<string, SizeField>>;

/** How to recognise an architecture in a GGUF file and get its configuration back. */
export interface GgufReader {
  /** Values of `general.architecture`. */
  readonly architectures: readonly string[];
  /** @throws FormatError naming the key that is missing or not supported */
  readonly configOf: (read: GgufConfig) => ConfigJson;
}

/** An architecture: how to recognise its configuration and make blocks of it. One file each. */
export interface Architecture {
  readonly name: string;
  /** What people call the models: for the table of supported ones. */
  readonly families: string;
  /** `model_type` values in config.json. */
  readonly modelTypes: readonly string[];
  /** @throws FormatError naming the field that is missing or not supported */
  readonly decoder: (config: ConfigJson) => DecoderSpec;
  readonly fields: SizeFields;
  /** Last changes to a configuration of other sizes, before it is written. */
  readonly adapt?: ((config: ConfigJson) => ConfigJson) | undefined;
  readonly gguf: GgufReader;
}
