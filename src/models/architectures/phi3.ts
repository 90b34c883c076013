import { z } from "zod";
import type { Architecture } from "../architecture.js";
import {
  alike,
  BASE_SIZES,
  baseConfig,
  baseFields,
  headsOf,
  preNormLayer,
  tooWide,
  widthsOf,
  windowNotes,
} from "../base.js";
import { attention } from "../blocks/attention.js";
import { gatedFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive, size } from "../config.js";
import type { GgufConfig } from "../gguf-config.js";
import { parseRotary } from "../rotary.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  max_position_embeddings: size.default(4096),
  original_max_position_embeddings: size.default(4096),
  rms_norm_eps: positive.default(1e-5),
  sliding_window: size.nullish(),
});

/** Phi-3 and 4: Llama with queries, keys and values in one matrix, gate and up in another, and perhaps heads that turn in part. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["silu"], "silu");
  const norm = { epsilon: c.rms_norm_eps };
  const { heads, kvHeads, headDim } = headsOf(c);
  const given = c.rope_scaling ?? c.rope_parameters ?? {};
  const type = given.rope_type ?? given.type ?? "default";
  const original = c.original_max_position_embeddings;
  const rotary = parseRotary({
    // older files call longrope "su" or "yarn"
    scaling:
      type === "default" ? given : { ...given, rope_type: "longrope", original_max_position_embeddings: original },
    theta: c.rope_theta ?? undefined,
    partial: c.partial_rotary_factor ?? undefined,
    headDim,
    maxPositions: c.max_position_embeddings,
  });
  const window = c.sliding_window ?? undefined;
  // transformers counts longrope's factors by the width's share of a head
  const prunable = rotary.kind !== "longrope";
  const mixer = attention({ heads, kvHeads, headDim, rotary, window, layout: "concatenated", prunable });
  const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: "silu", fused: true });
  const norms = [rmsNorm("attn_norm", norm), rmsNorm("ffn_norm", norm)] as const;
  return {
    ...widthsOf(c),
    layers: alike(c.num_hidden_layers, preNormLayer(mixer, feedForward, norms)),
    finalNorm: rmsNorm("output_norm", norm),
    // transformers counts longrope's factors by the width's share of a head
    hiddenAxis: { prunable },
    gguf: {
      architecture: "phi3",
      rotary,
      rotaryReads: { factors: true },
      refused: tooWide("Phi-3", heads, headDim, c.hidden_size),
      notes: windowNotes(window, c),
    },
  };
}

function configOf(read: GgufConfig): ConfigJson {
  const base = baseConfig(read, "phi3", "Phi3ForCausalLM");
  const turning = read.optional("rope.dimension_count") ?? read.headDim;
  const isLong = read.has("rope_factors_long.weight");
  return {
    ...base,
    ...(isLong && { rope_scaling: { ...(base.rope_scaling as object), type: "longrope" } }),
    original_max_position_embeddings:
      read.optional("rope.scaling.original_context_length") ?? base.max_position_embeddings,
    partial_rotary_factor: turning / read.headDim,
    hidden_act: "silu",
    sliding_window: null,
  };
}

export const phi3: Architecture = {
  name: "phi3",
  families: "Phi-3, 3.5, 4, 4-mini",
  modelTypes: ["phi3"],
  decoder,
  fields: BASE_SIZES,
  gguf: { architectures: ["phi3"], configOf },
};
