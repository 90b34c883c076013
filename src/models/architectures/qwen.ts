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
  max_position_embeddings: size.default(32_768),
  attention_bias: z.boolean().default(false),
  use_sliding_window: z.boolean().default(false),
  sliding_window: size.nullable().default(4096),
  max_window_layers: z.number().int().nonnegative().default(28),
  layer_types: layerTypes.nullish(),
});

/** Qwen 2 and 3. Version 3 normalises each head's queries and keys before they turn; version 2 has biases on q, k and v. */
const decoderOf = (version: 2 | 3) =>
  function decoder(config: ConfigJson): DecoderSpec {
    const c = parseConfig(schema, config);
    oneOf(config, "hidden_act", ["silu"], "silu");
    const norm = { epsilon: c.rms_norm_eps };
    const { heads, kvHeads, headDim } = headsOf(version === 3 ? { ...c, head_dim: c.head_dim ?? 128 } : c);
    const window = c.use_sliding_window ? (c.sliding_window ?? undefined) : undefined;
    const kinds = layerTypesOf(c, (i) => window !== undefined && i >= c.max_window_layers);
    const rotary = rotaryOf(c, headDim);
    const biased = version === 2 || c.attention_bias;
    // llama.cpp's graph for Qwen 2 takes heads as wide as the model only; that for Llama computes the same
    const asLlama = version === 2 && heads * headDim !== c.hidden_size;
    const mixerOf = (kind: (typeof kinds)[number]) =>
      attention({
        heads,
        kvHeads,
        headDim,
        rotary,
        window: kind === "sliding_attention" ? window : undefined,
        norms: version === 3 ? { of: "head", epsilon: c.rms_norm_eps } : undefined,
        bias: { qkv: biased, output: biased && version === 3 },
        ggufInterleaved: asLlama,
      });
    const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: "silu" });
    const isWindowed = window !== undefined && kinds.includes("sliding_attention");
    return {
      ...widthsOf(c),
      layers: kinds.map((kind) =>
        preNormLayer(mixerOf(kind), feedForward, [rmsNorm("attn_norm", norm), rmsNorm("ffn_norm", norm)]),
      ),
      finalNorm: rmsNorm("output_norm", norm),
      perLayer: { layer_types: kinds },
      gguf: {
        architecture: asLlama ? "llama" : `qwen${version}`,
        rotary,
        rotaryReads: { factors: asLlama },
        refused:
          version === 3 && c.attention_bias
            ? "llama.cpp's graph for Qwen 3 has no bias on the attention's output"
            : undefined,
        notes: windowNotes(isWindowed ? window : undefined, c, "upper layers"),
      },
    };
  };

const qwen = (version: 2 | 3, families: string): Architecture => ({
  name: `qwen${version}`,
  families,
  modelTypes: [`qwen${version}`],
  decoder: decoderOf(version),
  fields: BASE_SIZES,
  gguf: {
    architectures: [`qwen${version}`],
    configOf: (read) => ({
      ...baseConfig(read, `qwen${version}`, `Qwen${version}ForCausalLM`),
      hidden_act: "silu",
      use_sliding_window: false,
    }),
  },
});

export const qwen2 = qwen(2, "Qwen 2, 2.5");
export const qwen3 = qwen(3, "Qwen 3");
