import { z } from "zod";
import { FormatError } from "../system/errors.js";
import type { Architecture, SizeFields } from "./architecture.js";
import {
  type ConfigJson,
  checkHeads,
  choice,
  flag,
  headSize,
  layerCount,
  parseConfig,
  positive,
  size,
} from "./config.js";
import { defined, type GgufConfig } from "./gguf-config.js";
import { parseRotary, type RotaryConfig, type RotaryJson, rotarySchema } from "./rotary.js";
import { rotaryScaling } from "./rotary-gguf.js";
import type { DecoderSpec } from "./spec.js";

/** What most configurations share: fields with their defaults in transformers, those that hold sizes, and their GGUF keys. */

export const baseSchema = z.looseObject({
  model_type: z.string(),
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  head_dim: size.nullish(),
  hidden_act: choice("silu"),
  max_position_embeddings: size.default(2048),
  rms_norm_eps: positive.default(1e-6),
  tie_word_embeddings: flag(false),
  rope_theta: positive.nullish(),
  rope_scaling: rotarySchema.nullish(),
  rope_parameters: rotarySchema.nullish(),
  partial_rotary_factor: positive.max(1).nullish(),
  is_causal: z.literal(true).nullish(), // embedding models read in both directions
});

/** The fields that hold sizes in most configurations. */
export const BASE_SIZES: SizeFields = {
  vocab: { name: "vocab_size" },
  hidden: { name: "hidden_size" },
  layers: { name: "num_hidden_layers" },
  ffn: { name: "intermediate_size" },
  heads: { name: "num_attention_heads" },
  kvHeads: { name: "num_key_value_heads" },
  headDim: { name: "head_dim" },
};

/** The same where the heads divide the width and none shares its keys and values. */
export const WIDTH_SIZES: SizeFields = (({ kvHeads: _, headDim: __, ...rest }) => rest)(BASE_SIZES);

/** What an architecture's file defines. The rest of {@link Architecture} is common to most families. */
export interface Family<Schema extends z.ZodType> {
  readonly name: string;
  /** Common names of the models. */
  readonly families: string;
  /** `model_type` values in config.json; the name by default. */
  readonly modelTypes?: readonly string[] | undefined;
  /** The configuration's fields. */
  readonly schema: Schema;
  /** @throws FormatError naming the field that is not supported */
  readonly decoder: (config: z.infer<Schema>) => DecoderSpec;
  /** The fields that hold sizes; {@link BASE_SIZES} by default. */
  readonly sizes?: SizeFields | undefined;
  readonly adapt?: Architecture["adapt"] | undefined;
  readonly gguf: {
    /** Values of `general.architecture`; the name by default. */
    readonly architectures?: readonly string[] | undefined;
    /** The class in transformers for the restored configuration. */
    readonly className: string;
    /** Fields that add to or override those that most families have in common; undefined removes one. */
    readonly fields?: ((read: GgufConfig, base: BaseConfig) => ConfigJson) | undefined;
  };
}

/** Completes an architecture's definition. */
export function architecture<Schema extends z.ZodType>(family: Family<Schema>): Architecture {
  const { name, modelTypes = [name], schema, decoder, gguf } = family;
  return {
    name,
    families: family.families,
    modelTypes,
    decoder: (config) => decoder(parseConfig(schema, config)),
    fields: family.sizes ?? BASE_SIZES,
    adapt: family.adapt,
    gguf: {
      architectures: gguf.architectures ?? [name],
      configOf: (read) => {
        const base = baseConfig(read, modelTypes[0] ?? name, gguf.className);
        return defined({ ...base, ...gguf.fields?.(read, base) });
      },
    },
  };
}

type BaseConfig = ReturnType<typeof baseConfig>;

/** The fields of {@link baseSchema}, from a GGUF file. */
function baseConfig(read: GgufConfig, modelType: string, className: string) {
  const theta = read.optional("rope.freq_base") ?? 10_000;
  const rotaryDim = read.optional("rope.dimension_count") ?? read.headDim;
  const maxPositions = read.number("context_length");
  return {
    ...read.common(modelType, className),
    hidden_act: "silu",
    rms_norm_eps: read.optional("attention.layer_norm_rms_epsilon"),
    rope_theta: theta,
    rope_scaling: rotaryScaling(read, { theta, rotaryDim, maxPositions }),
  };
}

/** The fields of a configuration that say how many heads there are. */
export interface HeadFields {
  readonly hidden_size: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads?: number | null | undefined;
  readonly head_dim?: number | null | undefined;
}

/** Query heads, key-value heads and their size. */
export interface Heads {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** @throws FormatError for a width that transformers rejects, even with a head_dim: no multiple of the number of heads */
export function checkWidth({ hidden_size }: { readonly hidden_size: number }, { heads }: Pick<Heads, "heads">): void {
  if (hidden_size % heads !== 0)
    throw new FormatError(`config.json: hidden_size ${hidden_size} is not a multiple of ${heads} heads`);
}

/** Reads them from a configuration. @throws FormatError when they do not divide evenly */
export function headsOf(c: HeadFields): Heads {
  const [heads, kvHeads] = [c.num_attention_heads, c.num_key_value_heads ?? c.num_attention_heads];
  checkHeads(heads, kvHeads);
  return { heads, kvHeads, headDim: headSize(c.head_dim, c.hidden_size, heads) };
}

/** The fields of a configuration that say how positions rotate. */
export interface RotaryFields {
  readonly max_position_embeddings: number;
  readonly rope_theta?: number | null | undefined;
  readonly rope_scaling?: RotaryJson | null | undefined;
  readonly rope_parameters?: RotaryJson | null | undefined;
  readonly partial_rotary_factor?: number | null | undefined;
}

/** The rotary settings. @param partial the rotated fraction of each head, where the configuration does not state it */
export const rotaryOf = (
  c: RotaryFields,
  { headDim }: Pick<Heads, "headDim">,
  { partial = 1, theta = 10_000 } = {},
): RotaryConfig =>
  parseRotary({
    scaling: c.rope_scaling ?? c.rope_parameters,
    theta: c.rope_theta ?? theta,
    partial: c.partial_rotary_factor ?? partial,
    headDim,
    maxPositions: c.max_position_embeddings,
  });

/** The same with whole heads rotated, whatever the configuration says: not every family in transformers reads a fraction. */
export const wholeRotaryOf = (
  c: RotaryFields,
  heads: Pick<Heads, "headDim">,
  defaults?: { readonly theta?: number | undefined },
): RotaryConfig => {
  const { rope_scaling, rope_parameters } = c;
  const fields = {
    rope_scaling: whole(rope_scaling),
    rope_parameters: whole(rope_parameters),
    partial_rotary_factor: 1,
  };
  return rotaryOf({ ...c, ...fields }, heads, defaults);
};

const whole = <T extends object>(scaling: T | null | undefined) => scaling && { ...scaling, partial_rotary_factor: 1 };

/** Why llama.cpp cannot compute the heads, where its graph requires them to be as wide as the model; undefined if they are. */
export const tooWide = (
  family: string,
  { heads, headDim }: Heads,
  { hidden_size: hidden }: { readonly hidden_size: number },
): string | undefined =>
  heads * headDim === hidden
    ? undefined
    : `llama.cpp's graph for ${family} requires heads as wide as the model: ${heads} of ${headDim} are not ${hidden}`;

/** A note for models whose GELU llama.cpp approximates by tanh. */
export const geluNotes = (activation: string): string[] =>
  activation === "gelu"
    ? ["llama.cpp computes GELU by its tanh approximation here: logits differ slightly (under 0.0005 an activation)"]
    : [];
