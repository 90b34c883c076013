import { z } from "zod";
import { gguf } from "../../checkpoint/gguf.js";
import type { Architecture } from "../architecture.js";
import {
  alike,
  BASE_SIZES,
  baseConfig,
  baseFields,
  headsOf,
  preNormLayer,
  rotaryOf,
  widthsOf,
  windowNotes,
} from "../base.js";
import { attention } from "../blocks/attention.js";
import { gatedFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive, size } from "../config.js";
import type { GgufConfig } from "../gguf-config.js";
import { rotaryFrequencies, rotarySchema } from "../rotary.js";
import type { DecoderSpec } from "../spec.js";

const scaling = rotarySchema.extend({ llama_4_scaling_beta: z.number().nonnegative().nullish() });

const schema = z.looseObject({
  ...baseFields,
  num_key_value_heads: size.nullable().default(8),
  head_dim: size.nullable().default(128),
  max_position_embeddings: size.default(262_144),
  rms_norm_eps: positive.default(1e-5),
  sliding_window: size.nullish(),
  rope_scaling: scaling.nullish(),
  rope_parameters: scaling.nullish(),
});

/** Ministral 3: Mistral whose queries grow with their position past the context it was first trained on. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["silu"], "silu");
  const norm = { epsilon: c.rms_norm_eps };
  const { heads, kvHeads, headDim } = headsOf(c);
  const rotary = rotaryOf(c, headDim, { theta: 1e6 });
  const original = rotary.settings.original_max_position_embeddings ?? c.max_position_embeddings;
  const beta = (c.rope_scaling ?? c.rope_parameters)?.llama_4_scaling_beta ?? 0;
  const growth = (position: number) => 1 + beta * Math.log(1 + Math.floor(position / original));
  const window = c.sliding_window ?? undefined;
  const mixer = attention({
    heads,
    kvHeads,
    headDim,
    rotary,
    window,
    queryFactor: beta === 0 ? undefined : growth,
    ggufInterleaved: true,
  });
  const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: "silu" });
  const norms = [rmsNorm("attn_norm", norm), rmsNorm("ffn_norm", norm)] as const;
  return {
    ...widthsOf(c),
    layers: alike(c.num_hidden_layers, preNormLayer(mixer, feedForward, norms)),
    finalNorm: rmsNorm("output_norm", norm),
    gguf: {
      architecture: "mistral3",
      rotary,
      rotaryReads: { factors: true, betas: true },
      metadata: {
        "attention.temperature_scale": beta === 0 ? undefined : gguf.float32(beta),
        ...(rotary.kind === "yarn" && {
          // with a multiplier of 1 llama.cpp's own temperature is 1, and the factor is the model's
          "rope.scaling.yarn_log_multiplier": gguf.float32(1),
          "rope.scaling.attn_factor": gguf.float32(rotaryFrequencies(rotary, 1).attentionFactor),
        }),
      },
      notes: windowNotes(window, c),
    },
  };
}

function configOf(read: GgufConfig): ConfigJson {
  const { rope_theta, rope_scaling, ...base } = baseConfig(read, "ministral3", "Ministral3ForCausalLM");
  const multiplier = read.optional("rope.scaling.yarn_log_multiplier") ?? 0;
  const factor = read.optional("rope.scaling.factor") ?? 1;
  const own = multiplier === 0 ? 1 : (0.1 * Math.log(factor) + 1) / (0.1 * multiplier * Math.log(factor) + 1);
  const isYarn = read.string("rope.scaling.type") === "yarn";
  return {
    ...base,
    hidden_act: "silu",
    sliding_window: null,
    rope_parameters: {
      rope_type: "default",
      rope_theta,
      ...(rope_scaling as object | undefined),
      ...(isYarn && multiplier !== 0 && { attention_factor: (read.optional("rope.scaling.attn_factor") ?? 1) * own }),
      llama_4_scaling_beta: read.optional("attention.temperature_scale") ?? 0,
      ...(!isYarn && { original_max_position_embeddings: read.number("context_length") }),
    },
  };
}

export const ministral3: Architecture = {
  name: "ministral3",
  families: "Ministral 3 (text, also within the models that see)",
  modelTypes: ["ministral3"],
  decoder,
  fields: BASE_SIZES,
  gguf: { architectures: ["mistral3"], configOf },
};
