import { z } from "zod";
import { FormatError } from "../system/errors.js";
import { type Graph, ops, recomputed, type Tensor } from "../tensor/index.js";
import type { Architecture, ConfigJson, ForwardOptions, ForwardResult, Model, Tap, Weights } from "./architecture.js";
import { layerDimension, type ParameterSpec, type Sizes } from "./dimensions.js";
import { llamaGguf, llamaLayout } from "./llama-gguf.js";
import { parseRotary, type RotaryConfig, rotaryFrequencies, rotarySchema } from "./rotary.js";

/** The Llama family: Llama 1 to 3.x, Mistral, Mistral NeMo and what shares their layout. */

const size = z
  .number()
  .int()
  .positive()
  .max(2 ** 24);
/** One size for all layers, or a list of one per layer. */
const perLayerSize = z.union([size, z.array(size)]);

const configSchema = z.looseObject({
  model_type: z.string(),
  vocab_size: size,
  hidden_size: size,
  intermediate_size: perLayerSize,
  num_hidden_layers: z.number().int().positive().max(4096),
  num_attention_heads: perLayerSize,
  num_key_value_heads: perLayerSize.nullish(),
  head_dim: size.nullish(),
  max_position_embeddings: z.number().int().positive().default(2048),
  rms_norm_eps: z.number().positive().default(1e-6),
  hidden_act: z.string().default("silu"),
  tie_word_embeddings: z.boolean().default(false),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  sliding_window: z.number().int().positive().nullish(),
  rope_theta: z.number().positive().nullish(),
  rope_scaling: rotarySchema.nullish(),
  rope_parameters: rotarySchema.nullish(),
  partial_rotary_factor: z.number().positive().max(1).nullish(),
});

interface LayerConfig {
  readonly ffn: number;
  readonly heads: number;
  readonly kvHeads: number;
}

export interface LlamaConfig {
  readonly json: ConfigJson;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly headDim: number;
  readonly layers: readonly LayerConfig[];
  readonly epsilon: number;
  readonly maxPositions: number;
  readonly tiedEmbeddings: boolean;
  readonly attentionBias: boolean;
  /** Mistral's output projection never has a bias, Llama's follows the others. */
  readonly outputBias: boolean;
  readonly mlpBias: boolean;
  readonly slidingWindow: number | undefined;
  readonly rotary: RotaryConfig;
}

function parseConfig(json: ConfigJson): LlamaConfig {
  const parsed = configSchema.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new FormatError(`config.json: ${issue?.path.join(".") ?? "?"}: ${issue?.message ?? "invalid"}`);
  }
  const c = parsed.data;
  if (c.hidden_act !== "silu" && c.hidden_act !== "swish")
    throw new FormatError(`config.json: hidden_act "${c.hidden_act}" is not supported for ${c.model_type}, only silu`);
  const count = c.num_hidden_layers;
  const perLayer = (field: string, value: number | readonly number[], layer: number): number => {
    if (typeof value === "number") return value;
    const found = value.length === count ? value[layer] : undefined;
    if (found === undefined)
      throw new FormatError(`config.json: ${field} lists ${value.length} sizes for ${count} layers`);
    return found;
  };
  const layers = Array.from({ length: count }, (_, layer): LayerConfig => {
    const heads = perLayer("num_attention_heads", c.num_attention_heads, layer);
    const kvHeads = perLayer("num_key_value_heads", c.num_key_value_heads ?? c.num_attention_heads, layer);
    if (heads % kvHeads !== 0)
      throw new FormatError(`config.json: ${heads} attention heads cannot be shared by ${kvHeads} key-value heads`);
    return { ffn: perLayer("intermediate_size", c.intermediate_size, layer), heads, kvHeads };
  });
  const firstHeads = layers[0]?.heads ?? 1;
  const headDim = c.head_dim ?? c.hidden_size / firstHeads;
  if (!Number.isInteger(headDim))
    throw new FormatError(
      `config.json: hidden_size ${c.hidden_size} is no multiple of ${firstHeads} heads and there is no head_dim`,
    );
  // Mistral's own default where the field is absent; null means none
  const slidingWindow = c.sliding_window === undefined ? 4096 : c.sliding_window;
  return {
    json,
    vocabSize: c.vocab_size,
    hiddenSize: c.hidden_size,
    headDim,
    layers,
    epsilon: c.rms_norm_eps,
    maxPositions: c.max_position_embeddings,
    tiedEmbeddings: c.tie_word_embeddings,
    attentionBias: c.attention_bias && c.model_type === "llama",
    outputBias: c.attention_bias && c.model_type === "llama",
    mlpBias: c.mlp_bias && c.model_type === "llama",
    // Llama has no sliding window, whatever its configuration says
    slidingWindow: c.model_type === "mistral" ? (slidingWindow ?? undefined) : undefined,
    rotary: parseRotary({
      scaling: c.rope_parameters ?? c.rope_scaling,
      theta: c.rope_theta ?? undefined,
      partial: c.partial_rotary_factor ?? undefined,
      headDim,
      maxPositions: c.max_position_embeddings,
    }),
  };
}

function sizesOf(c: LlamaConfig): Sizes {
  const sizes: Record<string, number> = {
    vocab: c.vocabSize,
    hidden: c.hiddenSize,
    headDim: c.headDim,
    layers: c.layers.length,
  };
  c.layers.forEach((layer, i) => {
    sizes[layerDimension(i, "ffn")] = layer.ffn;
    sizes[layerDimension(i, "heads")] = layer.heads;
    sizes[layerDimension(i, "kvHeads")] = layer.kvHeads;
  });
  return sizes;
}

/** Every parameter with the names of its dimensions: pruning, counting and initialisation all read this table. */
function parametersOf(c: LlamaConfig): ParameterSpec[] {
  const matrix = (input: string, name: string, ...axes: string[]): ParameterSpec => ({
    ...{ name, axes, initialisation: "normal" },
    input,
  });
  const gain = (name: string): ParameterSpec => ({ name, axes: ["hidden"], initialisation: "ones" });
  const bias = (present: boolean, name: string, axis: string): ParameterSpec[] =>
    present ? [{ name, axes: [axis], initialisation: "zeros" }] : [];
  const layer = (i: number): ParameterSpec[] => {
    const at = `model.layers.${i}`;
    const inputs = {
      attention: `layers.${i}.input_layernorm.output`,
      mixed: `layers.${i}.self_attn.o_proj.input`,
      ffn: `layers.${i}.post_attention_layernorm.output`,
      gated: `layers.${i}.mlp.down_proj.input`,
    };
    const queries = `layers.${i}.heads x headDim`;
    const keys = `layers.${i}.kvHeads x headDim`;
    const ffn = `layers.${i}.ffn`;
    return [
      gain(`${at}.input_layernorm.weight`),
      matrix(inputs.attention, `${at}.self_attn.q_proj.weight`, queries, "hidden"),
      matrix(inputs.attention, `${at}.self_attn.k_proj.weight`, keys, "hidden"),
      matrix(inputs.attention, `${at}.self_attn.v_proj.weight`, keys, "hidden"),
      matrix(inputs.mixed, `${at}.self_attn.o_proj.weight`, "hidden", queries),
      ...bias(c.attentionBias, `${at}.self_attn.q_proj.bias`, queries),
      ...bias(c.attentionBias, `${at}.self_attn.k_proj.bias`, keys),
      ...bias(c.attentionBias, `${at}.self_attn.v_proj.bias`, keys),
      ...bias(c.outputBias, `${at}.self_attn.o_proj.bias`, "hidden"),
      gain(`${at}.post_attention_layernorm.weight`),
      matrix(inputs.ffn, `${at}.mlp.gate_proj.weight`, ffn, "hidden"),
      matrix(inputs.ffn, `${at}.mlp.up_proj.weight`, ffn, "hidden"),
      matrix(inputs.gated, `${at}.mlp.down_proj.weight`, "hidden", ffn),
      ...bias(c.mlpBias, `${at}.mlp.gate_proj.bias`, ffn),
      ...bias(c.mlpBias, `${at}.mlp.up_proj.bias`, ffn),
      ...bias(c.mlpBias, `${at}.mlp.down_proj.bias`, "hidden"),
    ];
  };
  return [
    {
      ...{ name: "model.embed_tokens.weight", axes: ["vocab", "hidden"], initialisation: "normal" },
      ...(c.tiedEmbeddings && { input: "norm.output" }), // as the output head
    },
    ...c.layers.flatMap((_, i) => layer(i)),
    gain("model.norm.weight"),
    ...(c.tiedEmbeddings ? [] : [matrix("norm.output", "lm_head.weight", "vocab", "hidden")]),
  ];
}

function forward(c: LlamaConfig, g: Graph, weights: Weights, tokens: Tensor, options: ForwardOptions): ForwardResult {
  const [batch = 0, seq = 0] = tokens.shape;
  const rows = batch * seq;
  const tapped = new Set<string>();
  const tap: Tap = (name, activation) => {
    if (tapped.has(name)) return; // a layer that is computed again for its gradient
    tapped.add(name);
    options.tap?.(name, activation);
  };
  const { rotaryDim } = c.rotary;
  const { forest } = options;
  // a forest's sequences are each no longer than the model's positions
  const longest = forest === undefined ? seq : Math.min(seq, c.maxPositions);
  const rotary = { rotaryDim, ...rotaryFrequencies(c.rotary, longest), positions: forest?.positions };
  const window = forest === undefined ? c.slidingWindow : undefined;

  const project = (x: Tensor, name: string, hasBias: boolean): Tensor => {
    const y = ops.linear(g, x, weights(`${name}.weight`));
    return hasBias ? ops.add(g, y, weights(`${name}.bias`)) : y;
  };
  const norm = (x: Tensor, name: string): Tensor => {
    const y = ops.rmsNormGain(g, x, weights(`${name}.weight`), { epsilon: c.epsilon });
    tap(`${name.replace(/^model\./, "")}.output`, y);
    return y;
  };
  const rotate = (x: Tensor): Tensor => ops.rope(g, x, rotary);

  const attention = (x: Tensor, at: string, { heads, kvHeads }: LayerConfig): Tensor => {
    const split = (y: Tensor, count: number) => ops.reshape(g, y, { to: [batch, seq, count, c.headDim] });
    const q = rotate(split(project(x, `${at}.q_proj`, c.attentionBias), heads)); // [batch, seq, heads, headDim]
    const k = rotate(split(project(x, `${at}.k_proj`, c.attentionBias), kvHeads));
    const v = split(project(x, `${at}.v_proj`, c.attentionBias), kvHeads);
    const mixed = ops.attention(g, q, k, v, { scale: 1 / Math.sqrt(c.headDim), window, forest }); // [rows, heads x headDim]
    tap(`${at.replace(/^model\./, "")}.o_proj.input`, mixed);
    return project(mixed, `${at}.o_proj`, c.outputBias);
  };
  const feedForward = (x: Tensor, at: string): Tensor => {
    const gated = ops.swiglu(g, project(x, `${at}.gate_proj`, c.mlpBias), project(x, `${at}.up_proj`, c.mlpBias));
    tap(`${at.replace(/^model\./, "")}.down_proj.input`, gated);
    return project(gated, `${at}.down_proj`, c.mlpBias);
  };

  let x = ops.embedding(g, weights("model.embed_tokens.weight"), ops.reshape(g, tokens, { to: [rows] })); // [rows, hidden]
  tap("embed_tokens.output", x);
  for (const i of options.layers ?? c.layers.keys()) {
    const layer = c.layers[i];
    if (layer === undefined) throw new FormatError(`there is no layer ${i}; the model has ${c.layers.length}`);
    const at = `model.layers.${i}`;
    tap(`layers.${i}.input`, x);
    x = recomputed(g, x, (input) => {
      const mixed = ops.add(g, input, attention(norm(input, `${at}.input_layernorm`), `${at}.self_attn`, layer));
      return ops.add(g, mixed, feedForward(norm(mixed, `${at}.post_attention_layernorm`), `${at}.mlp`));
    });
    tap(`layers.${i}.output`, x);
  }
  const hidden = norm(x, "model.norm");
  const head = c.tiedEmbeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  return { hidden, logits: (rows = hidden) => ops.linear(g, rows, weights(head)) };
}

/** Writes sizes into a configuration: one number where all layers agree, a list where they differ. */
function configWith(json: ConfigJson, sizes: Sizes): ConfigJson {
  const count = sizes.layers ?? 0;
  const collect = (name: string): number | number[] => {
    const all = Array.from({ length: count }, (_, i) => sizes[layerDimension(i, name)] ?? 0);
    return new Set(all).size === 1 ? (all[0] ?? 0) : all;
  };
  const result: Record<string, unknown> = {
    ...json,
    vocab_size: sizes.vocab,
    hidden_size: sizes.hidden,
    intermediate_size: collect("ffn"),
    num_hidden_layers: count,
    num_attention_heads: collect("heads"),
    num_key_value_heads: collect("kvHeads"),
    head_dim: sizes.headDim,
  };
  if (Array.isArray(json.layer_types)) result.layer_types = json.layer_types.slice(0, count);
  return result;
}

function modelOf(json: ConfigJson): Model {
  const config = parseConfig(json);
  const layers = config.layers.map((_, i) => `layers.${i}`);
  return {
    architecture: "llama",
    config: json,
    sizes: sizesOf(config),
    parameters: parametersOf(config),
    layerCount: config.layers.length,
    vocabSize: config.vocabSize,
    maxPositions: config.maxPositions,
    attentionWindow: config.slidingWindow,
    tiedEmbeddings: config.tiedEmbeddings,
    scoredBy: [
      ...layers.flatMap((at) => [
        { dimension: "hidden", tap: `${at}.input_layernorm.output` },
        { dimension: "hidden", tap: `${at}.post_attention_layernorm.output` },
        { dimension: `${at}.heads`, tap: `${at}.self_attn.o_proj.input` },
        { dimension: `${at}.ffn`, tap: `${at}.mlp.down_proj.input` },
      ]),
      { dimension: "hidden", tap: "norm.output" },
    ],
    headGroups: layers.map((at) => ({ heads: `${at}.heads`, kvHeads: `${at}.kvHeads` })),
    forward: (g, weights, tokens, options = {}) => forward(config, g, weights, tokens, options),
    resized: (sizes) => modelOf(configWith(json, sizes)),
    gguf: () =>
      llamaLayout(
        config,
        parametersOf(config).map(({ name }) => name),
      ),
  };
}

export const llama: Architecture = {
  name: "llama",
  modelTypes: ["llama", "mistral"],
  parse: modelOf,
  gguf: llamaGguf,
};
