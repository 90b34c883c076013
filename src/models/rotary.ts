import { z } from "zod";
import { FormatError } from "../system/errors.js";

/** How rotary frequencies are scaled for longer contexts, as in a checkpoint's `rope_scaling` / `rope_parameters`. */
const schema = z.looseObject({
  rope_type: z.string().optional(),
  type: z.string().optional(),
  rope_theta: z.number().positive().optional(),
  partial_rotary_factor: z.number().positive().max(1).optional(),
  factor: z.number().positive().nullish(),
  attention_factor: z.number().positive().nullish(),
  beta_fast: z.number().positive().nullish(),
  beta_slow: z.number().positive().nullish(),
  mscale: z.number().nullish(),
  mscale_all_dim: z.number().nullish(),
  truncate: z.boolean().nullish(),
  original_max_position_embeddings: z.number().int().positive().nullish(),
  low_freq_factor: z.number().positive().nullish(),
  high_freq_factor: z.number().positive().nullish(),
  short_factor: z.array(z.number().positive()).nullish(),
  long_factor: z.array(z.number().positive()).nullish(),
});

export const rotarySchema = schema;
export type RotaryJson = z.infer<typeof schema>;

/** The rotary settings of a model. */
export interface RotaryConfig {
  readonly kind: "default" | "linear" | "dynamic" | "yarn" | "longrope" | "llama3";
  readonly theta: number;
  /** Rotated channels of each head. */
  readonly rotaryDim: number;
  readonly maxPositions: number;
  readonly settings: RotaryJson;
}

const KINDS = ["default", "linear", "dynamic", "yarn", "longrope", "llama3"] as const;

/** Reads the settings. @throws FormatError for a kind or a combination that is not supported */
export function parseRotary(json: {
  readonly scaling: RotaryJson | null | undefined;
  readonly theta: number | undefined;
  readonly partial: number | undefined;
  readonly headDim: number;
  readonly maxPositions: number;
}): RotaryConfig {
  const settings = json.scaling ?? {};
  const named = settings.rope_type ?? settings.type ?? "default";
  const kind = KINDS.find((known) => known === (named === "su" ? "longrope" : named));
  if (kind === undefined)
    throw new FormatError(
      `config.json: rope_scaling of type "${named}" is not supported; supported are ${KINDS.join(", ")}`,
    );
  const partial = settings.partial_rotary_factor ?? json.partial ?? 1;
  const rotaryDim = Math.floor(json.headDim * partial);
  if (rotaryDim < 2 || rotaryDim % 2 !== 0)
    throw new FormatError(`config.json: ${rotaryDim} rotated channels in a head; their number must be even`);
  if (kind !== "default" && kind !== "longrope" && typeof settings.factor !== "number")
    throw new FormatError(`config.json: rope_scaling of type "${kind}" needs a "factor"`);
  return {
    kind,
    theta: settings.rope_theta ?? json.theta ?? 10_000,
    rotaryDim,
    maxPositions: json.maxPositions,
    settings,
  };
}

/** Inputs of the rope op, which rotates channel pair i by position · theta^(-2i/rotaryDim) / factors[i]. */
export interface RotaryFrequencies {
  readonly theta: number;
  readonly factors: Float32Array;
  readonly attentionFactor: number;
}

/** The frequencies for a sequence length. */
export function rotaryFrequencies(config: RotaryConfig, sequenceLength: number): RotaryFrequencies {
  const { theta, rotaryDim } = config;
  const base = Float64Array.from({ length: rotaryDim / 2 }, (_, i) => theta ** ((-2 * i) / rotaryDim));
  const { inverse, attentionFactor = 1 } = SCALINGS[config.kind](config, base, sequenceLength);
  return {
    theta,
    factors: Float32Array.from(base, (frequency, i) => frequency / (inverse[i] ?? frequency)),
    attentionFactor,
  };
}

interface Scaled {
  readonly inverse: Float64Array;
  readonly attentionFactor?: number | undefined;
}

type Scaling = (config: RotaryConfig, base: Float64Array, sequenceLength: number) => Scaled;

/** How each kind scales the inverse frequencies. */
const SCALINGS: Record<RotaryConfig["kind"], Scaling> = {
  default: (_config, base) => ({ inverse: base }),

  /** Position interpolation (Chen et al. 2023). */
  linear: ({ settings }, base) => ({ inverse: base.map((f) => f / (settings.factor ?? 1)) }),

  /** Dynamic NTK: theta grows with the length past what the model was trained for. */
  dynamic: ({ settings, theta, rotaryDim, maxPositions }, _base, sequenceLength) => {
    const factor = settings.factor ?? 1;
    const length = Math.max(sequenceLength, maxPositions);
    const grown = theta * ((factor * length) / maxPositions - (factor - 1)) ** (rotaryDim / (rotaryDim - 2));
    return { inverse: Float64Array.from({ length: rotaryDim / 2 }, (_, i) => grown ** ((-2 * i) / rotaryDim)) };
  },

  /** YaRN (Peng et al. 2023, section 3.2): low frequencies interpolated, high ones kept, a ramp between. */
  yarn: ({ settings, theta, rotaryDim, maxPositions }, base) => {
    const original = settings.original_max_position_embeddings ?? maxPositions;
    const factor = settings.factor ?? maxPositions / original;
    const temperature = (scale: number, mscale: number) => (scale <= 1 ? 1 : 0.1 * mscale * Math.log(scale) + 1);
    const { mscale, mscale_all_dim } = settings;
    const attentionFactor =
      settings.attention_factor ??
      (mscale && mscale_all_dim
        ? temperature(factor, mscale) / temperature(factor, mscale_all_dim)
        : temperature(factor, 1));
    const channelOf = (rotations: number) =>
      (rotaryDim * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
    let low = channelOf(settings.beta_fast ?? 32);
    let high = channelOf(settings.beta_slow ?? 1);
    if (settings.truncate ?? true) [low, high] = [Math.floor(low), Math.ceil(high)];
    low = Math.max(low, 0);
    high = Math.min(high, rotaryDim - 1);
    if (low === high) high += 0.001;
    const inverse = base.map((f, i) => {
      const interpolated = Math.min(1, Math.max(0, (i - low) / (high - low)));
      return (f / factor) * interpolated + f * (1 - interpolated);
    });
    return { inverse, attentionFactor };
  },

  /** LongRoPE (Ding et al. 2024): searched factors per channel, one set for short and one for long contexts. */
  longrope: ({ settings, maxPositions }, base, sequenceLength) => {
    const original = settings.original_max_position_embeddings ?? maxPositions;
    const factor = settings.factor ?? maxPositions / original;
    const attentionFactor =
      settings.attention_factor ?? (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original)));
    const factors = sequenceLength > original ? settings.long_factor : settings.short_factor;
    if (factors?.length !== base.length)
      throw new FormatError(`config.json: longrope needs short_factor and long_factor of ${base.length} numbers`);
    return { inverse: base.map((f, i) => f / (factors[i] ?? 1)), attentionFactor };
  },

  /** Llama 3.1's: wavelengths past the original context are stretched, with a smooth transition. */
  llama3: ({ settings, maxPositions }, base) => {
    const factor = settings.factor ?? 1;
    const lowFactor = settings.low_freq_factor ?? 1;
    const highFactor = settings.high_freq_factor ?? 4;
    const original = settings.original_max_position_embeddings ?? maxPositions;
    const inverse = base.map((f) => {
      const wavelength = (2 * Math.PI) / f;
      if (wavelength > original / lowFactor) return f / factor;
      if (wavelength < original / highFactor) return f;
      const smooth = (original / wavelength - lowFactor) / (highFactor - lowFactor);
      return ((1 - smooth) * f) / factor + smooth * f;
    });
    return { inverse };
  },
};
