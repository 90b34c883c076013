import { ops, type Tensor } from "../../tensor/index.js";
import type { Axis } from "../dimensions.js";
import { type RotaryConfig, rotaryFrequencies } from "../rotary.js";
import { type Block, type Parameter, prefixed, type Scope, within } from "./block.js";
import { type NormOptions, rmsNorm } from "./norm.js";

export interface AttentionOptions {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** How positions turn queries and keys; not at all where undefined. */
  readonly rotary: RotaryConfig | undefined;
  /** Neighbouring channels turn together, not those of two halves (GLM-4, ERNIE 4.5). */
  readonly turnsNeighbours?: boolean | undefined;
  /** Multiplies the scores; 1/√headDim by default. */
  readonly scale?: number | undefined;
  /** How many positions a query reads, its own included; all before it by default. */
  readonly window?: number | undefined;
  /** Scores are c · tanh(score / c) (Gemma 2). */
  readonly softCap?: number | undefined;
  /** Queries grow with their position (Ministral 3): a factor for each, applied after they turn. */
  readonly queryFactor?: ((position: number) => number) | undefined;
  readonly norms?: QueryKeyNorms | undefined;
  /** Of all its matrices alike, or of the output's apart; none by default. */
  readonly bias?: boolean | { readonly qkv: boolean; readonly output: boolean } | undefined;
  /** How checkpoints hold queries, keys and values; a matrix each by default. */
  readonly layout?: "separate" | "concatenated" | "by head" | undefined;
  /** What checkpoints call the matrices. */
  readonly names?: { readonly fused: string; readonly output: string } | undefined;
  /** GPT-2's checkpoints store matrices with their axes swapped. */
  readonly transposed?: boolean | undefined;
  /** llama.cpp's graph turns neighbouring channels (Llama) where checkpoints are for halves: rows move. */
  readonly ggufInterleaved?: boolean | undefined;
  /** What llama.cpp's graph must be given queries multiplied by, where it scales scores in another way. */
  readonly ggufQueryScale?: number | undefined;
  /** Whether heads may be cut: not where their size follows from the model's width. */
  readonly prunable?: boolean | undefined;
}

/** Norms of queries and keys: of each head, or of the whole width; before they turn, or after. */
export interface QueryKeyNorms {
  readonly of: "head" | "width";
  readonly epsilon: number;
  readonly plusOne?: boolean | undefined;
  readonly afterRotation?: boolean | undefined;
  /** What checkpoints call them. */
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
  const turning = o.rotary && { "rope.dimension_count": o.rotary.rotaryDim, "rope.freq_base": o.rotary.theta };
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
      ...turning,
    },
    cost: (context) => {
      const read = Math.min(context, window ?? context);
      return { cacheElements: 2 * keys * read, operations: 4 * queries * read };
    },
    forward: (scope, x) => {
      const { g, forest } = scope;
      const [q, k, v] = projected(o, scope, x);
      const [turnedQueries, turnedKeys] = [
        turned(o, scope, q, heads, norms?.[0]),
        turned(o, scope, k, kvHeads, norms?.[1]),
      ];
      const { queryFactor } = o;
      const grown = queryFactor
        ? ops.scaleByPosition(g, turnedQueries, {
            factors: Float32Array.from({ length: scope.seq }, (_, position) => queryFactor(position)),
            positions: forest?.positions,
          })
        : turnedQueries;
      const values = ops.reshape(g, v, { to: [scope.batch, scope.seq, kvHeads, headDim] });
      const mixed = ops.attention(g, grown, turnedKeys, values, {
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

function linear({ g, weight }: Scope, x: Tensor, name: string, bias: boolean): Tensor {
  const y = ops.linear(g, x, weight(`${name}.weight`));
  return bias ? ops.add(g, y, weight(`${name}.bias`)) : y;
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

/** Splits into heads, normalises and turns: [rows, count x headDim] -> [batch, seq, count, headDim]. */
function turned(o: AttentionOptions, scope: Scope, x: Tensor, count: number, norm: NamedNorm | undefined): Tensor {
  const { g, batch, seq } = scope;
  const { headDim, rotary } = o;
  const normed = (y: Tensor): Tensor => {
    if (norm === undefined) return y;
    const rows = o.norms?.of === "head" ? [batch * seq * count, headDim] : [batch * seq, count * headDim];
    return norm.block.forward(within(scope, norm.name), ops.reshape(g, y, { to: rows }));
  };
  const split = (y: Tensor): Tensor => ops.reshape(g, y, { to: [batch, seq, count, headDim] });
  const turn = (y: Tensor): Tensor =>
    rotary === undefined
      ? y
      : ops.rope(g, y, {
          rotaryDim: rotary.rotaryDim,
          interleaved: o.turnsNeighbours,
          positions: scope.forest?.positions,
          ...rotaryFrequencies(rotary, scope.longest),
        });
  return o.norms?.afterRotation ? split(normed(turn(split(x)))) : turn(split(normed(x)));
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
    { name: names[0], block: rmsNorm("attn_q_norm", { ...options(QUERIES), ggufFactor: queryFactor(o) }) },
    { name: names[1], block: rmsNorm("attn_k_norm", options(KEYS)) },
  ];
}

/** The factor on queries in GGUF files; undefined where there is none. */
const queryFactor = ({ ggufQueryScale = 1 }: AttentionOptions): number | undefined =>
  Math.abs(ggufQueryScale - 1) < 1e-9 ? undefined : ggufQueryScale;

const fusedName = ({ names }: AttentionOptions): string => names?.fused ?? "qkv_proj";

function parametersOf(o: AttentionOptions, norms: readonly NamedNorm[] | undefined): Record<string, Parameter> {
  const { layout = "separate", transposed } = o;
  const bias = biasesOf(o);
  const output = o.names?.output ?? "o_proj";
  const parameters: Record<string, Parameter> = {};
  const add = (name: string, axis: Axis, gguf: string, rows?: () => Uint32Array) => {
    const factor = gguf === "attn_q" && norms === undefined ? queryFactor(o) : undefined;
    const place = { name: gguf, rows, factor };
    parameters[`${name}.weight`] = { axes: [axis, "hidden"], input: "input", transposed, gguf: place };
    if (bias.qkv)
      parameters[`${name}.bias`] = { axes: [axis], initialisation: "zeros", gguf: { ...place, kind: "bias" } };
  };
  if (layout === "separate") {
    const moved = (heads: number) => (o.ggufInterleaved ? () => interleaved(heads, o.headDim) : undefined);
    add("q_proj", QUERIES, "attn_q", moved(o.heads));
    add("k_proj", KEYS, "attn_k", moved(o.kvHeads));
    add("v_proj", KEYS, "attn_v");
  } else if (layout === "concatenated") add(fusedName(o), { concat: [QUERIES, KEYS, KEYS] }, "attn_qkv");
  else {
    const perHead: Axis = { concat: ["headDim", "headDim", "headDim"] };
    add(fusedName(o), { product: ["heads", perHead] }, "attn_qkv", () => unmixed(o.heads, o.headDim));
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
      initialisation: "zeros",
      gguf: { name: "attn_output", kind: "bias" },
    };
  for (const { name, block } of norms ?? []) Object.assign(parameters, prefixed(name, block.parameters));
  return parameters;
}

/**
 * llama.cpp turns neighbouring channels of some architectures, transformers channel i and i + half: row 2i + k of a head there is
 * row i + k · half here.
 */
export function interleaved(heads: number, headDim: number): Uint32Array {
  const half = headDim / 2;
  return Uint32Array.from({ length: heads * headDim }, (_, row) => {
    const channel = row % headDim;
    return row - channel + Math.floor(channel / 2) + (channel % 2) * half;
  });
}

/** Rows of [heads, 3, headDim] in the order [3, heads, headDim]. */
function unmixed(heads: number, headDim: number): Uint32Array {
  return Uint32Array.from({ length: 3 * heads * headDim }, (_, row) => {
    const which = Math.floor(row / (heads * headDim));
    const head = Math.floor(row / headDim) % heads;
    return (head * 3 + which) * headDim + (row % headDim);
  });
}
