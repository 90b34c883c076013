import { z } from "zod";
import { type GgufValue, gguf } from "../checkpoint/gguf.js";
import { entryOf } from "./config.js";
import type { Heads } from "./family.js";
import type { GgufConfig } from "./gguf-config.js";
import { parseRotary, type RotaryConfig, type RotaryJson, rotarySchema } from "./rotary.js";

/** Layers that read all before them beside layers that read a window: how configurations and GGUF files list them. */

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
  { headDim }: Heads,
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

/** What differs where llama.cpp's graph has no window. */
export const windowNotes = (
  window: number | undefined,
  c: { readonly max_position_embeddings: number },
  who = "this architecture",
): string[] =>
  window === undefined || window >= c.max_position_embeddings
    ? []
    : [`llama.cpp lets ${who} attend past its window of ${window} tokens: longer texts differ`];

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
