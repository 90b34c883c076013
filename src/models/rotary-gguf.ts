import { type GgufValue, gguf } from "../checkpoint/gguf.js";
import { FormatError } from "../system/errors.js";
import { type GgufConfig, shortest } from "./gguf-config.js";
import type { DerivedTensor, GgufFacts } from "./gguf-layout.js";
import { type RotaryConfig, type RotaryJson, rotaryFrequencies } from "./rotary.js";

/** Writing rotary scalings to GGUF files, and reading them back. */

interface RotaryLayout {
  /** By key without the architecture. */
  readonly metadata: Readonly<Record<string, GgufValue>>;
  readonly derived: readonly DerivedTensor[];
  readonly notes: readonly string[];
}

const EMPTY: RotaryLayout = { metadata: {}, derived: [], notes: [] };
const derived = (name: string, values: Float32Array): DerivedTensor => ({ name, shape: [values.length], values });

/**
 * What a GGUF file says of a rotary scaling.
 * @param reads what llama.cpp's graph of the architecture reads
 * @throws FormatError for a scaling that the graph does not support
 */
export function rotaryLayout(
  rotary: RotaryConfig,
  architecture: string,
  reads: GgufFacts["rotaryReads"] = {},
): RotaryLayout {
  if ((rotary.kind === "llama3" || rotary.kind === "longrope") && reads.factors !== true)
    throw new FormatError(
      `llama.cpp's graph for ${architecture} does not support rotary scaling of type "${rotary.kind}"`,
    );
  const { kind, settings, maxPositions } = rotary;
  const original = settings.original_max_position_embeddings ?? maxPositions;
  const factor = settings.factor ?? maxPositions / original;
  const factors = (length: number) => rotaryFrequencies(rotary, length).factors;
  switch (kind) {
    case "default":
      return EMPTY;
    case "dynamic":
      return {
        ...EMPTY,
        notes: [`llama.cpp has no dynamic rotary scaling: texts longer than ${maxPositions} tokens differ`],
      };
    case "linear":
      return {
        ...EMPTY,
        metadata: { "rope.scaling.type": gguf.string("linear"), "rope.scaling.factor": gguf.float32(factor) },
      };
    case "llama3":
      return { ...EMPTY, derived: [derived("rope_freqs.weight", factors(1))] };
    case "yarn":
      return yarnLayout(rotary, { factor, original, readsBetas: reads.betas === true });
    case "longrope":
      return {
        metadata: {
          "rope.scaling.type": gguf.string("longrope"),
          "rope.scaling.original_context_length": gguf.uint32(original),
          "rope.scaling.attn_factor": gguf.float32(rotaryFrequencies(rotary, 1).attentionFactor),
        },
        derived: [
          derived("rope_factors_long.weight", factors(original + 1)),
          derived("rope_factors_short.weight", factors(1)),
        ],
        notes: ["llama.cpp chooses between long and short rotary factors by the size of the context, not of the text"],
      };
  }
}

/** What llama.cpp itself multiplies scores' scale by. */
const yarnTemperature = (factor: number): number => 1 + 0.1 * Math.log(factor);

function yarnLayout(
  rotary: RotaryConfig,
  { factor, original, readsBetas }: { factor: number; original: number; readsBetas: boolean },
): RotaryLayout {
  const { settings } = rotary;
  const [fast, slow] = [settings.beta_fast ?? 32, settings.beta_slow ?? 1];
  const { attentionFactor } = rotaryFrequencies(rotary, 1);
  const notes: string[] = [];
  if (settings.truncate === false)
    notes.push("llama.cpp rounds the ends of YaRN's ramp, this model does not: results differ slightly");
  if (!readsBetas && (fast !== 32 || slow !== 1))
    notes.push(`llama.cpp uses 32 and 1 for YaRN's betas, this model has ${fast} and ${slow}: results differ`);
  return {
    ...EMPTY,
    metadata: {
      "rope.scaling.type": gguf.string("yarn"),
      "rope.scaling.factor": gguf.float32(factor),
      "rope.scaling.original_context_length": gguf.uint32(original),
      "rope.scaling.attn_factor": gguf.float32(attentionFactor / yarnTemperature(factor)),
      "rope.scaling.yarn_beta_fast": gguf.float32(fast),
      "rope.scaling.yarn_beta_slow": gguf.float32(slow),
    },
    notes,
  };
}

interface RotaryFacts {
  readonly theta: number;
  readonly rotaryDim: number;
  readonly maxPositions: number;
}

/** The rotary scaling that a file describes. @throws FormatError for one that is not supported */
export function rotaryScaling(read: GgufConfig, facts: RotaryFacts): RotaryJson | undefined {
  const optional = (name: string) => read.optional(`rope.scaling.${name}`);
  const [long, short] = ["long", "short"].map((kind) => read.values(`rope_factors_${kind}.weight`));
  // llama.cpp takes such factors whatever the type, which its converter leaves out
  const type = long === undefined ? (read.string("rope.scaling.type") ?? "linear") : "longrope";
  const factor = optional("factor") ?? read.optional("rope.scale_linear"); // older files have that key
  const original = optional("original_context_length") ?? facts.maxPositions;
  const frequencies = read.values("rope_freqs.weight");
  if (frequencies !== undefined) return llama3Scaling(frequencies, facts);
  if (type === "linear") return factor === undefined || factor === 1 ? undefined : { rope_type: "linear", factor };
  if (type === "none") return undefined;
  if (type === "yarn" && factor !== undefined)
    return {
      rope_type: "yarn",
      factor,
      original_max_position_embeddings: original,
      attention_factor: shortest((optional("attn_factor") ?? 1) * yarnTemperature(factor)),
      beta_fast: optional("yarn_beta_fast") ?? 32,
      beta_slow: optional("yarn_beta_slow") ?? 1,
    };
  if (type === "longrope" && long !== undefined && short !== undefined)
    return {
      rope_type: "longrope",
      original_max_position_embeddings: original,
      attention_factor: optional("attn_factor") ?? 1,
      long_factor: [...long].map(shortest),
      short_factor: [...short].map(shortest),
    };
  throw new FormatError(
    `${read.path}: a rotary scaling of type "${type}" is not supported, or lacks a key that it needs`,
  );
}

/** Llama 3's published settings if the factors match them, otherwise the factors themselves. */
function llama3Scaling(factors: Float32Array, { theta, rotaryDim, maxPositions }: RotaryFacts): RotaryJson {
  const settings: RotaryJson = {
    rope_type: "llama3",
    factor: shortest(factors.reduce((a, b) => Math.max(a, b), 1)),
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 8192,
  };
  if (factors.length !== rotaryDim / 2)
    throw new FormatError(
      `${factors.length} rotary factors are not one for each of ${rotaryDim / 2} pairs of channels`,
    );
  const expected = rotaryFrequencies({ kind: "llama3", theta, rotaryDim, maxPositions, settings }, 1).factors;
  const match = factors.every((factor, i) => {
    const value = expected[i];
    return value !== undefined && Math.abs(value - factor) < 1e-4 * value;
  });
  if (match) return settings;
  const list = [...factors].map(shortest);
  return {
    rope_type: "longrope",
    attention_factor: 1,
    original_max_position_embeddings: maxPositions,
    factor: 1,
    long_factor: list,
    short_factor: list,
  };
}
