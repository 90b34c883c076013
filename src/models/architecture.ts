import type { Graph, ops, Tensor } from "../tensor/index.js";
import type { ContextCost } from "./blocks/block.js";
import type { ConfigJson } from "./config.js";
import type { DimensionName, LayerDimension, ParameterSpec, Sizes } from "./dimensions.js";
import type { GgufConfig } from "./gguf-config.js";
import type { GgufLayout } from "./gguf-layout.js";
import type { DecoderSpec } from "./spec.js";

/** An activation of a forward pass. */
export interface Activation {
  /** For example `layers.3.mlp.down_proj.input`. */
  readonly name: string;
  /** The layer it belongs to; undefined for activations of the whole model. */
  readonly layer: number | undefined;
  /** Its name within its layer (`mlp.down_proj.input`); the whole name for activations of the whole model. */
  readonly local: string;
  /** [tokens, channels] */
  readonly tensor: Tensor;
}

/** Receives the activations of a forward pass. */
export type Tap = (activation: Activation) => void;

/** How rows are sequences: `batch` of `seq` positions each, or a forest. */
export interface Layout {
  readonly batch: number;
  readonly seq: number;
  readonly forest?: ops.Forest | undefined;
}

/** The surroundings of a part of a forward pass. */
export interface Surroundings {
  readonly g: Graph;
  readonly weights: Weights;
  readonly layout: Layout;
  readonly tap: Tap;
}

/** The residual stream between two steps of a layer, [rows, hidden] each. */
export interface Stream {
  /** Before the layer's first step. */
  readonly layerInput: Tensor;
  /** After the steps so far. */
  readonly sum: Tensor;
}

/** An RMS norm over the model's width. */
export interface RmsNorm {
  /** The name of the gain's parameter. */
  readonly gain: string;
  /** What is added to the stored values to get the gain: 1 where they are stored less one, else 0. */
  readonly offset: number;
}

/**
 * A residual step, sum + scale · after(block(norm(x))), for work that goes through a model step by step. x is the sum so far, or the
 * layer's input where the steps of a layer are parallel.
 */
export interface ResidualStep {
  readonly layer: number;
  /** The tap that `readers` multiply. */
  readonly input: string;
  /** The norm before the block, where it is an RMS norm, whose gain can be moved into `readers`. */
  readonly norm: RmsNorm | undefined;
  /** The block's matrices that multiply the stream, [outputs, hidden]. */
  readonly readers: readonly ParameterSpec[];
  /** The block's matrix that writes to the stream, [hidden, inputs], and the tap that it multiplies. */
  readonly writer: ParameterSpec & { readonly input: string };
  readonly writerBias: ParameterSpec | undefined;
  /** Whether the block's output is normalized before it is added. */
  readonly isNormedAfter: boolean;
  readonly scale: number;
  /** Whether the block reads the layer's input rather than the sum so far. */
  readonly isParallel: boolean;
  /** All parameters of the step. */
  readonly parameters: readonly ParameterSpec[];
  /** The sum after the step. */
  forward(surroundings: Surroundings, stream: Stream): Tensor;
}

/** Options of a forward pass. */
export interface ForwardOptions {
  /** Called with every activation that has a name. */
  readonly tap?: Tap | undefined;
  /** The layers to run, in order; all by default. */
  readonly layers?: readonly number[] | undefined;
  /** For `tokens` [1, places] that are a forest of sequences with shared beginnings. */
  readonly forest?: ops.Forest | undefined;
}

/** A forward pass up to the output head, which is separate so that losses can choose how to compute it. */
export interface ForwardResult {
  /** After the final normalization, [batch · seq, hidden]. */
  readonly hidden: Tensor;
  /** Logits of rows of `hidden`, by default of all: [rows, vocab]. */
  readonly logits: (hidden?: Tensor) => Tensor;
}

/** Looks up a parameter by its name. */
export type Weights = (name: string) => Tensor;

/** A size that pruning can cut, in all layers alike or layer by layer. */
export interface PruningAxis {
  /** `hidden`, `ffn`, `heads`, ...: the name of the dimension within its layer. */
  readonly name: string;
  /** Its dimension in each layer that has one; just the dimension where it is the whole model's. */
  readonly dimensions: readonly DimensionName[];
  /** The axis whose indices each own an equal run of this axis's. */
  readonly groupedBy?: string | undefined;
  /** What its sizes must be multiples of, for the checkpoint's format. */
  readonly multipleOf?: number | undefined;
  /** Whether a layer can do without the block that it is a size of: its size is 0 there. */
  readonly isOptional?: boolean | undefined;
}

/** A model of a known architecture with concrete sizes: everything that the rest of the program knows about it. */
export interface Model {
  readonly architecture: string;
  readonly config: ConfigJson;
  /** The size of every dimension, including `layers` (their number). */
  readonly sizes: Sizes;
  /** The layer and the local name of every dimension of a layer. */
  readonly layerDimensions: ReadonlyMap<DimensionName, LayerDimension>;
  readonly parameters: readonly ParameterSpec[];
  readonly layerCount: number;
  readonly vocabSize: number;
  /** Longest sequence the positions allow. */
  readonly maxPositions: number;
  readonly tiedEmbeddings: boolean;
  /** Whether it predicts text badly without a begin-of-sequence token. */
  readonly needsBeginToken: boolean;
  /** The axes that can be cut, `layers` last. */
  readonly axes: readonly PruningAxis[];
  /** Which tapped activations score which dimension: each index of it owns an equal run of the tap's channels. */
  readonly scoredBy: readonly { readonly dimension: DimensionName; readonly tap: string }[];
  /** Dimensions whose indices belong, in equal runs, to those of another: query heads to key-value heads. */
  readonly groups: readonly { readonly dimension: DimensionName; readonly groupedBy: DimensionName }[];
  /**
   * What a token costs apart from its products with matrices, with `context` tokens before it.
   * @param options whether windows of attention count, as by default
   */
  cost(context: number, options?: { readonly hasWindows?: boolean | undefined }): ContextCost;
  /** tokens: i32 [batch, seq]. */
  forward(g: Graph, weights: Weights, tokens: Tensor, options?: ForwardOptions): ForwardResult;
  /** The first part of a forward pass: the residual stream before the first layer, [rows, hidden]. tokens: i32 [batch, seq] */
  embed(surroundings: Surroundings, tokens: Tensor): Tensor;
  /** A middle part: the stream after a layer, from the stream before it. */
  layer(surroundings: Surroundings, index: number, stream: Tensor): Tensor;
  /** The last part, from the residual stream after the last layer, [rows, hidden]. */
  finish(surroundings: Surroundings, stream: Tensor): ForwardResult;
  /** The middle parts, a residual step at a time. */
  readonly steps: readonly ResidualStep[];
  /** Logits of normalized last states, [rows, hidden] -> [rows, vocab]: needs the head alone. */
  logits(g: Graph, weights: Weights, hidden: Tensor): Tensor;
  /** The norm of the last part, where it is an RMS norm. */
  readonly finalNorm: RmsNorm | undefined;
  /** The names of the matrices that tokens are looked up in and that logits are computed with, which may be the same. */
  readonly embedding: string;
  readonly head: string;
  /** The name of the learned positions that are added to the embeddings, where there are any. */
  readonly positions: string | undefined;
  /**
   * The same architecture at other sizes.
   * @param keptLayers for each layer of the result, the layer of this model it comes from; the first ones by default
   * @throws FormatError when the architecture's configuration cannot express them
   */
  resized(sizes: Sizes, keptLayers?: readonly number[]): Model;
  /** Its layout in a GGUF file. @throws FormatError when llama.cpp has no graph for it */
  gguf(): GgufLayout;
}

/** The field of a configuration that holds a size. */
export interface SizeField {
  readonly name: string;
  /** Whether it can list a size for each layer. */
  readonly list?: boolean | undefined;
  /** Whether the list can say 0 of a layer that does without the block. */
  readonly optional?: boolean | undefined;
}

/** The fields that hold sizes, by dimension: `hidden`, `vocab`, `layers`, and those of layers by their names within a layer. */
export type SizeFields = Readonly<Record<string, SizeField>>;

/** How to recognize an architecture in a GGUF file and restore its configuration. */
export interface GgufReader {
  /** Values of `general.architecture`. */
  readonly architectures: readonly string[];
  /** @throws FormatError naming the key that is missing or not supported */
  readonly configOf: (read: GgufConfig) => ConfigJson;
}

/** An architecture: how to recognize its configuration and build a decoder from it. Each has a file of its own. */
export interface Architecture {
  readonly name: string;
  /** Common names of its models, for the table of supported models. */
  readonly families: string;
  /** `model_type` values in config.json. */
  readonly modelTypes: readonly string[];
  /** @throws FormatError naming the field that is missing or not supported */
  readonly decoder: (config: ConfigJson) => DecoderSpec;
  readonly fields: SizeFields;
  /** Final changes to a resized configuration. */
  readonly adapt?: ((config: ConfigJson) => ConfigJson) | undefined;
  readonly gguf: GgufReader;
}
