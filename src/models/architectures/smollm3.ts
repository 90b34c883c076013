import { z } from "zod";
import { attention, gatedFeedForward } from "../blocks/index.js";
import { flag, size } from "../config.js";
import { architecture, baseSchema, headsOf, rotaryOf } from "../family.js";
import { layerTypes, layerTypesOf, windowNotes } from "../layer-types.js";
import { preNormDecoder, rmsNorms } from "../layers.js";

/** SmolLM 3: Llama, but without rotation in every fourth layer. */
export const smollm3 = architecture({
  name: "smollm3",
  families: "SmolLM 3",
  schema: baseSchema.extend({
    num_key_value_heads: size.nullable().default(4),
    max_position_embeddings: size.default(32_768),
    tie_word_embeddings: flag(true),
    attention_bias: flag(false),
    mlp_bias: flag(false),
    use_sliding_window: flag(false),
    sliding_window: size.nullish(),
    no_rope_layers: z.array(z.union([z.literal(0), z.literal(1)])).nullish(),
    no_rope_layer_interval: size.default(4),
    layer_types: layerTypes.nullish(),
  }),
  decoder: (c) => {
    const heads = headsOf(c);
    const rotary = rotaryOf(c, heads, { theta: 2e6 });
    const rotatesByDefault = (i: number) => Number((i + 1) % c.no_rope_layer_interval !== 0);
    // the list may be longer than the number of layers
    const rotates = Array.from({ length: c.num_hidden_layers }, (_, i) => c.no_rope_layers?.[i] ?? rotatesByDefault(i));
    const window = c.use_sliding_window ? (c.sliding_window ?? undefined) : undefined;
    const types = layerTypesOf(c, (i) => window !== undefined && rotates[i] === 0);
    const mixerOf = (i: number) =>
      attention({
        ...heads,
        rotary: rotates[i] === 1 ? rotary : undefined,
        window: types[i] === "sliding_attention" ? window : undefined,
        bias: c.attention_bias,
        ggufInterleaved: true,
      });
    const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: c.hidden_act, bias: c.mlp_bias });
    return {
      ...preNormDecoder(c, rmsNorms(c), (i) => [mixerOf(i), feedForward]),
      perLayer: { no_rope_layers: rotates, layer_types: types },
      gguf: {
        architecture: "smollm3",
        rotary,
        refused: refusal(rotates, c.attention_bias || c.mlp_bias),
        notes: windowNotes(types.includes("sliding_attention") ? window : undefined, c),
      },
    };
  },
  gguf: {
    className: "SmolLM3ForCausalLM",
    fields: (read) => ({
      use_sliding_window: false,
      no_rope_layer_interval: 4,
      attention_bias: read.has("blk.0.attn_q.bias"),
    }),
  },
});

function refusal(rotates: readonly number[], isBiased: boolean): string | undefined {
  if (rotates.some((flag, i) => flag !== Number((i + 1) % 4 !== 0)))
    return "llama.cpp's graph for SmolLM 3 rotates all but every fourth layer: cut layers in fours, or other axes";
  return isBiased
    ? "llama.cpp's graph for SmolLM 3 has no biases on the attention's output and the feed-forward network"
    : undefined;
}
