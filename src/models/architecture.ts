import type { Graph, ops, Tensor } from "../tensor/index.js";
import type { DimensionName, ParameterSpec, Sizes } from "./dimensions.js";
import type { GgufLayout, GgufReader } from "./gguf-layout.js";

/** The parsed content of a checkpoint's `config.json`. */
export type ConfigJson = Readonly<Record<string, unknown>>;

/** A named activation of a forward pass, for example `layers.3.mlp.down_proj.input`, [tokens, channels]. */
export type Tap = (name: string, activation: Tensor) => void;

/** What a forward pass is given beside the tokens. */
export interface ForwardOptions {
  /** Called with every named activation. */
  readonly tap?: Tap;
  /** Which layers to run, in order; all by default. */
  readonly layers?: readonly number[];
  /** Where `tokens` [1, places] is a forest of sequences that share their beginnings. */
  readonly forest?: ops.Forest;
}

/** A forward pass up to the output head: the head is apart so that losses may choose how to compute it. */
export interface ForwardResult {
  /** After the final normalisation, [batch · seq, hidden]. */
  readonly hidden: Tensor;
  /** Logits of rows of `hidden`, all by default: [rows, vocab]. */
  readonly logits: (hidden?: Tensor) => Tensor;
}

/** Looks up a parameter by its checkpoint name. */
export type Weights = (name: string) => Tensor;

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
  /** How many positions a token reads, its own included; all before it where undefined. */
  readonly attentionWindow: number | undefined;
  readonly tiedEmbeddings: boolean;
  /** Which tapped activations score which dimension. The channels of a tap are the dimension's, in equal runs. */
  readonly scoredBy: readonly { readonly dimension: DimensionName; readonly tap: string }[];
  /** Query heads and the key-value heads that groups of them share. */
  readonly headGroups: readonly { readonly heads: DimensionName; readonly kvHeads: DimensionName }[];
  /** tokens: i32 [batch, seq]. */
  forward(g: Graph, weights: Weights, tokens: Tensor, options?: ForwardOptions): ForwardResult;
  /** The same architecture at other sizes; `layers` in `sizes` is how many there are. */
  resized(sizes: Sizes): Model;
  /** How it is written to a GGUF file. @throws FormatError when llama.cpp has no graph for it */
  gguf(): GgufLayout;
}

/** An architecture: how to recognise its configuration and make a model of it. One file each. */
export interface Architecture {
  readonly name: string;
  /** `model_type` values in config.json. */
  readonly modelTypes: readonly string[];
  /** @throws FormatError naming the field that is missing or not supported */
  readonly parse: (config: ConfigJson) => Model;
  readonly gguf: GgufReader;
}
