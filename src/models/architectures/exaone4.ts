import { z } from "zod";
import type { Architecture } from "../architecture.js";
import {
  BASE_SIZES,
  baseConfig,
  baseFields,
  headsOf,
  type LayerType,
  layerTypes,
  layerTypesOf,
  tooWide,
  wholeRotaryOf,
  widthsOf,
  windowMetadata,
  windowsOf,
} from "../base.js";
import { attention } from "../blocks/attention.js";
import { gatedFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive, size } from "../config.js";
import type { GgufConfig } from "../gguf-config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  num_key_value_heads: size.nullable().default(32),
  rms_norm_eps: positive.default(1e-5),
  sliding_window: size.nullable().default(4096),
  sliding_window_pattern: z
    .union([z.number().int().nonnegative(), z.string().regex(/^[LG]+$/)])
    .nullable()
    .default(4),
  layer_types: layerTypes.nullish(),
});

/** llama.cpp's graph knows windows in the model of so many layers only. */
const LAYERS_OF_WINDOWS = 64;

/** EXAONE 4: norms after the blocks only. Where some layers have a window, the others do not turn. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["silu"], "silu");
  const norm = { epsilon: c.rms_norm_eps };
  const { heads, kvHeads, headDim } = headsOf(c);
  const window = c.sliding_window ?? undefined;
  const pattern = c.sliding_window_pattern || undefined;
  const isWindowed = (i: number): boolean =>
    typeof pattern === "string" ? pattern[i % pattern.length] === "L" : (i + 1) % (pattern ?? 1) !== 0;
  const kinds = layerTypesOf(c, (i) => window !== undefined && isWindowed(i));
  const rotary = wholeRotaryOf(c, headDim);
  const mixerOf = (kind: LayerType) => {
    const turns = window === undefined || kind === "sliding_attention";
    return attention({
      heads,
      kvHeads,
      headDim,
      rotary: turns ? rotary : undefined,
      window: kind === "sliding_attention" ? window : undefined,
      norms: { of: "head", epsilon: c.rms_norm_eps },
    });
  };
  const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: "silu" });
  return {
    ...widthsOf(c),
    layers: kinds.map((kind) => ({
      residuals: [
        {
          block: ["self_attn", mixerOf(kind)],
          after: ["post_attention_layernorm", rmsNorm("post_attention_norm", norm)],
        },
        { block: ["mlp", feedForward], after: ["post_feedforward_layernorm", rmsNorm("post_ffw_norm", norm)] },
      ],
    })),
    finalNorm: rmsNorm("output_norm", norm),
    perLayer: { layer_types: kinds },
    gguf: {
      architecture: "exaone4",
      rotary,
      rotaryReads: { factors: true },
      ...windowsInGguf(kinds, window, c.max_position_embeddings),
      refused: tooWide("EXAONE 4", heads, headDim, c.hidden_size) ?? refusal(kinds, window),
    },
  };
}

/** The graph reads windows at 64 layers only; one past the context then means none, and that all layers turn. */
function windowsInGguf(kinds: readonly LayerType[], window: number | undefined, context: number) {
  if (kinds.length !== LAYERS_OF_WINDOWS) return {};
  const all = kinds.map((): LayerType => "sliding_attention");
  return { metadata: window === undefined ? windowMetadata(all, context) : windowMetadata(kinds, window) };
}

const refusal = (kinds: readonly LayerType[], window: number | undefined): string | undefined =>
  window === undefined || kinds.length === LAYERS_OF_WINDOWS
    ? undefined
    : `llama.cpp's graph for EXAONE 4 knows windows in models of ${LAYERS_OF_WINDOWS} layers only, not of ${kinds.length}: cut other axes than layers`;

function configOf(read: GgufConfig): ConfigJson {
  const base = { ...baseConfig(read, "exaone4", "Exaone4ForCausalLM"), hidden_act: "silu" };
  const { layers } = read;
  const { layer_types, sliding_window } = windowsOf(read, 4, 4096);
  const reachesAll = sliding_window >= read.number("context_length") && !layer_types.includes("full_attention");
  if (layers === LAYERS_OF_WINDOWS && !reachesAll) return { ...base, layer_types, sliding_window };
  return { ...base, layer_types: layer_types.map(() => "full_attention"), sliding_window: null };
}

export const exaone4: Architecture = {
  name: "exaone4",
  families: "EXAONE 4.0",
  modelTypes: ["exaone4"],
  decoder,
  fields: BASE_SIZES,
  gguf: { architectures: ["exaone4"], configOf },
};
