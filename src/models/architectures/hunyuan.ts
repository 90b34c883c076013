import { z } from "zod";
import { attention, gatedFeedForward } from "../blocks/index.js";
import { flag, positive } from "../config.js";
import { architecture, baseSchema, type Heads, headsOf, wholeRotaryOf } from "../family.js";
import { preNormDecoder, rmsNorms } from "../layers.js";

const schema = baseSchema.extend({
  rms_norm_eps: positive.default(1e-5),
  attention_bias: flag(false),
  use_qk_norm: z.literal(true).default(true),
  use_cla: z.literal(false).default(false),
  num_experts: z.literal(1).default(1),
});

/** Dynamic scaling with an alpha just means a larger theta, whatever the length of the text. */
function withoutAlpha(c: z.infer<typeof schema>, { headDim }: Heads) {
  const scaling = c.rope_scaling ?? c.rope_parameters;
  const alpha = scaling?.alpha;
  const type = scaling?.rope_type ?? scaling?.type;
  if (type !== "dynamic" || typeof alpha !== "number" || !(alpha > 0)) return c;
  const theta = scaling?.rope_theta ?? c.rope_theta ?? 10_000;
  return { ...c, rope_theta: theta * alpha ** (headDim / (headDim - 2)), rope_scaling: null, rope_parameters: null };
}

/** Hunyuan's dense models: queries and keys are normalized after rotation. */
export const hunyuan = architecture({
  name: "hunyuan_v1_dense",
  families: "Hunyuan 0.5B to 7B, Hunyuan-MT",
  schema,
  decoder: (c) => {
    const heads = headsOf(c);
    const rotary = wholeRotaryOf(withoutAlpha(c, heads), heads);
    const names = ["query_layernorm", "key_layernorm"] as const;
    const norms = { of: "head", epsilon: c.rms_norm_eps, afterRotation: true, names } as const;
    const mixer = attention({ ...heads, rotary, norms, bias: c.attention_bias });
    const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: c.hidden_act });
    return {
      ...preNormDecoder(c, rmsNorms(c), () => [mixer, feedForward]),
      gguf: {
        architecture: "hunyuan-dense",
        rotary,
        refused: c.attention_bias ? "llama.cpp's graph for Hunyuan has no bias on the attention's output" : undefined,
      },
    };
  },
  gguf: {
    architectures: ["hunyuan-dense"],
    className: "HunYuanDenseV1ForCausalLM",
    fields: (read, { rope_scaling }) => {
      const alpha = read.optional("rope.scaling.alpha") ?? 0;
      const dynamic = { rope_type: "dynamic", alpha, factor: 1 };
      return { rope_scaling: alpha > 0 ? dynamic : rope_scaling, attention_bias: false };
    },
  },
});
