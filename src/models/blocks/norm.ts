import { type Graph, ops, type Tensor } from "../../tensor/index.js";
import type { Axis } from "../dimensions.js";
import { type Block, FREE, type Parameter } from "./block.js";

/** A normalization. */
export interface NormOptions {
  /** Added to the mean square, or to the variance. */
  readonly epsilon: number;
  /** The stored gain is one less than the gain (Gemma, Nemotron). */
  readonly plusOne?: boolean | undefined;
  /** The normalized axis; the model's width by default. */
  readonly over?: Axis | undefined;
  /** Multiplies the gain in GGUF files. */
  readonly ggufFactor?: number | undefined;
}

/** The gain's parameter. GGUF files hold the gain itself, never less one. */
const gainOf = (gguf: string, { plusOne = false, over = "hidden", ggufFactor }: NormOptions): Parameter => ({
  axes: [over],
  initialization: plusOne ? "zeros" : "ones",
  gguf: { name: gguf, offset: plusOne ? 1 : undefined, factor: ggufFactor },
});

const gainFrom = (g: Graph, stored: Tensor, plusOne: boolean): Tensor =>
  plusOne ? ops.scale(g, stored, { factor: 1, bias: 1 }) : stored;

const scoresOf = ({ over = "hidden" }: NormOptions): Block["scores"] =>
  over === "hidden" ? [{ dimension: "hidden", tap: "output" }] : [];

/** Root-mean-square normalization of rows with a gain (Zhang & Sennrich 2019, eq. 4). @param gguf its name in GGUF files */
export function rmsNorm(gguf: string, options: NormOptions): Block {
  const { epsilon, plusOne = false, over = "hidden" } = options;
  return {
    dimensions: {},
    parameters: { weight: gainOf(gguf, options) },
    scores: scoresOf(options),
    metadata: { "attention.layer_norm_rms_epsilon": epsilon },
    cost: () => FREE,
    rmsGainOffset: over === "hidden" ? Number(plusOne) : undefined,
    forward: ({ g, weight, tap }, x) => {
      const gain = gainFrom(g, weight("weight"), plusOne);
      const y = ops.rmsNormGain(g, x, gain, { epsilon });
      tap("output", y);
      return y;
    },
  };
}

/** Normalization of rows to mean 0 and variance 1, with a gain and optionally a bias (Ba et al. 2016, eq. 4). */
export function layerNorm(gguf: string, options: NormOptions & { readonly bias: boolean }): Block {
  const { epsilon, plusOne = false, bias, over = "hidden" } = options;
  const biases: Record<string, Parameter> = bias
    ? { bias: { axes: [over], initialization: "zeros", gguf: { name: gguf, kind: "bias" } } }
    : {};
  return {
    dimensions: {},
    parameters: { weight: gainOf(gguf, options), ...biases },
    scores: scoresOf(options),
    metadata: { "attention.layer_norm_epsilon": epsilon },
    cost: () => FREE,
    forward: ({ g, weight, tap }, x) => {
      const gain = gainFrom(g, weight("weight"), plusOne);
      const y = ops.layerNorm(g, x, gain, bias ? weight("bias") : undefined, { epsilon });
      tap("output", y);
      return y;
    },
  };
}
