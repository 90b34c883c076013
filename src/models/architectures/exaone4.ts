import { z } from "zod";
import { attention, gatedFeedForward } from "../blocks/index.js";
import { positive, size } from "../config.js";
import { architecture, baseSchema, headsOf, tooWide, wholeRotaryOf } from "../family.js";
import { type LayerType, layerTypes, layerTypesOf, windowMetadata, windowsOf } from "../layer-types.js";
import { postNormDecoder, rmsNorms } from "../layers.js";

/** llama.cpp's graph has windows only in models of this many layers. */
const LAYERS_OF_WINDOWS = 64;

/** EXAONE 4: norms only after the blocks. If some layers have a window, the others do not rotate. */
export const exaone4 = architecture({
  name: "exaone4",
  families: "EXAONE 4.0",
  schema: baseSchema.extend({
    num_key_value_heads: size.nullable().default(32),
    rms_norm_eps: positive.default(1e-5),
    sliding_window: size.nullable().default(4096),
    sliding_window_pattern: z
      .union([z.number().int().nonnegative(), z.string().regex(/^[LG]+$/)])
      .nullable()
      .default(4),
    layer_types: layerTypes.nullish(),
  }),
  decoder: (c) => {
    const heads = headsOf(c);
    const window = c.sliding_window ?? undefined;
    const pattern = c.sliding_window_pattern || undefined;
    const isWindowed = (i: number): boolean =>
      typeof pattern === "string"
        ? pattern[i % pattern.length] === "L"
        : pattern !== undefined && (i + 1) % pattern !== 0;
    const types = layerTypesOf(c, (i) => window !== undefined && isWindowed(i));
    const rotary = wholeRotaryOf(c, heads);
    const norms = { of: "head", epsilon: c.rms_norm_eps } as const;
    const windowed = attention({ ...heads, rotary, window, norms });
    const full = attention({ ...heads, rotary: window === undefined ? rotary : undefined, norms });
    const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: c.hidden_act });
    const mixerOf = (i: number) => (types[i] === "sliding_attention" ? windowed : full);
    return {
      ...postNormDecoder(c, rmsNorms(c), (i) => [mixerOf(i), feedForward]),
      perLayer: { layer_types: types },
      gguf: {
        architecture: "exaone4",
        rotary,
        rotaryReads: { factors: true },
        metadata: windowsForGguf(types, window, c.max_position_embeddings),
        refused: tooWide("EXAONE 4", heads, c) ?? refusal(types, window),
      },
    };
  },
  gguf: {
    className: "Exaone4ForCausalLM",
    fields: (read) => {
      const { layer_types, sliding_window } = windowsOf(read, 4, 4096);
      const reachesAll = sliding_window >= read.number("context_length") && !layer_types.includes("full_attention");
      if (read.layers === LAYERS_OF_WINDOWS && !reachesAll) return { layer_types, sliding_window };
      return { layer_types: layer_types.map(() => "full_attention"), sliding_window: null };
    },
  },
});

/** The graph reads windows only at 64 layers. A window as long as the context then means none, and that all layers rotate. */
function windowsForGguf(types: readonly LayerType[], window: number | undefined, context: number) {
  if (types.length !== LAYERS_OF_WINDOWS) return undefined;
  const allWindowed = types.map((): LayerType => "sliding_attention");
  return window === undefined ? windowMetadata(allWindowed, context) : windowMetadata(types, window);
}

const refusal = (types: readonly LayerType[], window: number | undefined): string | undefined =>
  window === undefined || types.length === LAYERS_OF_WINDOWS
    ? undefined
    : `llama.cpp's graph for EXAONE 4 supports windows only in models of ${LAYERS_OF_WINDOWS} layers, not ${types.length}: do not cut layers`;
