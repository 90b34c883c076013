import { z } from "zod";
import { gguf } from "../../checkpoint/gguf.js";
import type { Architecture } from "../architecture.js";
import {
  BASE_SIZES,
  baseFields,
  headsOf,
  layerTypes,
  layerTypesOf,
  nestedRotary,
  rotaryPerType,
  sandwichLayer,
  widthsOf,
  windowMetadata,
  windowsOf,
} from "../base.js";
import { attention } from "../blocks/attention.js";
import { gatedFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, layerCount, oneOf, parseConfig, positive, size } from "../config.js";
import { defined, type GgufConfig } from "../gguf-config.js";
import { rotaryScaling } from "../rotary-gguf.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  vocab_size: size.default(262_208),
  hidden_size: size.default(2304),
  intermediate_size: size.default(9216),
  num_hidden_layers: layerCount.default(26),
  num_attention_heads: size.default(8),
  num_key_value_heads: size.default(4),
  head_dim: size.default(256),
  max_position_embeddings: size.default(131_072),
  tie_word_embeddings: z.boolean().default(true),
  query_pre_attn_scalar: positive.default(256),
  sliding_window: size.default(4096),
  sliding_window_pattern: size.optional(),
  layer_types: layerTypes.nullish(),
  rope_parameters: nestedRotary.nullish(),
  rope_local_base_freq: positive.nullish(),
  attn_logit_softcapping: positive.nullish(),
  final_logit_softcapping: positive.nullish(),
});

/** What the versions have of their own: the full layer that ends so many, soft caps, and llama.cpp's odd depth. */
const VERSIONS = {
  2: { every: 2, maxPositions: 8192, caps: { attention: 50, logits: 30 }, oddDepth: 46 },
  3: { every: 6, maxPositions: 131_072, caps: { attention: undefined, logits: undefined }, oddDepth: 62 },
} as const;
type Version = keyof typeof VERSIONS;

/** llama.cpp divides scores by the root of the head's size, but at one depth of each version by that of the width's share. */
const ggufScale = (version: Version, depth: number, hidden: number, heads: number, headDim: number): number =>
  (depth === VERSIONS[version].oddDepth ? Math.floor(hidden / heads) : headDim) ** -0.5;

/** Gemma 2 and 3: norms before and after each block, gains stored less one, layers of a window between those that read all. */
const decoderOf = (version: Version) =>
  function decoder(config: ConfigJson): DecoderSpec {
    const { every, caps } = VERSIONS[version];
    const c = parseConfig(schema, { max_position_embeddings: VERSIONS[version].maxPositions, ...config });
    oneOf(config, "hidden_activation", ["gelu_pytorch_tanh"], "gelu_pytorch_tanh");
    const norm = { epsilon: c.rms_norm_eps, plusOne: true };
    const { heads, kvHeads, headDim } = headsOf(c);
    const pattern = c.sliding_window_pattern ?? every;
    const kinds = layerTypesOf(c, (i) => (i + 1) % pattern !== 0);
    const theta = version === 3 ? 1e6 : (c.rope_theta ?? 1e4);
    const local = version === 3 ? (c.rope_local_base_freq ?? 1e4) : theta;
    const rotary = rotaryPerType(c, headDim, { full_attention: theta, sliding_attention: local });
    const ofType = version === 3 ? rotary : { ...rotary, sliding_attention: rotary.full_attention };
    const scale = c.query_pre_attn_scalar ** -0.5;
    const cap = (value: number | null | undefined, fallback: number | undefined) =>
      value === undefined ? fallback : (value ?? undefined);
    const softCap = version === 2 ? cap(c.attn_logit_softcapping, caps.attention) : undefined;
    const logitCap = cap(c.final_logit_softcapping, caps.logits);
    const mixerOf = (kind: (typeof kinds)[number]) =>
      attention({
        heads,
        kvHeads,
        headDim,
        scale,
        softCap,
        rotary: ofType[kind],
        window: kind === "sliding_attention" ? c.sliding_window : undefined,
        norms: version === 3 ? { of: "head", epsilon: c.rms_norm_eps, plusOne: true } : undefined,
        ggufQueryScale: scale / ggufScale(version, kinds.length, c.hidden_size, heads, headDim),
      });
    const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: "gelu_pytorch_tanh" });
    return {
      ...widthsOf(c),
      needsBeginToken: true,
      embeddingScale: Math.sqrt(c.hidden_size),
      logitCap,
      layers: kinds.map((kind) =>
        sandwichLayer(mixerOf(kind), feedForward, [
          ["input_layernorm", rmsNorm("attn_norm", norm)],
          ["post_attention_layernorm", rmsNorm("post_attention_norm", norm)],
          ["pre_feedforward_layernorm", rmsNorm("ffn_norm", norm)],
          ["post_feedforward_layernorm", rmsNorm("post_ffw_norm", norm)],
        ]),
      ),
      finalNorm: rmsNorm("output_norm", norm),
      hiddenAxis: { prunable: true, multipleOf: heads }, // transformers refuses others
      perLayer: { layer_types: kinds },
      gguf: {
        architecture: `gemma${version}`,
        rotary: rotary.full_attention,
        metadata: {
          ...windowMetadata(kinds, c.sliding_window),
          "rope.freq_base": gguf.float32(ofType.full_attention.theta),
          "rope.freq_base_swa": gguf.float32(ofType.sliding_attention.theta),
          final_logit_softcapping: gguf.float32(logitCap ?? (version === 3 ? 0 : NO_CAP)),
          attn_logit_softcapping: version === 2 ? gguf.float32(softCap ?? NO_CAP) : undefined,
        },
        refused:
          version === 2 && !c.tie_word_embeddings ? "llama.cpp's Gemma 2 has no output head of its own" : undefined,
      },
    };
  };

/** A cap so high that it changes nothing: llama.cpp's Gemma 2 always has one. */
const NO_CAP = 1e4;

const configOf = (version: Version) => (read: GgufConfig) => {
  const [heads, headDim, depth] = [read.shared("attention.head_count"), read.headDim, read.layers];
  const maxPositions = read.number("context_length");
  const theta = read.optional("rope.freq_base") ?? 1e4;
  const local = read.optional("rope.freq_base_swa") ?? (version === 3 ? 1e4 : theta);
  const scaling = rotaryScaling(read, { theta, rotaryDim: headDim, maxPositions });
  const { caps, every } = VERSIONS[version];
  const cap = (name: string, fallback: number | undefined) => {
    const value = read.optional(name) ?? fallback ?? 0;
    return value === 0 || value >= NO_CAP ? null : value;
  };
  return defined({
    ...read.common(version === 3 ? "gemma3_text" : "gemma2", `Gemma${version}ForCausalLM`),
    rms_norm_eps: read.number("attention.layer_norm_rms_epsilon"),
    hidden_activation: "gelu_pytorch_tanh",
    query_pre_attn_scalar: Math.round(ggufScale(version, depth, read.number("embedding_length"), heads, headDim) ** -2),
    ...windowsOf(read, every, version === 2 ? 4096 : 0),
    final_logit_softcapping: cap("final_logit_softcapping", caps.logits),
    attn_logit_softcapping: version === 2 ? cap("attn_logit_softcapping", caps.attention) : null,
    rope_parameters:
      version === 2
        ? { rope_type: "default", rope_theta: theta, ...scaling }
        : {
            full_attention: { rope_type: "default", rope_theta: theta, ...scaling },
            sliding_attention: { rope_type: "default", rope_theta: local },
          },
  });
};

const gemma = (version: Version, modelType: string, families: string): Architecture => ({
  name: `gemma${version}`,
  families,
  modelTypes: [modelType],
  decoder: decoderOf(version),
  fields: BASE_SIZES,
  gguf: { architectures: [`gemma${version}`], configOf: configOf(version) },
});

export const gemma2 = gemma(2, "gemma2", "Gemma 2");
export const gemma3 = gemma(3, "gemma3_text", "Gemma 3 (text, also within the models that see)");
