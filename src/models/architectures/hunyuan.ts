import { z } from "zod";
import type { Architecture } from "../architecture.js";
import { alike, BASE_SIZES, baseConfig, baseFields, headsOf, preNormLayer, wholeRotaryOf, widthsOf } from "../base.js";
import { attention } from "../blocks/attention.js";
import { gatedFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive } from "../config.js";
import { defined, type GgufConfig } from "../gguf-config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  rms_norm_eps: positive.default(1e-5),
  attention_bias: z.boolean().default(false),
  use_qk_norm: z.literal(true).default(true),
  use_cla: z.literal(false).default(false),
  num_experts: z.literal(1).default(1),
});

/** Dynamic scaling with an alpha: a larger base, whatever the length of the text. */
function withoutAlpha(c: z.infer<typeof schema>, headDim: number) {
  const scaling = c.rope_scaling ?? c.rope_parameters;
  const alpha = scaling?.alpha;
  const type = scaling?.rope_type ?? scaling?.type;
  if (type !== "dynamic" || typeof alpha !== "number" || !(alpha > 0)) return c;
  const theta = scaling?.rope_theta ?? c.rope_theta ?? 10_000;
  return { ...c, rope_theta: theta * alpha ** (headDim / (headDim - 2)), rope_scaling: null, rope_parameters: null };
}

/** Hunyuan's dense models: queries and keys are normalised after they turn. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["silu"], "silu");
  const norm = { epsilon: c.rms_norm_eps };
  const { heads, kvHeads, headDim } = headsOf(c);
  const rotary = wholeRotaryOf(withoutAlpha(c, headDim), headDim);
  const mixer = attention({
    heads,
    kvHeads,
    headDim,
    rotary,
    norms: { of: "head", ...norm, afterRotation: true, names: ["query_layernorm", "key_layernorm"] },
    bias: { qkv: c.attention_bias, output: c.attention_bias },
  });
  const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: "silu" });
  const layer = preNormLayer(mixer, feedForward, [rmsNorm("attn_norm", norm), rmsNorm("ffn_norm", norm)]);
  return {
    ...widthsOf(c),
    layers: alike(c.num_hidden_layers, layer),
    finalNorm: rmsNorm("output_norm", norm),
    gguf: {
      architecture: "hunyuan-dense",
      rotary,
      refused: c.attention_bias ? "llama.cpp's graph for Hunyuan has no bias on the attention's output" : undefined,
    },
  };
}

function configOf(read: GgufConfig): ConfigJson {
  const alpha = read.optional("rope.scaling.alpha") ?? 0;
  const base = baseConfig(read, "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM");
  return defined({
    ...base,
    rope_scaling: alpha > 0 ? { rope_type: "dynamic", alpha, factor: 1 } : base.rope_scaling,
    hidden_act: "silu",
    attention_bias: false,
  });
}

export const hunyuan: Architecture = {
  name: "hunyuan_v1_dense",
  families: "Hunyuan 0.5B to 7B, Hunyuan-MT",
  modelTypes: ["hunyuan_v1_dense"],
  decoder,
  fields: BASE_SIZES,
  gguf: { architectures: ["hunyuan-dense"], configOf },
};
