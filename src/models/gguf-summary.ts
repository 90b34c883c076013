import type { GgufFile } from "../checkpoint/gguf.js";
import { sourceBytes } from "../checkpoint/tensor-source.js";
import { FormatError } from "../system/errors.js";
import { CACHE_ELEMENT_BYTES } from "./cost.js";
import { GgufConfig } from "./gguf-config.js";
import { windowCells } from "./window-cache.js";

/** What a GGUF file of any architecture says of its model in the keys common to all: enough to plan a run with llama.cpp. */
export interface GgufSummary {
  /** `general.architecture`. */
  readonly architecture: string;
  /** Elements of all tensors. */
  readonly parameters: number;
  /** Bytes of all tensors. */
  readonly bytes: number;
  readonly layers: number;
  readonly hidden: number;
  readonly vocabSize: number;
  /** Tokens of context that it was trained for; 0 where the file does not say. */
  readonly contextLength: number;
  /** Of each layer; 0 in a layer without attention. */
  readonly heads: readonly number[];
  readonly kvHeads: readonly number[];
  readonly experts: number;
  /** Rows of the learned position embeddings: a longer sequence cannot be computed. */
  readonly learnedPositions: number | undefined;
  /** Bytes of the keys and values (16 bits each) and states (32 bits) of one sequence of `tokens` tokens. */
  readonly cacheBytes: (tokens: number) => number;
}

/** Summarizes a GGUF file. @throws FormatError when a key that every model needs is missing */
export function summarizeGguf(file: GgufFile): GgufSummary {
  const read = new GgufConfig(file);
  if (read.architecture === "") throw new FormatError(`${file.path}: the key general.architecture is missing`);
  const { layers } = read;
  const heads = perLayer(read, "attention.head_count", layers, 0);
  const kvHeads = perLayer(read, "attention.head_count_kv", layers, heads);
  const tokens = file.metadata.get("tokenizer.ggml.tokens");
  const shapes = [...file.tensors.values()].map(({ shape }) => shape);
  return {
    architecture: read.architecture,
    parameters: shapes.reduce((sum, shape) => sum + shape.reduce((a, b) => a * b, 1), 0),
    bytes: sourceBytes(file),
    layers,
    hidden: read.number("embedding_length"),
    vocabSize: tokens?.kind === "array" ? tokens.value.length : 0,
    contextLength: read.optional("context_length") ?? 0,
    heads,
    kvHeads,
    experts: read.optional("expert_count") ?? 0,
    learnedPositions: file.tensors.get("position_embd.weight")?.shape[0],
    cacheBytes: cacheOf(read, layers, heads, kvHeads),
  };
}

/** A key's value in each layer. @param fallback its value where the key is missing */
function perLayer(read: GgufConfig, key: string, layers: number, fallback: number | readonly number[]): number[] {
  const value = read.optionalNumbers(key) ?? fallback;
  const values = typeof value === "number" ? Array.from({ length: layers }, () => value) : [...value];
  if (values.length !== layers)
    throw new FormatError(`${read.path}: ${read.architecture}.${key} has ${values.length} values for ${layers} layers`);
  return values;
}

const STATE_BYTES = 4;

/** Keys and values of the layers with attention, states of the others (or of all, where every layer has both). */
function cacheOf(
  read: GgufConfig,
  layers: number,
  heads: readonly number[],
  kvHeads: readonly number[],
): GgufSummary["cacheBytes"] {
  const headSize = read.number("embedding_length") / Math.max(1, heads[0] ?? 0);
  const channels =
    (read.optional("attention.key_length") ?? headSize) + (read.optional("attention.value_length") ?? headSize);
  const cells = windowCells(read.optional("attention.sliding_window") || undefined);
  const isWindowed = windowed(read);
  const interval = read.optional("full_attention_interval") ?? 0;
  const owners = layers - (read.optional("attention.shared_kv_layers") ?? 0);
  const attention = kvHeads.flatMap((count, layer) => {
    const ownsCache = count > 0 && layer < owners && (interval === 0 || (layer + 1) % interval === 0);
    return ownsCache ? [{ count, longest: isWindowed(layer) ? cells : Number.POSITIVE_INFINITY }] : [];
  });
  const others = layers - attention.length;
  const states = stateBytes(read) * (others === 0 ? layers : others);
  return (tokens) =>
    attention.reduce(
      (sum, { count, longest }) => sum + CACHE_ELEMENT_BYTES * channels * count * Math.min(tokens, longest),
      states,
    );
}

/** Which layers have a window, where the file says so; without that, every cache is counted in full. */
function windowed(read: GgufConfig): (layer: number) => boolean {
  const pattern = read.optionalNumbers("attention.sliding_window_pattern");
  if (pattern === undefined) return () => false;
  if (typeof pattern === "number") return (layer) => layer % pattern < pattern - 1;
  return (layer) => Boolean(pattern[layer]);
}

/** Bytes of a layer's state and of the inputs that its convolution keeps: Mamba's, RWKV's, LFM2's. */
function stateBytes(read: GgufConfig): number {
  const of = (key: string, fallback = 0) => read.optional(key) ?? fallback;
  const [hidden, headSize] = [of("embedding_length"), of("wkv.head_size")];
  if (headSize > 0) return STATE_BYTES * hidden * (of("token_shift_count", 2) + headSize);
  const [inner, state] = [of("ssm.inner_size"), of("ssm.state_size")];
  const convolved = inner + 2 * of("ssm.group_count") * state;
  const shortConvolution = hidden * Math.max(0, of("shortconv.l_cache", 1) - 1);
  return STATE_BYTES * (Math.max(0, of("ssm.conv_kernel", 1) - 1) * convolved + state * inner + shortConvolution);
}
