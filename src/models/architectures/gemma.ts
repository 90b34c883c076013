import { z } from "zod";
import { gguf } from "../../checkpoint/gguf.js";
import { attention, gatedFeedForward } from "../blocks/index.js";
import { type ConfigJson, choice, flag, layerCount, positive, size } from "../config.js";
import { architecture, baseSchema, checkWidth, type Heads, headsOf } from "../family.js";
import type { GgufConfig } from "../gguf-config.js";
import {
  type LayerType,
  layerTypes,
  layerTypesOf,
  nestedRotary,
  rotaryPerType,
  windowMetadata,
  windowsOf,
} from "../layer-types.js";
import { rmsNorms, sandwichDecoder } from "../layers.js";
import type { RotaryConfig, RotaryJson } from "../rotary.js";
import type { DecoderSpec } from "../spec.js";

/**
 * What differs between the versions: after how many layers one has full attention, defaults, and the depth at which llama.cpp
 * scales scores differently.
 */
const VERSIONS = {
  2: { every: 2, maxPositions: 8192, caps: { attention: 50, logits: 30 }, oddDepth: 46, unsetWindow: 4096 },
  3: { every: 6, maxPositions: 131_072, caps: { attention: null, logits: null }, oddDepth: 62, unsetWindow: 0 },
} as const;
type Version = keyof typeof VERSIONS;

/** llama.cpp divides scores by the root of the head size, but at one depth of each version by that of the width per head. */
function ggufScale(version: Version, model: { depth: number; hidden: number; heads: number; headDim: number }): number {
  const { depth, hidden, heads, headDim } = model;
  return (depth === VERSIONS[version].oddDepth ? Math.floor(hidden / heads) : headDim) ** -0.5;
}

/** A cap so high that it changes nothing: llama.cpp's Gemma 2 always has one. */
const NO_CAP = 1e4;

const NORM_NAMES = [
  "input_layernorm",
  "post_attention_layernorm",
  "pre_feedforward_layernorm",
  "post_feedforward_layernorm",
] as const;

const schemaOf = ({ every, maxPositions, caps }: (typeof VERSIONS)[Version]) =>
  // published configurations also have hidden_act, which transformers does not read
  baseSchema.omit({ hidden_act: true }).extend({
    vocab_size: size.default(262_208),
    hidden_size: size.default(2304),
    intermediate_size: size.default(9216),
    num_hidden_layers: layerCount.default(26),
    num_attention_heads: size.default(8),
    num_key_value_heads: size.default(4),
    head_dim: size.default(256),
    hidden_activation: choice("gelu_pytorch_tanh"),
    max_position_embeddings: size.default(maxPositions),
    tie_word_embeddings: flag(true),
    query_pre_attn_scalar: positive.default(256),
    sliding_window: size.default(4096),
    sliding_window_pattern: size.default(every),
    layer_types: layerTypes.nullish(),
    // embedding models, whose queries read later keys
    use_bidirectional_attention: z.literal(false).nullish(),
    rope_parameters: nestedRotary.nullish(),
    rope_local_base_freq: positive.nullish(),
    attn_logit_softcapping: positive.nullable().default(caps.attention),
    final_logit_softcapping: positive.nullable().default(caps.logits),
  });

type Config = z.infer<ReturnType<typeof schemaOf>>;

/** Version 2 has the same rotary settings in all layers. */
function rotaryOf(version: Version, c: Config, heads: Heads): Readonly<Record<LayerType, RotaryConfig>> {
  if (version === 3)
    return rotaryPerType(c, heads, { full_attention: 1e6, sliding_attention: c.rope_local_base_freq ?? 1e4 });
  const theta = c.rope_theta ?? 1e4;
  const { full_attention } = rotaryPerType(c, heads, { full_attention: theta, sliding_attention: theta });
  return { full_attention, sliding_attention: full_attention };
}

function decoder(version: Version, c: Config): DecoderSpec {
  const heads = headsOf(c);
  const types = layerTypesOf(c, (i) => (i + 1) % c.sliding_window_pattern !== 0);
  const rotary = rotaryOf(version, c, heads);
  const scale = c.query_pre_attn_scalar ** -0.5;
  const softCap = version === 2 ? (c.attn_logit_softcapping ?? undefined) : undefined;
  const logitCap = c.final_logit_softcapping ?? undefined;
  const norms = { of: "head", epsilon: c.rms_norm_eps, plusOne: true } as const;
  const shared = {
    ...heads,
    scale,
    softCap,
    norms: version === 3 ? norms : undefined,
    ggufQueryScale: scale / ggufScale(version, { ...heads, depth: types.length, hidden: c.hidden_size }),
  };
  checkWidth(c, heads);
  const mixers = {
    full_attention: attention({ ...shared, rotary: rotary.full_attention }),
    sliding_attention: attention({ ...shared, rotary: rotary.sliding_attention, window: c.sliding_window }),
  };
  const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: c.hidden_activation });
  const blocksOf = (i: number) => [mixers[types[i] ?? "full_attention"], feedForward] as const;
  return {
    ...sandwichDecoder(c, rmsNorms(c, { plusOne: true }), blocksOf, NORM_NAMES),
    needsBeginToken: true,
    embeddingScale: Math.sqrt(c.hidden_size),
    logitCap,
    hiddenAxis: { prunable: true, multipleOf: heads.heads }, // transformers rejects others
    perLayer: { layer_types: types },
    gguf: {
      architecture: `gemma${version}`,
      rotary: rotary.full_attention,
      metadata: {
        ...windowMetadata(types, c.sliding_window),
        "rope.freq_base": gguf.float32(rotary.full_attention.theta),
        "rope.freq_base_swa": gguf.float32(rotary.sliding_attention.theta),
        final_logit_softcapping: gguf.float32(logitCap ?? (version === 3 ? 0 : NO_CAP)),
        attn_logit_softcapping: version === 2 ? gguf.float32(softCap ?? NO_CAP) : undefined,
      },
      refused:
        version === 2 && !c.tie_word_embeddings ? "llama.cpp's Gemma 2 has no output head of its own" : undefined,
    },
  };
}

interface BaseFields {
  readonly rope_theta: number;
  readonly rope_scaling: RotaryJson | undefined;
}

function fieldsOf(version: Version, read: GgufConfig, { rope_theta, rope_scaling }: BaseFields): ConfigJson {
  const { every, unsetWindow, caps } = VERSIONS[version];
  const full = { rope_type: "default", rope_theta, ...rope_scaling };
  const local = { rope_type: "default", rope_theta: read.optional("rope.freq_base_swa") ?? 1e4 };
  const scale = ggufScale(version, {
    depth: read.layers,
    hidden: read.number("embedding_length"),
    heads: read.shared("attention.head_count"),
    headDim: read.headDim,
  });
  return {
    rms_norm_eps: read.number("attention.layer_norm_rms_epsilon"),
    hidden_act: undefined,
    hidden_activation: "gelu_pytorch_tanh",
    query_pre_attn_scalar: Math.round(scale ** -2),
    ...windowsOf(read, every, unsetWindow),
    final_logit_softcapping: capOf(read, "final_logit_softcapping", caps.logits),
    attn_logit_softcapping: version === 2 ? capOf(read, "attn_logit_softcapping", caps.attention) : null,
    rope_theta: undefined,
    rope_scaling: undefined,
    rope_parameters: version === 2 ? full : { full_attention: full, sliding_attention: local },
  };
}

function capOf(read: GgufConfig, name: string, unset: number | null): number | null {
  const value = read.optional(name) ?? unset;
  return value === null || value === 0 || value >= NO_CAP ? null : value;
}

/** Gemma 2 and 3: norms before and after each block, stored gains one less, layers with a window between those without. */
const gemma = (version: Version, modelType: string, families: string) =>
  architecture({
    name: `gemma${version}`,
    families,
    modelTypes: [modelType],
    schema: schemaOf(VERSIONS[version]),
    decoder: (c) => decoder(version, c),
    gguf: {
      className: `Gemma${version}ForCausalLM`,
      fields: (read, base) => fieldsOf(version, read, base),
    },
  });

export const gemma2 = gemma(2, "gemma2", "Gemma 2");
export const gemma3 = gemma(3, "gemma3_text", "Gemma 3 (text, also within the models that see)");
