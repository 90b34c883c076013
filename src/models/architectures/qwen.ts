import { z } from "zod";
import { attention, gatedFeedForward } from "../blocks/index.js";
import { flag, size } from "../config.js";
import { architecture, baseSchema, headsOf, rotaryOf } from "../family.js";
import { layerTypes, layerTypesOf, windowNotes } from "../layer-types.js";
import { preNormDecoder, rmsNorms } from "../layers.js";

/** Qwen 2 and 3. Version 3 normalizes each head's queries and keys before rotation; version 2 has biases on q, k and v. */
const qwen = (version: 2 | 3, families: string) =>
  architecture({
    name: `qwen${version}`,
    families,
    schema: baseSchema.extend({
      max_position_embeddings: size.default(32_768),
      attention_bias: flag(false),
      use_sliding_window: flag(false),
      sliding_window: size.nullable().default(4096),
      max_window_layers: z.number().int().nonnegative().default(28),
      layer_types: layerTypes.nullish(),
    }),
    decoder: (c) => {
      const heads = headsOf(version === 3 ? { ...c, head_dim: c.head_dim ?? 128 } : c);
      const window = c.use_sliding_window ? (c.sliding_window ?? undefined) : undefined;
      const types = layerTypesOf(c, (i) => window !== undefined && i >= c.max_window_layers);
      const windowOf = (i: number) => (types[i] === "sliding_attention" ? window : undefined);
      const rotary = rotaryOf(c, heads);
      const bias = version === 3 ? c.attention_bias : { qkv: true, output: false };
      const norms = version === 3 ? ({ of: "head", epsilon: c.rms_norm_eps } as const) : undefined;
      // llama.cpp's graph for Qwen 2 requires heads as wide as the model; that for Llama computes the same
      const asLlama = version === 2 && heads.heads * heads.headDim !== c.hidden_size;
      const mixerOf = (i: number) =>
        attention({ ...heads, rotary, window: windowOf(i), norms, bias, ggufInterleaved: asLlama });
      const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: c.hidden_act });
      return {
        ...preNormDecoder(c, rmsNorms(c), (i) => [mixerOf(i), feedForward]),
        perLayer: { layer_types: types },
        gguf: {
          architecture: asLlama ? "llama" : `qwen${version}`,
          rotary,
          rotaryReads: { factors: asLlama },
          refused: bias === true ? "llama.cpp's graph for Qwen 3 has no bias on the attention's output" : undefined,
          notes: windowNotes(types.includes("sliding_attention") ? window : undefined, c, "upper layers"),
        },
      };
    },
    gguf: { className: `Qwen${version}ForCausalLM`, fields: () => ({ use_sliding_window: false }) },
  });

export const qwen2 = qwen(2, "Qwen 2, 2.5");
export const qwen3 = qwen(3, "Qwen 3");
