import { attention, gatedFeedForward } from "../blocks/index.js";
import { positive, size } from "../config.js";
import { architecture, baseSchema, headsOf, tooWide } from "../family.js";
import { windowNotes } from "../layer-types.js";
import { preNormDecoder, rmsNorms } from "../layers.js";
import { parseRotary } from "../rotary.js";

/** Phi-3 and 4: Llama with queries, keys and values in one matrix, gate and up in another, and in some models partly rotated heads. */
export const phi3 = architecture({
  name: "phi3",
  families: "Phi-3, 3.5, 4, 4-mini",
  schema: baseSchema.extend({
    max_position_embeddings: size.default(4096),
    original_max_position_embeddings: size.default(4096),
    rms_norm_eps: positive.default(1e-5),
    sliding_window: size.nullish(),
  }),
  decoder: (c) => {
    const heads = headsOf(c);
    const settings = c.rope_scaling ?? c.rope_parameters ?? {};
    const isPlain = (settings.rope_type ?? settings.type ?? "default") === "default";
    const { original_max_position_embeddings } = c;
    const rotary = parseRotary({
      // older files call longrope "su" or "yarn"
      scaling: isPlain ? settings : { ...settings, rope_type: "longrope", original_max_position_embeddings },
      theta: c.rope_theta ?? undefined,
      partial: c.partial_rotary_factor ?? undefined,
      headDim: heads.headDim,
      maxPositions: c.max_position_embeddings,
    });
    const window = c.sliding_window ?? undefined;
    // transformers expects as many longrope factors as the width divided by the heads
    const prunable = rotary.kind !== "longrope";
    const mixer = attention({ ...heads, rotary, window, layout: "concatenated", prunable });
    const feedForward = gatedFeedForward({ size: c.intermediate_size, activation: c.hidden_act, fused: true });
    return {
      ...preNormDecoder(c, rmsNorms(c), () => [mixer, feedForward]),
      hiddenAxis: { prunable },
      gguf: {
        architecture: "phi3",
        rotary,
        rotaryReads: { factors: true },
        refused: tooWide("Phi-3", heads, c),
        notes: windowNotes(window, c),
      },
    };
  },
  gguf: {
    className: "Phi3ForCausalLM",
    fields: (read, { rope_scaling }) => ({
      rope_scaling: read.has("rope_factors_long.weight") ? { ...rope_scaling, type: "longrope" } : rope_scaling,
      original_max_position_embeddings:
        read.optional("rope.scaling.original_context_length") ?? read.number("context_length"),
      partial_rotary_factor: read.rotaryShare,
      sliding_window: read.optional("attention.sliding_window") || null, // 0 means none
    }),
  },
});
