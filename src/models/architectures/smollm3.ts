import { z } from "zod";
import type { Architecture } from "../architecture.js";
import {
  BASE_SIZES,
  baseConfig,
  baseFields,
  headsOf,
  layerTypes,
  layerTypesOf,
  preNormLayer,
  rotaryOf,
  widthsOf,
  windowNotes,
} from "../base.js";
import { attention } from "../blocks/attention.js";
import { gatedFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, size } from "../config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  num_key_value_heads: size.nullable().default(4),
  max_position_embeddings: size.default(32_768),
  tie_word_embeddings: z.boolean().default(true),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  use_sliding_window: z.boolean().default(false),
  sliding_window: size.nullish(),
  no_rope_layers: z.array(z.union([z.literal(0), z.literal(1)])).nullish(),
  no_rope_layer_interval: size.default(4),
  layer_types: layerTypes.nullish(),
});

/** SmolLM 3: Llama, but every fourth layer does not turn. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["silu"], "silu");
  const norm = { epsilon: c.rms_norm_eps };
  const { heads, kvHeads, headDim } = headsOf(c);
  const rotary = rotaryOf(c, headDim, { theta: 2e6 });
  // the list may be longer than there are layers
  const turns = Array.from(
    { length: c.num_hidden_layers },
    (_, i) => c.no_rope_layers?.[i] ?? Number((i + 1) % c.no_rope_layer_interval !== 0),
  );
  const window = c.use_sliding_window ? (c.sliding_window ?? undefined) : undefined;
  const kinds = layerTypesOf(c, (i) => window !== undefined && turns[i] === 0);
  const bias = { qkv: c.attention_bias, output: c.attention_bias };
  const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: "silu", bias: c.mlp_bias });
  const mixerOf = (i: number) =>
    attention({
      heads,
      kvHeads,
      headDim,
      rotary: turns[i] === 1 ? rotary : undefined,
      window: kinds[i] === "sliding_attention" ? window : undefined,
      bias,
      ggufInterleaved: true,
    });
  const isRegular = turns.every((turn, i) => turn === Number((i + 1) % 4 !== 0));
  return {
    ...widthsOf(c),
    layers: kinds.map((_, i) =>
      preNormLayer(mixerOf(i), feedForward, [rmsNorm("attn_norm", norm), rmsNorm("ffn_norm", norm)]),
    ),
    finalNorm: rmsNorm("output_norm", norm),
    perLayer: { no_rope_layers: turns, layer_types: kinds },
    gguf: {
      architecture: "smollm3",
      rotary,
      refused: !isRegular
        ? "llama.cpp's graph for SmolLM 3 leaves every fourth layer unturned, and no other: cut layers in fours, or other axes"
        : c.attention_bias || c.mlp_bias
          ? "llama.cpp's graph for SmolLM 3 has no biases on the attention's output and the feed-forward network"
          : undefined,
      notes: windowNotes(kinds.includes("sliding_attention") ? window : undefined, c),
    },
  };
}

export const smollm3: Architecture = {
  name: "smollm3",
  families: "SmolLM 3",
  modelTypes: ["smollm3"],
  decoder,
  fields: BASE_SIZES,
  gguf: {
    architectures: ["smollm3"],
    configOf: (read) => ({
      ...baseConfig(read, "smollm3", "SmolLM3ForCausalLM"),
      hidden_act: "silu",
      use_sliding_window: false,
      no_rope_layer_interval: 4,
      attention_bias: read.has("blk.0.attn_q.bias"),
    }),
  },
};
