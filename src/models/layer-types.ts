import { z } from "zod";
import { type GgufValue, gguf } from "../checkpoint/gguf.js";
import { entryOf } from "./config.js";
import type { Heads } from "./family.js";
import type { GgufConfig } from "./gguf-config.js";
import { parseRotary, type RotaryConfig, type RotaryJson, rotarySchema } from "./rotary.js";

/** Layers with full attention beside layers with a sliding window, as configurations and GGUF files list them. */

export const layerTypes = z.array(z.enum(["full_attention", "sliding_attention"]));
export type LayerType = z.infer<typeof layerTypes>[number];

/** The type of each layer: as listed, or by a rule if there is no list. @throws FormatError for a list of another length */
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

/** Rotary settings for each type of layer, or for all. */
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
 * The rotary settings of each type of layer, from nested settings or older fields; the scaling of the latter applies to full
 * attention only.
 * @param thetas defaults
 */
export function rotaryPerType(
  c: NestedFields,
  { headDim }: Heads,
  thetas: Readonly<Record<LayerType, number>>,
): Readonly<Record<LayerType, RotaryConfig>> {
  const parameters = c.rope_parameters ?? undefined;
  const isNested = parameters !== undefined && "full_attention" in parameters;
  const nested = isNested ? (parameters as Record<LayerType, RotaryJson>) : undefined;
  const rotaryFor = (type: LayerType): RotaryConfig => {
    const isFull = type === "full_attention";
    const flat = isFull ? (c.rope_scaling ?? (parameters as RotaryJson | undefined)) : undefined;
    const theta = isFull ? (c.rope_theta ?? thetas[type]) : thetas[type];
    return parseRotary({
      scaling: nested?.[type] ?? flat,
      theta: nested === undefined ? theta : thetas[type],
      partial: undefined,
      headDim,
      maxPositions: c.max_position_embeddings,
    });
  };
  return { full_attention: rotaryFor("full_attention"), sliding_attention: rotaryFor("sliding_attention") };
}

/** A note for models whose window llama.cpp's graph ignores. */
export const windowNotes = (
  window: number | undefined,
  c: { readonly max_position_embeddings: number },
  subject = "this architecture",
): string[] =>
  window === undefined || window >= c.max_position_embeddings
    ? []
    : [`llama.cpp lets ${subject} attend past its window of ${window} tokens: longer texts differ`];

/** Metadata on which layers have a window; none if no layer has one. */
export const windowMetadata = (types: readonly LayerType[], window: number): Record<string, GgufValue> =>
  types.includes("sliding_attention")
    ? {
        "attention.sliding_window": gguf.uint32(window),
        "attention.sliding_window_pattern": {
          kind: "array",
          of: "bool",
          value: types.map((type) => type === "sliding_attention"),
        },
      }
    : {};

/**
 * The type of each layer and the window, from a GGUF file.
 * @param every the default pattern: the last of this many layers has full attention
 * @param unset the window where the file states none
 */
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
