import { z } from "zod";
import { FormatError } from "../../system/errors.js";
import type { Architecture } from "../architecture.js";
import { alike, BASE_SIZES, baseConfig, baseFields, headsOf, preNormLayer, wholeRotaryOf, widthsOf } from "../base.js";
import { attention } from "../blocks/attention.js";
import { plainFeedForward } from "../blocks/feed-forward.js";
import { rmsNorm } from "../blocks/norm.js";
import { type ConfigJson, oneOf, parseConfig, positive, size } from "../config.js";
import type { DecoderSpec } from "../spec.js";

const schema = z.looseObject({
  ...baseFields,
  max_position_embeddings: size.default(4096),
  rms_norm_eps: positive.default(1e-5),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
});

/** Arcee's AFM: Llama with squared ReLU in place of a gate. */
function decoder(config: ConfigJson): DecoderSpec {
  const c = parseConfig(schema, config);
  oneOf(config, "hidden_act", ["relu2"], "relu2");
  const norm = { epsilon: c.rms_norm_eps };
  const { heads, kvHeads, headDim } = headsOf(c);
  // transformers refuses it, even with a head_dim
  if (c.hidden_size % heads !== 0)
    throw new FormatError(`config.json: hidden_size ${c.hidden_size} is not a multiple of ${heads} heads`);
  const rotary = wholeRotaryOf(c, headDim);
  const bias = { qkv: c.attention_bias, output: c.attention_bias };
  const mixer = attention({ heads, kvHeads, headDim, rotary, bias, ggufInterleaved: true });
  const feedForward = plainFeedForward({ size: c.intermediate_size, activation: "relu2", bias: c.mlp_bias });
  const layer = preNormLayer(mixer, feedForward, [rmsNorm("attn_norm", norm), rmsNorm("ffn_norm", norm)]);
  const biased = c.attention_bias || c.mlp_bias;
  return {
    ...widthsOf(c),
    layers: alike(c.num_hidden_layers, layer),
    hiddenAxis: { prunable: true, multipleOf: heads },
    finalNorm: rmsNorm("output_norm", norm),
    gguf: {
      architecture: "arcee",
      rotary,
      rotaryReads: { factors: true },
      refused: biased ? "llama.cpp's graph for Arcee has no biases (attention_bias, mlp_bias)" : undefined,
    },
  };
}

export const arcee: Architecture = {
  name: "arcee",
  families: "Arcee AFM 4.5B",
  modelTypes: ["arcee"],
  decoder,
  fields: BASE_SIZES,
  gguf: {
    architectures: ["arcee"],
    configOf: (read) => ({ ...baseConfig(read, "arcee", "ArceeForCausalLM"), hidden_act: "relu2" }),
  },
};
