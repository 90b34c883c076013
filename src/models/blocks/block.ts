import { type Graph, ops, type Tensor } from "../../tensor/index.js";
import type { Axis, Initialization } from "../dimensions.js";

/** A dimension of a block. Its name is local to its layer (`ffn`). */
export interface Dimension {
  readonly size: number;
  /** Whether pruning can cut it. */
  readonly prunable?: boolean | undefined;
  /** The dimension whose indices each own an equal run of this one's: heads belong to key-value heads. */
  readonly groupedBy?: string | undefined;
}

/** How a parameter is stored in a GGUF file. */
export interface GgufPlacement {
  /** Its name there, without layer and kind: `attn_q`. Mixtures of types also go by it. */
  readonly name: string;
  /** The suffix of the name; `listed` for an element of a list in the metadata, with the whole key as the name. */
  readonly kind?: "weight" | "bias" | "none" | "listed" | undefined;
  /** Row i there is row `rows()[i]` here; in the same order where undefined. */
  readonly rows?: (() => Uint32Array) | undefined;
  /** Added to every element there. */
  readonly offset?: number | undefined;
  /** Multiplies every element there, for scales that llama.cpp's graph cannot express otherwise. */
  readonly factor?: number | undefined;
}

/** A parameter of a block, by local names. */
export interface Parameter {
  readonly axes: readonly Axis[];
  readonly initialization?: Initialization | undefined;
  /** The tap that this matrix multiplies, by which quantization measures importance. */
  readonly input?: string | undefined;
  /** Stored with its two axes swapped in a Hugging Face checkpoint. */
  readonly transposed?: boolean | undefined;
  /** Not to be trained: a constant that checkpoints store. */
  readonly fixed?: boolean | undefined;
  /** Undefined where GGUF files have no tensor for it. */
  readonly gguf: GgufPlacement | undefined;
}

/** A tapped activation that scores a dimension: each index of it owns an equal run of the tap's channels. */
export interface Score {
  readonly dimension: string;
  readonly tap: string;
}

/** What a token costs a block apart from its matrices, with a number of tokens before it. */
export interface ContextCost {
  /** Elements of the cache: of keys and values. */
  readonly cacheElements: number;
  /** Floating-point operations on what is in the cache. */
  readonly operations: number;
}

/** The surroundings of a block's forward pass: weights and taps by local names, and the layout of its tokens. */
export interface Scope {
  readonly g: Graph;
  readonly batch: number;
  readonly seq: number;
  /** The longest sequence among the tokens. */
  readonly longest: number;
  readonly forest: ops.Forest | undefined;
  readonly weight: (name: string) => Tensor;
  readonly tap: (name: string, activation: Tensor) => void;
}

/** A part of a layer: attention, a feed-forward network, a norm. All that is known of it is defined in one place. */
export interface Block {
  readonly dimensions: Readonly<Record<string, Dimension>>;
  readonly parameters: Readonly<Record<string, Parameter>>;
  readonly scores: readonly Score[];
  /** Its metadata in GGUF files, by key without the architecture. */
  readonly metadata: Readonly<Record<string, number>>;
  readonly cost: (context: number, hasWindows: boolean) => ContextCost;
  /** Of an RMS norm over the model's width: what is added to the stored values to get the gain. */
  readonly rmsGainOffset?: number | undefined;
  /** x and the result: [rows, hidden]. */
  forward(scope: Scope, x: Tensor): Tensor;
}

export const FREE: ContextCost = { cacheElements: 0, operations: 0 };

/** x · weightᵀ, plus the bias if there is one, by the matrix's name. x: [rows, inputs] */
export function linear({ g, weight }: Scope, x: Tensor, name: string, bias: boolean): Tensor {
  const y = ops.linear(g, x, weight(`${name}.weight`));
  return bias ? ops.add(g, y, weight(`${name}.bias`)) : y;
}

/** A scope for a block within a block. */
export const within = (scope: Scope, name: string): Scope => ({
  ...scope,
  weight: (inner) => scope.weight(`${name}.${inner}`),
  tap: (inner, activation) => scope.tap(`${name}.${inner}`, activation),
});

/** The parameters of a block within a block. */
export const prefixed = (name: string, parameters: Block["parameters"]): Record<string, Parameter> =>
  Object.fromEntries(Object.entries(parameters).map(([inner, parameter]) => [`${name}.${inner}`, parameter]));
