import { z } from "zod";
import type { Architecture } from "../architecture.js";
import { alike, BASE_SIZES, baseConfig, baseFields, headsOf, preNormLayer, wholeRotaryOf, widthsOf } from "../base.js";
import { attention } from "../blocks/attention.js";
import { plainFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive, size } from "../config.js";
import type { GgufConfig } from "../gguf-config.js";
import type { RotaryJson } from "../rotary.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  max_position_embeddings: size.default(65_536),
  rms_norm_eps: positive.default(1e-5),
  attention_bias: z.boolean().default(false),
  qk_norm: z.literal(true).default(true),
  post_norm: z.literal(false).default(false),
});

const THETA = 12_000_000;
/** What transformers takes where nothing is said of the rotation, a `rope_theta` included. */
const DEFAULT_ROTARY: RotaryJson = {
  rope_type: "llama3",
  rope_theta: THETA,
  factor: 8,
  low_freq_factor: 1,
  high_freq_factor: 4,
  original_max_position_embeddings: 8192,
};

/** Apertus: queries and keys are normalised before they turn; xIELU, with numbers of its own in each layer, in place of a gate. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["xielu"], "xielu");
  const norm = { epsilon: c.rms_norm_eps };
  const { heads, kvHeads, headDim } = headsOf(c);
  const rope_scaling = c.rope_scaling ?? c.rope_parameters ?? DEFAULT_ROTARY;
  const rotary = wholeRotaryOf({ ...c, rope_scaling }, headDim, { theta: THETA });
  const mixer = attention({
    heads,
    kvHeads,
    headDim,
    rotary,
    norms: { of: "head", ...norm },
    bias: { qkv: c.attention_bias, output: c.attention_bias },
  });
  const feedForward = plainFeedForward({ size: c.intermediate_size, activation: "xielu" });
  const layer = preNormLayer(
    mixer,
    feedForward,
    [rmsNorm("attn_norm", norm), rmsNorm("ffn_norm", norm)],
    ["attention_layernorm", "self_attn", "feedforward_layernorm", "mlp"],
  );
  return {
    ...widthsOf(c),
    layers: alike(c.num_hidden_layers, layer),
    finalNorm: rmsNorm("output_norm", norm),
    gguf: { architecture: "apertus", rotary, rotaryReads: { factors: true }, copiesHead: true },
  };
}

function configOf(read: GgufConfig): ConfigJson {
  const { rope_theta, rope_scaling, ...base } = baseConfig(read, "apertus", "ApertusForCausalLM");
  const scaling = (rope_scaling ?? { rope_type: "default" }) as RotaryJson;
  return {
    ...base,
    rope_parameters: { ...scaling, rope_theta },
    hidden_act: "xielu",
    attention_bias: read.has("blk.0.attn_output.bias"),
    tie_word_embeddings: read.hasCopiedHead(),
  };
}

export const apertus: Architecture = {
  name: "apertus",
  families: "Apertus 8B and 70B",
  modelTypes: ["apertus"],
  decoder,
  fields: BASE_SIZES,
  gguf: { architectures: ["apertus"], configOf },
};
