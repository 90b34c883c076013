import { z } from "zod";
import { type GgufValue, gguf } from "../../checkpoint/gguf.js";
import { attention, gatedFeedForward } from "../blocks/index.js";
import { positive, size } from "../config.js";
import { architecture, baseSchema, headsOf, rotaryOf } from "../family.js";
import type { GgufConfig } from "../gguf-config.js";
import { windowNotes } from "../layer-types.js";
import { preNormDecoder, rmsNorms } from "../layers.js";
import { type RotaryConfig, rotaryFrequencies, rotarySchema } from "../rotary.js";

const scaling = rotarySchema.extend({ llama_4_scaling_beta: z.number().nonnegative().nullish() });

/** Ministral 3: Mistral, with queries that grow with their position past the original context. */
export const ministral3 = architecture({
  name: "ministral3",
  families: "Ministral 3 (text, also within the models that see)",
  schema: baseSchema.extend({
    num_key_value_heads: size.nullable().default(8),
    head_dim: size.nullable().default(128),
    max_position_embeddings: size.default(262_144),
    rms_norm_eps: positive.default(1e-5),
    sliding_window: size.nullish(),
    rope_scaling: scaling.nullish(),
    rope_parameters: scaling.nullish(),
  }),
  decoder: (c) => {
    const heads = headsOf(c);
    const rotary = rotaryOf(c, heads, { theta: 1e6 });
    const original = rotary.settings.original_max_position_embeddings ?? c.max_position_embeddings;
    const beta = (c.rope_scaling ?? c.rope_parameters)?.llama_4_scaling_beta ?? 0;
    const growth = (position: number) => 1 + beta * Math.log(1 + Math.floor(position / original));
    const queryFactor = beta === 0 ? undefined : growth;
    const window = c.sliding_window ?? undefined;
    const mixer = attention({ ...heads, rotary, window, queryFactor, ggufInterleaved: true });
    const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: c.hidden_act });
    return {
      ...preNormDecoder(c, rmsNorms(c), () => [mixer, feedForward]),
      gguf: {
        architecture: "mistral3",
        rotary,
        rotaryReads: { factors: true, betas: true },
        metadata: {
          "attention.temperature_scale": beta === 0 ? undefined : gguf.float32(beta),
          ...(rotary.kind === "yarn" ? yarnMetadata(rotary) : {}),
        },
        notes: windowNotes(window, c),
      },
    };
  },
  gguf: {
    architectures: ["mistral3"],
    className: "Ministral3ForCausalLM",
    fields: (read, { rope_theta, rope_scaling }) => {
      const isYarn = read.string("rope.scaling.type") === "yarn";
      const scaled = isYarn
        ? yarnParameters(read)
        : { original_max_position_embeddings: read.number("context_length") };
      return {
        sliding_window: null,
        rope_theta: undefined,
        rope_scaling: undefined,
        rope_parameters: {
          rope_type: "default",
          rope_theta,
          ...rope_scaling,
          ...scaled,
          llama_4_scaling_beta: read.optional("attention.temperature_scale") ?? 0,
        },
      };
    },
  },
});

/** With a multiplier of 1, llama.cpp's own temperature is 1 and the factor is the model's. */
const yarnMetadata = (rotary: RotaryConfig): Record<string, GgufValue> => ({
  "rope.scaling.yarn_log_multiplier": gguf.float32(1),
  "rope.scaling.attn_factor": gguf.float32(rotaryFrequencies(rotary, 1).attentionFactor),
});

/** The attention factor, where llama.cpp's multiplier changes it. */
function yarnParameters(read: GgufConfig) {
  const multiplier = read.optional("rope.scaling.yarn_log_multiplier") ?? 0;
  if (multiplier === 0) return {};
  const logFactor = 0.1 * Math.log(read.optional("rope.scaling.factor") ?? 1);
  const temperature = (logFactor + 1) / (multiplier * logFactor + 1);
  return { attention_factor: (read.optional("rope.scaling.attn_factor") ?? 1) * temperature };
}
