import { z } from "zod";
import { gguf } from "../../checkpoint/gguf.js";
import type { Architecture } from "../architecture.js";
import {
  BASE_SIZES,
  baseConfig,
  baseFields,
  headsOf,
  layerTypes,
  layerTypesOf,
  nestedRotary,
  rotaryPerType,
  tooWide,
  widthsOf,
  windowMetadata,
  windowsOf,
} from "../base.js";
import { attention } from "../blocks/attention.js";
import { gatedFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive, size } from "../config.js";
import type { GgufConfig } from "../gguf-config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  rms_norm_eps: positive.default(1e-5),
  attention_bias: z.boolean().default(false),
  sliding_window: size.nullable().default(4096),
  layer_types: layerTypes.nullish(),
  rope_parameters: nestedRotary.nullish(),
});

/** OLMo 2 and 3: norms after the blocks only, queries and keys normalised over their whole width. Version 3 has windows. */
const decoderOf = (version: 2 | 3) =>
  function decoder(config: ConfigJson): DecoderSpec {
    const c = parseConfig(schema, config);
    oneOf(config, "hidden_act", ["silu"], "silu");
    const norm = { epsilon: c.rms_norm_eps };
    const { heads, kvHeads, headDim } = headsOf(c);
    const window = version === 3 ? (c.sliding_window ?? undefined) : undefined;
    const kinds = layerTypesOf(
      version === 3 ? c : { ...c, layer_types: undefined },
      (i) => window !== undefined && (i + 1) % 4 !== 0,
    );
    const theta = version === 3 ? 5e5 : 1e4;
    const rotary = rotaryPerType(c, headDim, { full_attention: theta, sliding_attention: theta });
    const mixerOf = (kind: (typeof kinds)[number]) =>
      attention({
        heads,
        kvHeads,
        headDim,
        rotary: rotary[kind],
        window: kind === "sliding_attention" ? window : undefined,
        norms: { of: "width", epsilon: c.rms_norm_eps },
        bias: { qkv: c.attention_bias, output: c.attention_bias },
      });
    const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: "silu" });
    const thetas = kinds.map((kind) => rotary[kind].theta);
    const refused =
      tooWide("OLMo", heads, headDim, c.hidden_size) ??
      (c.attention_bias ? "llama.cpp's graph for OLMo has no bias on the attention's output" : undefined) ??
      (new Set(thetas).size > 1
        ? "llama.cpp's graph for OLMo turns windowed layers by the same theta as the others"
        : undefined);
    return {
      ...widthsOf(c),
      layers: kinds.map((kind) => ({
        residuals: [
          {
            block: ["self_attn", mixerOf(kind)],
            after: ["post_attention_layernorm", rmsNorm("post_attention_norm", norm)],
          },
          { block: ["mlp", feedForward], after: ["post_feedforward_layernorm", rmsNorm("post_ffw_norm", norm)] },
        ],
      })),
      finalNorm: rmsNorm("output_norm", norm),
      perLayer: version === 3 ? { layer_types: kinds } : undefined,
      gguf: {
        architecture: "olmo2",
        rotary: rotary.full_attention,
        copiesHead: true,
        metadata: {
          ...(window === undefined ? {} : windowMetadata(kinds, window)),
          "rope.freq_base": gguf.float32(thetas[0] ?? theta),
        },
        refused,
      },
    };
  };

function configOf(read: GgufConfig): ConfigJson {
  const isWindowed = (read.optional("attention.sliding_window") ?? 0) > 0;
  const version = isWindowed ? 3 : 2;
  const { rope_theta, rope_scaling, ...base } = baseConfig(read, `olmo${version}`, `Olmo${version}ForCausalLM`);
  const full = { rope_type: "default", rope_theta, ...(rope_scaling as object | undefined) };
  if (!isWindowed) return { ...base, hidden_act: "silu", attention_bias: false, rope_parameters: full };
  return {
    ...base,
    hidden_act: "silu",
    attention_bias: false,
    ...windowsOf(read, 4),
    rope_parameters: { full_attention: full, sliding_attention: { rope_type: "default", rope_theta } },
  };
}

const olmo = (version: 2 | 3, ggufNames: readonly string[]): Architecture => ({
  name: `olmo${version}`,
  families: `OLMo ${version}`,
  modelTypes: [`olmo${version}`],
  decoder: decoderOf(version),
  fields: BASE_SIZES,
  gguf: { architectures: ggufNames, configOf },
});

export const olmo2 = olmo(2, ["olmo2"]);
/** Its GGUF files are OLMo 2's. */
export const olmo3 = olmo(3, []);
