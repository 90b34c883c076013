import type { Graph, ops, Tensor } from "../../tensor/index.js";
import type { Axis, Initialisation } from "../dimensions.js";

/** A size that has a name. Names are local to a layer (`ffn`); `hidden` and `vocab` are the whole model's. */
export interface Dimension {
  readonly size: number;
  /** Whether pruning may cut it. */
  readonly prunable?: boolean | undefined;
  /** The dimension whose indices each own an equal run of this one's: heads belong to key-value heads. */
  readonly groupedBy?: string | undefined;
}

/** How a parameter lies in a GGUF file. */
export interface GgufTensor {
  /** Its name there, without layer and kind: `attn_q`. It is also the part it plays in mixtures of types. */
  readonly name: string;
  /** `weight` or `bias`, or nothing; `listed`: one number of a list in the metadata, whose whole key the name is. */
  readonly kind?: "weight" | "bias" | "none" | "listed" | undefined;
  /** Row i there is row `rows()[i]` here; the same where undefined. */
  readonly rows?: (() => Uint32Array) | undefined;
  /** Added to every element there. */
  readonly offset?: number | undefined;
  /** What every element is multiplied by there, for what llama.cpp's graph cannot be told otherwise. */
  readonly factor?: number | undefined;
}

/** A parameter of a block, by local names. */
export interface Parameter {
  readonly axes: readonly Axis[];
  readonly initialisation?: Initialisation | undefined;
  /** The tap that this matrix multiplies: what quantization measures importance by. */
  readonly input?: string | undefined;
  /** Stored with its two axes swapped in a Hugging Face checkpoint. */
  readonly transposed?: boolean | undefined;
  /** Not to be trained: a constant that checkpoints store. */
  readonly fixed?: boolean | undefined;
  /** Where it has no tensor of its own in GGUF files, undefined. */
  readonly gguf: GgufTensor | undefined;
}

/** A tapped activation that scores a dimension: the channels of the tap are the dimension's, in equal runs. */
export interface Score {
  readonly dimension: string;
  readonly tap: string;
}

/** What a token costs a block beside its matrices, with so many tokens before it. */
export interface ContextCost {
  /** Numbers that stay in a cache: keys and values. */
  readonly cacheElements: number;
  /** Floating-point operations on what is in the cache. */
  readonly operations: number;
}

/** What a block's forward pass is given: weights and taps by local names, and where its tokens are. */
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

/** A part of a layer: attention, a feed-forward network, a norm. It says all about itself in one place. */
export interface Block {
  readonly dimensions: Readonly<Record<string, Dimension>>;
  readonly parameters: Readonly<Record<string, Parameter>>;
  readonly scores: readonly Score[];
  /** What GGUF files say of it, by key without the architecture. */
  readonly metadata: Readonly<Record<string, number>>;
  readonly cost: (context: number) => ContextCost;
  /** x and the result: [rows, hidden]. */
  forward(scope: Scope, x: Tensor): Tensor;
}

export const FREE: ContextCost = { cacheElements: 0, operations: 0 };

/** A scope for a block within a block. */
export const within = (scope: Scope, name: string): Scope => ({
  ...scope,
  weight: (inner) => scope.weight(`${name}.${inner}`),
  tap: (inner, activation) => scope.tap(`${name}.${inner}`, activation),
});

/** The parameters of a block within a block. */
export const prefixed = (name: string, parameters: Block["parameters"]): Record<string, Parameter> =>
  Object.fromEntries(Object.entries(parameters).map(([inner, parameter]) => [`${name}.${inner}`, parameter]));
