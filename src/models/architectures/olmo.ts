import { gguf } from "../../checkpoint/gguf.js";
import { attention, gatedFeedForward } from "../blocks/index.js";
import { flag, positive, size } from "../config.js";
import { architecture, baseSchema, headsOf, tooWide } from "../family.js";
import { layerTypes, layerTypesOf, nestedRotary, rotaryPerType, windowMetadata, windowsOf } from "../layer-types.js";
import { postNormDecoder, rmsNorms } from "../layers.js";

/** OLMo 2 and 3: norms only after the blocks, queries and keys normalized over their whole width. Version 3 has windows. */
const olmo = (version: 2 | 3, ggufNames: readonly string[]) =>
  architecture({
    name: `olmo${version}`,
    families: `OLMo ${version}`,
    schema: baseSchema.extend({
      rms_norm_eps: positive.default(1e-5),
      attention_bias: flag(false),
      sliding_window: size.nullable().default(4096),
      layer_types: layerTypes.nullish(),
      rope_parameters: nestedRotary.nullish(),
    }),
    decoder: (c) => {
      const heads = headsOf(c);
      const window = version === 3 ? (c.sliding_window ?? undefined) : undefined;
      const listed = version === 3 ? c : { ...c, layer_types: undefined };
      const types = layerTypesOf(listed, (i) => window !== undefined && (i + 1) % 4 !== 0);
      const theta = version === 3 ? 5e5 : 1e4;
      const rotary = rotaryPerType(c, heads, { full_attention: theta, sliding_attention: theta });
      const shared = { ...heads, norms: { of: "width", epsilon: c.rms_norm_eps }, bias: c.attention_bias } as const;
      const mixers = {
        full_attention: attention({ ...shared, rotary: rotary.full_attention }),
        sliding_attention: attention({ ...shared, rotary: rotary.sliding_attention, window }),
      };
      const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: c.hidden_act });
      const thetas = types.map((type) => rotary[type].theta);
      return {
        ...postNormDecoder(c, rmsNorms(c), (i) => [mixers[types[i] ?? "full_attention"], feedForward]),
        perLayer: version === 3 ? { layer_types: types } : undefined,
        gguf: {
          architecture: "olmo2",
          rotary: rotary.full_attention,
          copiesHead: true,
          metadata: {
            ...(window === undefined ? {} : windowMetadata(types, window)),
            "rope.freq_base": gguf.float32(thetas[0] ?? theta),
          },
          refused: tooWide("OLMo", heads, c) ?? refusal(c.attention_bias, new Set(thetas).size > 1),
        },
      };
    },
    gguf: {
      architectures: ggufNames,
      className: `Olmo${version}ForCausalLM`,
      fields: (read, { rope_theta, rope_scaling }) => {
        const full = { rope_type: "default", rope_theta, ...rope_scaling };
        const shared = { attention_bias: false, rope_theta: undefined, rope_scaling: undefined };
        if (!read.optional("attention.sliding_window")) return { ...shared, rope_parameters: full };
        return {
          ...shared,
          model_type: "olmo3",
          architectures: ["Olmo3ForCausalLM"],
          ...windowsOf(read, 4),
          rope_parameters: { full_attention: full, sliding_attention: { rope_type: "default", rope_theta } },
        };
      },
    },
  });

function refusal(isBiased: boolean, thetasDiffer: boolean): string | undefined {
  if (isBiased) return "llama.cpp's graph for OLMo has no bias on the attention's output";
  return thetasDiffer ? "llama.cpp's graph for OLMo has the same theta in windowed layers as in the others" : undefined;
}

export const olmo2 = olmo(2, ["olmo2"]);
/** Its GGUF files are OLMo 2's. */
export const olmo3 = olmo(3, []);
