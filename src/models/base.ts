import { z } from "zod";
import { type GgufValue, gguf } from "../checkpoint/gguf.js";
import type { SizeFields } from "./architecture.js";
import type { Block } from "./blocks/block.js";
import { checkHeads, entryOf, headSize, layerCount, positive, size } from "./config.js";
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

/** The same where all heads share out the width, and none shares keys and values with another. */
export const WIDTH_SIZES: SizeFields = (({ kvHeads: _, headDim: __, ...rest }) => rest)(BASE_SIZES);

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

interface WidthFields {
  readonly hidden_size: number;
  readonly vocab_size: number;
  readonly max_position_embeddings: number;
  readonly tie_word_embeddings: boolean;
}

/** What a decoder takes from most configurations as it is. */
export const widthsOf = (c: WidthFields) => ({
  hidden: c.hidden_size,
  vocab: c.vocab_size,
  maxPositions: c.max_position_embeddings,
  tied: c.tie_word_embeddings,
});

/** What differs where llama.cpp's graph has no window. */
export const windowNotes = (window: number | undefined, c: WidthFields, who = "this architecture"): string[] =>
  window === undefined || window >= c.max_position_embeddings
    ? []
    : [`llama.cpp lets ${who} attend past its window of ${window} tokens: longer texts differ`];

/** Why llama.cpp cannot compute heads that are not as wide as the model, where its graph wants that; undefined where they are. */
export const tooWide = (family: string, heads: number, headDim: number, hidden: number): string | undefined =>
  heads * headDim === hidden
    ? undefined
    : `llama.cpp's graph for ${family} takes heads as wide as the model only: ${heads} of ${headDim} are not ${hidden}`;

/** What differs where llama.cpp's graph has GELU's approximation by tanh. */
export const geluNotes = (activation: string): string[] =>
  activation === "gelu"
    ? ["llama.cpp computes GELU by its tanh approximation here: logits differ slightly (under 0.0005 an activation)"]
    : [];

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
    scaling: c.rope_scaling ?? c.rope_parameters,
    theta: c.rope_theta ?? theta,
    partial: c.partial_rotary_factor ?? partial,
    headDim,
    maxPositions: c.max_position_embeddings,
  });

/** The same where whole heads turn, whatever the configuration says: transformers does not read a share in every family. */
export const wholeRotaryOf = (
  c: RotaryFields,
  headDim: number,
  defaults?: { readonly theta?: number },
): RotaryConfig => {
  const { rope_scaling, rope_parameters } = c;
  const fields = {
    rope_scaling: whole(rope_scaling),
    rope_parameters: whole(rope_parameters),
    partial_rotary_factor: 1,
  };
  return rotaryOf({ ...c, ...fields }, headDim, defaults);
};

const whole = <T extends object>(scaling: T | null | undefined) => scaling && { ...scaling, partial_rotary_factor: 1 };

/** What checkpoints call the parts of a layer, in the order of computation. */
type LayerNames = readonly [norm: string, mixer: string, secondNorm: string, feedForward: string];
const LAYER_NAMES: LayerNames = ["input_layernorm", "self_attn", "post_attention_layernorm", "mlp"];

/** A layer with a norm before each of its blocks. */
export const preNormLayer = (
  mixer: Block,
  feedForward: Block,
  norms: readonly [Block, Block],
  names: LayerNames = LAYER_NAMES,
): Layer => ({
  residuals: [
    { norm: [names[0], norms[0]], block: [names[1], mixer] },
    { norm: [names[2], norms[1]], block: [names[3], feedForward] },
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

/** Kinds of layers as configurations list them. */
export const layerTypes = z.array(z.enum(["full_attention", "sliding_attention"]));
export type LayerType = z.infer<typeof layerTypes>[number];

/** The kind of each layer: as listed, or by a rule where nothing is listed. @throws FormatError for a list of another length */
export function layerTypesOf(
  c: { readonly num_hidden_layers: number; readonly layer_types?: readonly LayerType[] | null | undefined },
  isWindowed: (layer: number) => boolean,
): LayerType[] {
  const count = c.num_hidden_layers;
  return Array.from({ length: count }, (_, i) => {
    if (c.layer_types) return entryOf("layer_types", c.layer_types, i, count);
    return isWindowed(i) ? "sliding_attention" : "full_attention";
  });
}

/** Rotary settings for each kind of layer, or one for all. */
export const nestedRotary = z.union([
  z.looseObject({ full_attention: rotarySchema, sliding_attention: rotarySchema }),
  rotarySchema,
]);

interface NestedFields {
  readonly max_position_embeddings: number;
  readonly rope_theta?: number | null | undefined;
  readonly rope_scaling?: RotaryJson | null | undefined;
  readonly rope_parameters?: z.infer<typeof nestedRotary> | null | undefined;
}

/**
 * How heads turn in layers of each kind: as nested settings say, or older fields, of which the scaling is that of the layers that
 * read all.
 * @param thetas where nothing else is said
 */
export function rotaryPerType(
  c: NestedFields,
  headDim: number,
  thetas: Readonly<Record<LayerType, number>>,
): Readonly<Record<LayerType, RotaryConfig>> {
  const given = c.rope_parameters ?? undefined;
  const nested =
    given !== undefined && "full_attention" in given ? (given as Record<LayerType, RotaryJson>) : undefined;
  const of = (type: LayerType): RotaryConfig => {
    const flat = type === "full_attention" ? (c.rope_scaling ?? (given as RotaryJson | undefined)) : undefined;
    const theta = type === "full_attention" ? (c.rope_theta ?? thetas[type]) : thetas[type];
    return parseRotary({
      scaling: nested?.[type] ?? flat,
      theta: nested === undefined ? theta : thetas[type],
      partial: undefined,
      headDim,
      maxPositions: c.max_position_embeddings,
    });
  };
  return { full_attention: of("full_attention"), sliding_attention: of("sliding_attention") };
}

/** Which layers have a window, as GGUF files list it; nothing where none has. */
export const windowMetadata = (kinds: readonly LayerType[], window: number): Record<string, GgufValue> =>
  kinds.includes("sliding_attention")
    ? {
        "attention.sliding_window": gguf.uint32(window),
        "attention.sliding_window_pattern": {
          kind: "array",
          of: "bool",
          value: kinds.map((kind) => kind === "sliding_attention"),
        },
      }
    : {};

/** The same read back: the kind of each layer, and the window. @param every layers of a window to the full one that ends them */
export function windowsOf(
  read: GgufConfig,
  every: number,
  unset = 0,
): { layer_types: LayerType[]; sliding_window: number } {
  const window = read.optional("attention.sliding_window") ?? unset;
  const pattern = read.optionalNumbers("attention.sliding_window_pattern") ?? every;
  const isWindowed = (i: number): boolean =>
    window > 0 && (typeof pattern === "number" ? i % pattern < pattern - 1 : Boolean(pattern[i]));
  return {
    layer_types: Array.from({ length: read.layers }, (_, i) =>
      isWindowed(i) ? "sliding_attention" : "full_attention",
    ),
    sliding_window: window || read.number("context_length"),
  };
}
