import { ops, type Tensor } from "../../tensor/index.js";
import type { Axis } from "../dimensions.js";
import { type RotaryConfig, rotaryFrequencies } from "../rotary.js";
import { windowCells } from "../window-cache.js";
import { type Block, linear, type Parameter, prefixed, type Scope, within } from "./block.js";
import { type NormOptions, rmsNorm } from "./norm.js";

/** A block of attention. */
export interface AttentionOptions {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** How positions rotate queries and keys; undefined for no rotation. */
  readonly rotary: RotaryConfig | undefined;
  /** Rotates pairs of adjacent channels instead of channels of the two halves (GLM-4, ERNIE 4.5). */
  readonly rotatesAdjacent?: boolean | undefined;
  /** Multiplies the scores; 1/√headDim by default. */
  readonly scale?: number | undefined;
  /** How many positions a query reads, including its own; all before it by default. */
  readonly window?: number | undefined;
  /** Scores are c · tanh(score / c) (Gemma 2). */
  readonly softCap?: number | undefined;
  /** A factor for each query by its position, applied after rotation (Ministral 3). */
  readonly queryFactor?: ((position: number) => number) | undefined;
  readonly norms?: QueryKeyNorms | undefined;
  /** Whether matrices have biases: all of them, or the output separately; none by default. */
  readonly bias?: boolean | { readonly qkv: boolean; readonly output: boolean } | undefined;
  /** How checkpoints hold queries, keys and values; a matrix each by default. */
  readonly layout?: "separate" | "concatenated" | "by head" | undefined;
  /** Names of the matrices in checkpoints. */
  readonly names?: { readonly fused: string; readonly output: string } | undefined;
  /** GPT-2's checkpoints store matrices with their axes swapped. */
  readonly transposed?: boolean | undefined;
  /** llama.cpp's graph rotates adjacent channels (Llama) where checkpoints are for halves: rows are reordered. */
  readonly ggufInterleaved?: boolean | undefined;
  /** Multiplies queries in GGUF files, where llama.cpp's graph scales scores differently. */
  readonly ggufQueryScale?: number | undefined;
  /** Whether heads can be cut: not where their size follows from the model's width. */
  readonly prunable?: boolean | undefined;
}

/** Norms of queries and keys: of each head, or of the whole width; before rotation, or after. */
export interface QueryKeyNorms {
  readonly of: "head" | "width";
  readonly epsilon: number;
  readonly plusOne?: boolean | undefined;
  readonly afterRotation?: boolean | undefined;
  /** Their names in checkpoints. */
  readonly names?: readonly [query: string, key: string] | undefined;
}

const QUERIES: Axis = { product: ["heads", "headDim"] };
const KEYS: Axis = { product: ["kvHeads", "headDim"] };

const biasesOf = ({ bias = false }: AttentionOptions) =>
  typeof bias === "boolean" ? { qkv: bias, output: bias } : bias;

/** Causal attention with grouped queries (Ainslie et al. 2023). */
export function attention(o: AttentionOptions): Block {
  const { heads, kvHeads, headDim, prunable = true, window } = o;
  const norms = normsOf(o);
  const [queries, keys] = [heads * headDim, kvHeads * headDim];
  const rotation = o.rotary && { "rope.dimension_count": o.rotary.rotaryDim, "rope.freq_base": o.rotary.theta };
  return {
    dimensions: {
      heads: { size: heads, prunable, groupedBy: "kvHeads" },
      kvHeads: { size: kvHeads, prunable },
      headDim: { size: headDim },
    },
    parameters: parametersOf(o, norms),
    scores: [{ dimension: "heads", tap: "o_proj.input" }],
    metadata: {
      "attention.head_count": heads,
      "attention.head_count_kv": kvHeads,
      "attention.key_length": headDim,
      "attention.value_length": headDim,
      ...rotation,
    },
    cost: (context, hasWindows) => {
      const own = hasWindows ? window : undefined;
      return {
        cacheElements: 2 * keys * Math.min(context, windowCells(own)),
        operations: 4 * queries * Math.min(context, own ?? context),
      };
    },
    forward: (scope, x) => {
      const { g, forest } = scope;
      const [q, k, v] = projected(o, scope, x);
      const rotatedQueries = rotated(o, scope, q, { count: heads, norm: norms?.[0] });
      const rotatedKeys = rotated(o, scope, k, { count: kvHeads, norm: norms?.[1] });
      const { queryFactor } = o;
      const scaledQueries = queryFactor
        ? ops.scaleByPosition(g, rotatedQueries, {
            factors: Float32Array.from({ length: scope.seq }, (_, position) => queryFactor(position)),
            positions: forest?.positions,
          })
        : rotatedQueries;
      const values = ops.reshape(g, v, { to: [scope.batch, scope.seq, kvHeads, headDim] });
      const mixed = ops.attention(g, scaledQueries, rotatedKeys, values, {
        scale: o.scale ?? 1 / Math.sqrt(headDim),
        window,
        softCap: o.softCap,
        forest,
      });
      scope.tap("o_proj.input", mixed);
      return linear(scope, mixed, o.names?.output ?? "o_proj", biasesOf(o).output);
    },
  };
}

/** Queries, keys and values: [rows, heads x headDim], [rows, kvHeads x headDim] twice. */
function projected(o: AttentionOptions, scope: Scope, x: Tensor): readonly [Tensor, Tensor, Tensor] {
  const { layout = "separate", heads, kvHeads, headDim } = o;
  const bias = biasesOf(o).qkv;
  if (layout === "separate") {
    const project = (name: string) => linear(scope, x, name, bias);
    return [project("q_proj"), project("k_proj"), project("v_proj")];
  }
  const { g, batch, seq } = scope;
  const all = linear(scope, x, fusedName(o), bias);
  if (layout === "concatenated")
    return ops.splitLast(g, all, [heads * headDim, kvHeads * headDim, kvHeads * headDim]) as [Tensor, Tensor, Tensor];
  // each head's query, key and value lie together
  const rows = batch * seq;
  const perHead = ops.reshape(g, all, { to: [rows * heads, 3 * headDim] });
  const split = ops.splitLast(g, perHead, [headDim, headDim, headDim]);
  const whole = split.map((part) => ops.reshape(g, part, { to: [rows, heads * headDim] }));
  return whole as [Tensor, Tensor, Tensor];
}

/** Splits into heads, normalizes and rotates: [rows, count x headDim] -> [batch, seq, count, headDim]. */
function rotated(
  o: AttentionOptions,
  scope: Scope,
  x: Tensor,
  { count, norm }: { readonly count: number; readonly norm: NamedNorm | undefined },
): Tensor {
  const { g, batch, seq } = scope;
  const { headDim, rotary } = o;
  const normed = (y: Tensor): Tensor => {
    if (norm === undefined) return y;
    const rows = o.norms?.of === "head" ? [batch * seq * count, headDim] : [batch * seq, count * headDim];
    return norm.block.forward(within(scope, norm.name), ops.reshape(g, y, { to: rows }));
  };
  const split = (y: Tensor): Tensor => ops.reshape(g, y, { to: [batch, seq, count, headDim] });
  const rotate = (y: Tensor): Tensor =>
    rotary === undefined
      ? y
      : ops.rope(g, y, {
          rotaryDim: rotary.rotaryDim,
          interleaved: o.rotatesAdjacent,
          positions: scope.forest?.positions,
          ...rotaryFrequencies(rotary, scope.longest),
        });
  return o.norms?.afterRotation ? split(normed(rotate(split(x)))) : rotate(split(normed(x)));
}

interface NamedNorm {
  readonly name: string;
  readonly block: Block;
}

function normsOf(o: AttentionOptions): readonly [NamedNorm, NamedNorm] | undefined {
  const { norms } = o;
  if (norms === undefined) return undefined;
  const { of, epsilon, plusOne, names = ["q_norm", "k_norm"] } = norms;
  const options = (width: Axis): NormOptions => ({ epsilon, plusOne, over: of === "head" ? "headDim" : width });
  return [
    { name: names[0], block: rmsNorm("attn_q_norm", { ...options(QUERIES), ggufFactor: ggufQueryFactor(o) }) },
    { name: names[1], block: rmsNorm("attn_k_norm", options(KEYS)) },
  ];
}

/** The factor on queries in GGUF files; undefined where there is none. */
const ggufQueryFactor = ({ ggufQueryScale = 1 }: AttentionOptions): number | undefined =>
  Math.abs(ggufQueryScale - 1) < 1e-9 ? undefined : ggufQueryScale;

const fusedName = ({ names }: AttentionOptions): string => names?.fused ?? "qkv_proj";

function parametersOf(o: AttentionOptions, norms: readonly NamedNorm[] | undefined): Record<string, Parameter> {
  const { layout = "separate", transposed } = o;
  const bias = biasesOf(o);
  const output = o.names?.output ?? "o_proj";
  const parameters: Record<string, Parameter> = {};
  const add = (name: string, axis: Axis, gguf: string, rows?: () => Uint32Array) => {
    const factor = gguf === "attn_q" && norms === undefined ? ggufQueryFactor(o) : undefined;
    const placement = { name: gguf, rows, factor };
    parameters[`${name}.weight`] = { axes: [axis, "hidden"], input: "input", transposed, gguf: placement };
    if (bias.qkv)
      parameters[`${name}.bias`] = { axes: [axis], initialization: "zeros", gguf: { ...placement, kind: "bias" } };
  };
  if (layout === "separate") {
    const reordered = (heads: number) => (o.ggufInterleaved ? () => interleaved(heads, o.headDim) : undefined);
    add("q_proj", QUERIES, "attn_q", reordered(o.heads));
    add("k_proj", KEYS, "attn_k", reordered(o.kvHeads));
    add("v_proj", KEYS, "attn_v");
  } else if (layout === "concatenated") add(fusedName(o), { concat: [QUERIES, KEYS, KEYS] }, "attn_qkv");
  else {
    const perHead: Axis = { concat: ["headDim", "headDim", "headDim"] };
    add(fusedName(o), { product: ["heads", perHead] }, "attn_qkv", () => ungrouped(o.heads, o.headDim));
  }
  parameters[`${output}.weight`] = {
    axes: ["hidden", QUERIES],
    input: "o_proj.input",
    transposed,
    gguf: { name: "attn_output" },
  };
  if (bias.output)
    parameters[`${output}.bias`] = {
      axes: ["hidden"],
      initialization: "zeros",
      gguf: { name: "attn_output", kind: "bias" },
    };
  for (const { name, block } of norms ?? []) Object.assign(parameters, prefixed(name, block.parameters));
  return parameters;
}

/**
 * For some architectures llama.cpp rotates adjacent channels, where transformers rotates channels i and i + half: row 2i + k of a
 * head there is row i + k · half here.
 */
export function interleaved(heads: number, headDim: number): Uint32Array {
  const half = headDim / 2;
  const rows = new Uint32Array(heads * headDim);
  for (let head = 0; head < rows.length; head += headDim)
    for (let channel = 0; channel < headDim; channel++)
      rows[head + channel] = head + Math.floor(channel / 2) + (channel % 2) * half;
  return rows;
}

/** Rows of [heads, 3, headDim] in the order [3, heads, headDim]. */
function ungrouped(heads: number, headDim: number): Uint32Array {
  return Uint32Array.from({ length: 3 * heads * headDim }, (_, row) => {
    const part = Math.floor(row / (heads * headDim));
    const head = Math.floor(row / headDim) % heads;
    return (head * 3 + part) * headDim + (row % headDim);
  });
}
