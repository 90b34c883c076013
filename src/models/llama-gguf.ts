import type { GgufFile, GgufValue } from "../checkpoint/gguf.js";
import { gguf } from "../checkpoint/gguf.js";
import { toFloat32 } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { FormatError } from "../system/errors.js";
import type { ConfigJson } from "./architecture.js";
import {
  type GgufLayout,
  type GgufParameter,
  type GgufReader,
  metadataNumber,
  metadataNumbers,
  metadataString,
  shortest,
} from "./gguf-layout.js";
import type { LlamaConfig } from "./llama.js";
import { type RotaryConfig, type RotaryJson, rotaryFrequencies } from "./rotary.js";

/** The Llama family in GGUF files: names, keys, and the order of rotary channels, as llama.cpp wants them. */

/** Tensors of a layer: GGUF's name and the checkpoint's. */
const LAYER_NAMES = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
  ffn_norm: "post_attention_layernorm",
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
} as const;

/** The same sizes in all layers; and the graph that allows others in each. */
const [UNIFORM, PER_LAYER] = ["llama", "deci"] as const;

/** Far above what any model's projections have. */
const MAX_ROWS = 2 ** 24;

/**
 * llama.cpp turns neighbouring channels of these architectures, transformers channel i and i + half: row 2i + k of a head
 * there is row i + k · half here.
 */
function interleaved(heads: number, headDim: number): Uint32Array {
  if (heads * headDim > MAX_ROWS) throw new FormatError(`${heads} heads of ${headDim} channels are no model's`);
  const half = headDim / 2;
  return Uint32Array.from({ length: heads * headDim }, (_, row) => {
    const within = row % headDim;
    return row - within + Math.floor(within / 2) + (within % 2) * half;
  });
}

export function llamaLayout(c: LlamaConfig, parameterNames: readonly string[]): GgufLayout {
  if (c.rotary.rotaryDim !== c.headDim)
    throw new FormatError(
      `llama.cpp turns whole heads in this architecture; here only ${c.rotary.rotaryDim} of ${c.headDim} channels turn`,
    );
  const architecture = new Set(c.layers.map((layer) => JSON.stringify(layer))).size === 1 ? UNIFORM : PER_LAYER;
  const key = (name: string, value: GgufValue) => [`${architecture}.${name}`, value] as const;
  const each = (of: (layer: LlamaConfig["layers"][number]) => number): GgufValue =>
    architecture === UNIFORM
      ? gguf.uint32(of(c.layers[0] ?? { ffn: 0, heads: 0, kvHeads: 0 }))
      : gguf.numbers("uint32", c.layers.map(of));
  const rotary = rotaryLayout(c.rotary, key);
  return {
    architecture,
    metadata: [
      key("block_count", gguf.uint32(c.layers.length)),
      key("context_length", gguf.uint32(c.maxPositions)),
      key("embedding_length", gguf.uint32(c.hiddenSize)),
      key(
        "feed_forward_length",
        each(({ ffn }) => ffn),
      ),
      key(
        "attention.head_count",
        each(({ heads }) => heads),
      ),
      key(
        "attention.head_count_kv",
        each(({ kvHeads }) => kvHeads),
      ),
      key("attention.key_length", gguf.uint32(c.headDim)),
      key("attention.value_length", gguf.uint32(c.headDim)),
      key("attention.layer_norm_rms_epsilon", gguf.float32(c.epsilon)),
      key("vocab_size", gguf.uint32(c.vocabSize)),
      key("rope.dimension_count", gguf.uint32(c.headDim)),
      key("rope.freq_base", gguf.float32(c.rotary.theta)),
      ...rotary.metadata,
    ],
    parameters: parameterNames.map((name) => parameterLayout(c, name)),
    derived: rotary.derived,
    notes: [
      ...rotary.notes,
      ...(c.slidingWindow !== undefined && c.slidingWindow < c.maxPositions
        ? [`llama.cpp lets this architecture attend past its window of ${c.slidingWindow} tokens: longer texts differ`]
        : []),
    ],
  };
}

function parameterLayout(c: LlamaConfig, parameter: string): GgufParameter {
  const fixed: Record<string, string> = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
  };
  const whole = fixed[parameter];
  if (whole !== undefined) return { name: whole, parameter };
  const [, number = "", inner = "", kind = ""] = /^model\.layers\.(\d+)\.(.+)\.(weight|bias)$/.exec(parameter) ?? [];
  const short = Object.entries(LAYER_NAMES).find(([, name]) => name === inner)?.[0];
  const layer = c.layers[Number(number)];
  if (short === undefined || layer === undefined) throw new FormatError(`${parameter} has no name in GGUF`);
  const name = `blk.${number}.${short}.${kind}`;
  if (short === "attn_q") return { name, parameter, rows: interleaved(layer.heads, c.headDim) };
  if (short === "attn_k") return { name, parameter, rows: interleaved(layer.kvHeads, c.headDim) };
  return { name, parameter };
}

type Key = (name: string, value: GgufValue) => readonly [string, GgufValue];

/** How llama.cpp is told of a rotary scaling. */
function rotaryLayout(rotary: RotaryConfig, key: Key): Pick<GgufLayout, "metadata" | "derived" | "notes"> {
  const { kind, settings, maxPositions } = rotary;
  const factors = (length: number) => rotaryFrequencies(rotary, length).factors;
  const scaling = (type: string, ...more: (readonly [string, GgufValue])[]) => [
    key("rope.scaling.type", gguf.string(type)),
    ...more,
  ];
  const original = settings.original_max_position_embeddings ?? maxPositions;
  const factor = settings.factor ?? maxPositions / original;
  const nothing = { metadata: [], derived: [], notes: [] };
  switch (kind) {
    case "default":
      return nothing;
    case "dynamic":
      return {
        ...nothing,
        notes: [`llama.cpp has no dynamic rotary scaling: texts longer than ${maxPositions} tokens differ`],
      };
    case "linear":
      return { ...nothing, metadata: scaling("linear", key("rope.scaling.factor", gguf.float32(factor))) };
    case "llama3":
      return { ...nothing, derived: [{ name: "rope_freqs.weight", values: factors(1) }] };
    case "yarn": {
      // llama.cpp multiplies by 1 + 0.1 ln(factor) by itself
      const own = 1 + 0.1 * Math.log(factor);
      const { attentionFactor } = rotaryFrequencies(rotary, 1);
      return {
        ...nothing,
        metadata: scaling(
          "yarn",
          key("rope.scaling.factor", gguf.float32(factor)),
          key("rope.scaling.original_context_length", gguf.uint32(original)),
          key("rope.scaling.attn_factor", gguf.float32(attentionFactor / own)),
          key("rope.scaling.yarn_beta_fast", gguf.float32(settings.beta_fast ?? 32)),
          key("rope.scaling.yarn_beta_slow", gguf.float32(settings.beta_slow ?? 1)),
        ),
        notes:
          settings.truncate === false
            ? ["llama.cpp rounds the ends of YaRN's ramp; this model does not: it differs slightly"]
            : [],
      };
    }
    case "longrope":
      return {
        metadata: scaling(
          "longrope",
          key("rope.scaling.original_context_length", gguf.uint32(original)),
          key("rope.scaling.attn_factor", gguf.float32(rotaryFrequencies(rotary, 1).attentionFactor)),
        ),
        derived: [
          { name: "rope_factors_long.weight", values: factors(original + 1) },
          { name: "rope_factors_short.weight", values: factors(1) },
        ],
        notes: ["llama.cpp chooses between long and short rotary factors by the size of the context, not of the text"],
      };
  }
}

function configOf(file: GgufFile): ConfigJson {
  const { metadata, tensors } = file;
  const architecture = metadataString(metadata, "general.architecture") ?? "";
  const optional = (name: string) => metadataNumber(metadata, `${architecture}.${name}`);
  const needed = <T>(value: T | undefined, name: string): T => {
    if (value === undefined)
      throw new FormatError(`${file.path}: the key ${architecture}.${name} is missing or no number`);
    return value;
  };
  const number = (name: string) => needed(optional(name), name);
  const numbers = (name: string) => needed(metadataNumbers(metadata, `${architecture}.${name}`), name);
  if ((optional("expert_count") ?? 0) > 0) throw new FormatError(`${file.path}: mixtures of experts are not supported`);
  const embedding = tensors.get("token_embd.weight");
  if (embedding === undefined) throw new FormatError(`${file.path}: the tensor token_embd.weight is missing`);
  const heads = numbers("attention.head_count");
  const hidden = number("embedding_length");
  const headDim = optional("attention.key_length") ?? hidden / (Array.isArray(heads) ? (heads[0] ?? 1) : heads);
  const theta = optional("rope.freq_base") ?? 10_000;
  const positions = number("context_length");
  const scaling = rotaryOf(file, architecture, { theta, headDim, positions });
  const id = (name: string) => metadataNumber(metadata, `tokenizer.ggml.${name}_token_id`);
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: embedding.shape[0],
    hidden_size: hidden,
    intermediate_size: numbers("feed_forward_length"),
    num_hidden_layers: number("block_count"),
    num_attention_heads: heads,
    num_key_value_heads: metadataNumbers(metadata, `${architecture}.attention.head_count_kv`) ?? heads,
    head_dim: headDim,
    max_position_embeddings: positions,
    rms_norm_eps: number("attention.layer_norm_rms_epsilon"),
    hidden_act: "silu",
    tie_word_embeddings: !tensors.has("output.weight"),
    attention_bias: tensors.has("blk.0.attn_q.bias"),
    mlp_bias: tensors.has("blk.0.ffn_gate.bias"),
    rope_theta: theta,
    ...(scaling && { rope_scaling: scaling }),
    ...(id("bos") !== undefined && { bos_token_id: id("bos") }),
    ...(id("eos") !== undefined && { eos_token_id: id("eos") }),
    torch_dtype: "float16",
  };
}

interface RotaryFacts {
  readonly theta: number;
  readonly headDim: number;
  readonly positions: number;
}

/** The rotary scaling that a file describes. */
function rotaryOf(file: GgufFile, architecture: string, facts: RotaryFacts): RotaryJson | undefined {
  const optional = (name: string) => metadataNumber(file.metadata, `${architecture}.rope.scaling.${name}`);
  const type = metadataString(file.metadata, `${architecture}.rope.scaling.type`) ?? "linear";
  const factor = optional("factor");
  const original = optional("original_context_length") ?? facts.positions;
  const frequencies = derivedTensor(file, "rope_freqs.weight");
  if (frequencies !== undefined) return llama3Of(frequencies, facts);
  if (type === "linear") return factor === undefined || factor === 1 ? undefined : { rope_type: "linear", factor };
  if (type === "none") return undefined;
  if (type === "yarn" && factor !== undefined)
    return {
      rope_type: "yarn",
      factor,
      original_max_position_embeddings: original,
      attention_factor: shortest((optional("attn_factor") ?? 1) * (1 + 0.1 * Math.log(factor))),
      beta_fast: optional("yarn_beta_fast") ?? 32,
      beta_slow: optional("yarn_beta_slow") ?? 1,
    };
  const [long, short] = ["long", "short"].map((which) => derivedTensor(file, `rope_factors_${which}.weight`));
  if (type === "longrope" && long !== undefined && short !== undefined)
    return {
      rope_type: "longrope",
      original_max_position_embeddings: original,
      attention_factor: optional("attn_factor") ?? 1,
      long_factor: [...long].map(shortest),
      short_factor: [...short].map(shortest),
    };
  throw new FormatError(`${file.path}: a rotary scaling of type "${type}" is not known, or lacks what it needs`);
}

function derivedTensor(file: GgufFile, name: string): Float32Array | undefined {
  const info = file.tensors.get(name);
  if (info === undefined) return undefined;
  return toFloat32(loadFunctions(), file.readRows(name, 0, info.shape[0] ?? 0), info.dtype);
}

/** Llama 3's published settings, where the factors are theirs; the factors themselves otherwise. */
function llama3Of(factors: Float32Array, { theta, headDim, positions }: RotaryFacts): RotaryJson {
  const settings: RotaryJson = {
    rope_type: "llama3",
    factor: shortest(factors.reduce((a, b) => Math.max(a, b), 1)),
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 8192,
  };
  const rotary = { kind: "llama3", theta, rotaryDim: headDim, maxPositions: positions, settings } as const;
  const expected = rotaryFrequencies(rotary, 1).factors;
  const same =
    expected.length === factors.length &&
    expected.every((value, i) => Math.abs(value - (factors[i] ?? 0)) < 1e-4 * value);
  if (same) return settings;
  const list = [...factors].map(shortest);
  return {
    rope_type: "longrope",
    attention_factor: 1,
    original_max_position_embeddings: positions,
    factor: 1,
    long_factor: list,
    short_factor: list,
  };
}

export const llamaGguf: GgufReader = { architectures: [UNIFORM, PER_LAYER], configOf };
