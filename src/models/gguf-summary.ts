import type { GgufFile } from "../checkpoint/gguf.js";
import { sourceBytes } from "../checkpoint/tensor-source.js";
import { FormatError } from "../system/errors.js";
import { GgufConfig } from "./gguf-config.js";

/** What any GGUF file says of its model in the keys that all architectures share: enough to plan a run with llama.cpp. */
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
  /** Tokens that it was made for; 0 where it does not say. */
  readonly contextLength: number;
  /** Of each layer; 0 where it does not attend. */
  readonly heads: readonly number[];
  readonly kvHeads: readonly number[];
  readonly experts: number;
  /** Rows of a table of learnt positions: a longer sequence cannot be computed. */
  readonly learntPositions: number | undefined;
  /** Bytes of the keys and values (16 bits each) and states (32 bits) of one sequence of so many tokens. */
  readonly cacheBytes: (tokens: number) => number;
}

/** @throws FormatError when the file does not say what every model must */
export function summariseGguf(file: GgufFile): GgufSummary {
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
    learntPositions: file.tensors.get("position_embd.weight")?.shape[0],
    cacheBytes: cacheOf(read, layers, heads, kvHeads),
  };
}

/** A key's value in each layer. @param otherwise in its place, where it is missing */
function perLayer(read: GgufConfig, key: string, layers: number, otherwise: number | readonly number[]): number[] {
  const value = read.optionalNumbers(key) ?? otherwise;
  const values = typeof value === "number" ? Array.from({ length: layers }, () => value) : [...value];
  if (values.length !== layers)
    throw new FormatError(`${read.path}: ${read.architecture}.${key} has ${values.length} values for ${layers} layers`);
  return values;
}

const KEY_BYTES = 2;
const STATE_BYTES = 4;

/** Keys and values of the layers that attend, states of those that do not (or of all, where all do both). */
function cacheOf(
  read: GgufConfig,
  layers: number,
  heads: readonly number[],
  kvHeads: readonly number[],
): GgufSummary["cacheBytes"] {
  const headSize = read.number("embedding_length") / Math.max(1, heads[0] ?? 0);
  const channels =
    (read.optional("attention.key_length") ?? headSize) + (read.optional("attention.value_length") ?? headSize);
  const window = read.optional("attention.sliding_window") || Number.POSITIVE_INFINITY;
  const isWindowed = windowed(read);
  const interval = read.optional("full_attention_interval") ?? 0;
  const owners = layers - (read.optional("attention.shared_kv_layers") ?? 0);
  const attends = (layer: number) =>
    (kvHeads[layer] ?? 0) > 0 && layer < owners && (interval === 0 || (layer + 1) % interval === 0);
  const attending = Array.from({ length: layers }, (_, layer) => layer).filter(attends);
  const without = layers - attending.length;
  const states = stateBytes(read) * (without === 0 ? layers : without);
  return (tokens) =>
    attending.reduce(
      (sum, layer) =>
        sum + KEY_BYTES * channels * (kvHeads[layer] ?? 0) * (isWindowed(layer) ? Math.min(tokens, window) : tokens),
      states,
    );
}

/** Which layers have a window, where the file says it; of the others the cache is counted whole. */
function windowed(read: GgufConfig): (layer: number) => boolean {
  const pattern = read.optionalNumbers("attention.sliding_window_pattern");
  if (pattern === undefined) return () => false;
  if (typeof pattern === "number") return (layer) => layer % pattern < pattern - 1;
  return (layer) => Boolean(pattern[layer]);
}

/** Bytes of a layer's state and of the inputs that its convolution still needs: Mamba's, RWKV's, LFM2's. */
function stateBytes(read: GgufConfig): number {
  const of = (key: string, otherwise = 0) => read.optional(key) ?? otherwise;
  const [hidden, headSize] = [of("embedding_length"), of("wkv.head_size")];
  if (headSize > 0) return STATE_BYTES * hidden * (of("token_shift_count", 2) + headSize);
  const [inner, state] = [of("ssm.inner_size"), of("ssm.state_size")];
  const convolved = inner + 2 * of("ssm.group_count") * state;
  const shortConvolution = hidden * Math.max(0, of("shortconv.l_cache", 1) - 1);
  return STATE_BYTES * (Math.max(0, of("ssm.conv_kernel", 1) - 1) * convolved + state * inner + shortConvolution);
}
