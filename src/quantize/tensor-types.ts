import { blockSize, isQuantized, type QuantizedDType, type StoredDType } from "../ggml/dtype.js";
import { UsageError } from "../system/errors.js";
import { type FileKind, favoured, type Place, RECIPES, type Recipe, type Role } from "./recipes.js";

/** Which type each tensor gets in a file of a given kind; like the recipes, after llama.cpp's quantizer (src/llama-quant.cpp). */

/** Patterns of tensor names by role; the first that matches decides. */
const ROLE_NAMES: readonly (readonly [Role, RegExp])[] = [
  ["output", /^output\.weight$/],
  ["token_embd", /^(per_layer_)?token_embd\.weight$/],
  ["attn_qkv", /attn_qkv\.weight/],
  ["attn_kv_b", /attn_kv_b\.weight/],
  ["attn_v", /attn_v\.weight/],
  ["attn_k", /attn_k\.weight/],
  ["attn_q", /attn_q\.weight/],
  ["attn_output", /attn_output\.weight/],
  ["ffn_up", /ffn_up/],
  ["ffn_gate", /ffn_gate/],
  ["ffn_down", /ffn_down/],
];

const roleOf = (name: string): Role | undefined => ROLE_NAMES.find(([, pattern]) => pattern.test(name))?.[0];

/** Fused matrices of queries, keys and values, and those that expand latents, are treated as values are. */
const countsAsValues = (role: Role | undefined): boolean =>
  role === "attn_v" || role === "attn_qkv" || role === "attn_kv_b";

/** What a tensor's type depends on. */
export interface TensorShape {
  /** Name in the GGUF file. */
  readonly name: string;
  /** The layer it belongs to; undefined for tensors of the whole model. */
  readonly layer: number | undefined;
  readonly shape: readonly number[];
  /** The type that it keeps if it is not quantized; f32 by default. */
  readonly stored?: StoredDType | undefined;
}

/** What mixtures depend on in a model. */
export interface RecipeFacts {
  readonly architecture: string;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly experts: number;
  /** Whether importances are known. */
  readonly hasImportance: boolean;
}

/** Matrices that are never quantized: small ones that much depends on, such as routers, convolutions and positions. */
const NEVER_QUANTIZED = new RegExp(
  [
    "_norm\\.weight",
    "ffn_gate_inp\\.weight",
    "ffn_gate_tid2eid\\.weight",
    "altup|laurel|per_layer_model_proj",
    "^position_embd\\.weight$|^token_types\\.weight$",
    "ssm_conv1d|shortconv\\.conv\\.weight",
    "indexer\\.[kq]_proj\\.weight",
    "time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\\.weight",
    "attn_rel_b\\.weight",
    "\\.position_embd|sam\\.(pos_embd|neck\\.|net_)|\\.rel_pos|\\.patch_embd|\\.patch_merger",
    "a\\.rvq\\.codebook|mm\\.a\\.code_embd",
  ].join("|"),
);

/** Whether a tensor is ever quantized, as all but a few matrices are. */
export const isQuantizable = ({ name, shape }: Pick<TensorShape, "name" | "shape">): boolean =>
  dimensionsOf(shape) > 1 && name.endsWith("weight") && !NEVER_QUANTIZED.test(name);

/** The number of dimensions as ggml counts them: without outer axes of one element. */
function dimensionsOf(shape: readonly number[]): number {
  const first = shape.findIndex((size) => size > 1);
  return first === -1 ? 1 : shape.length - first;
}

/** The type that replaces one whose blocks are not filled by the rows. */
const SMALLER_BLOCKS: Readonly<Partial<Record<QuantizedDType, QuantizedDType>>> = {
  iq1_s: "iq4_nl",
  iq1_m: "iq4_nl",
  iq2_xxs: "iq4_nl",
  iq2_xs: "iq4_nl",
  iq2_s: "iq4_nl",
  iq3_xxs: "iq4_nl",
  iq3_s: "iq4_nl",
  iq4_xs: "iq4_nl",
  q1_0: "q4_0",
  q2_0: "q4_0",
  q2_k: "q4_0",
  q3_k: "q4_0",
  tq1_0: "q4_0",
  tq2_0: "q4_0",
  q4_k: "q5_0",
  q5_k: "q5_1",
  q6_k: "q8_0",
  nvfp4: "mxfp4",
};

/** The type that rows of `columns` elements can have: the wanted one, the next with smaller blocks, or f16. */
export function fittingType(wanted: StoredDType, columns: number): StoredDType {
  if (!isQuantized(wanted) || columns % blockSize(wanted) === 0) return wanted;
  const smaller = SMALLER_BLOCKS[wanted];
  return smaller !== undefined && columns % blockSize(smaller) === 0 ? smaller : "f16";
}

/** The type of each tensor in a file of a kind, by the tensor's name. */
export function typesFor(
  kind: FileKind,
  tensors: readonly TensorShape[],
  facts: RecipeFacts,
): Map<string, StoredDType> {
  const recipe: Recipe = RECIPES[kind];
  const isTied = !tensors.some(({ name }) => roleOf(name) === "output");
  const places = placesOf(tensors, facts, facts.experts > 1 && !isLattice(recipe.base));
  return new Map(
    tensors.map((tensor) => [
      tensor.name,
      isQuantizable(tensor) ? typeOf(recipe, tensor, places(tensor.name), isTied) : (tensor.stored ?? "f32"),
    ]),
  );
}

/** Rows of a multiple of this many elements fill the blocks of every type. */
const LARGEST_BLOCK = 256;

/** How many tensors get another type than their kind of file intends because their rows do not fill its blocks, by the type they get. */
export function fallbacks(
  kind: FileKind,
  tensors: readonly TensorShape[],
  facts: RecipeFacts,
): ReadonlyMap<StoredDType, number> {
  const filling = tensors.map((tensor) => {
    const columns = tensor.shape.at(-1) ?? 1;
    return { ...tensor, shape: [...tensor.shape.slice(0, -1), Math.ceil(columns / LARGEST_BLOCK) * LARGEST_BLOCK] };
  });
  const intended = typesFor(kind, filling, facts);
  const counts = new Map<StoredDType, number>();
  for (const [name, dtype] of typesFor(kind, tensors, facts))
    if (intended.get(name) !== dtype) counts.set(dtype, (counts.get(dtype) ?? 0) + 1);
  return counts;
}

/**
 * The index of each tensor among those of its role, in the order of their layers.
 * @param byLayer whether feed-forward tensors have the number of their layer instead: experts may have several in one layer
 */
function placesOf(tensors: readonly TensorShape[], facts: RecipeFacts, byLayer: boolean): (name: string) => Place {
  const quantizable = tensors.filter(isQuantizable).sort(inFileOrder);
  const values = quantizable.filter(({ name }) => countsAsValues(roleOf(name)));
  const order = new Map<string, number>(values.map(({ name }, i) => [name, i]));
  for (const role of ["ffn_down", "ffn_gate", "ffn_up"] as const)
    quantizable
      .filter(({ name }) => roleOf(name) === role)
      .forEach((tensor, i) => void order.set(tensor.name, byLayer ? layerOf(tensor) : i));
  const { heads, kvHeads, layers, experts, hasImportance, architecture } = facts;
  const shared = { grouped: kvHeads === 0 ? 0 : heads / kvHeads, hasImportance, experts, architecture };
  return (name) => ({
    ...shared,
    layer: order.get(name) ?? 0,
    layers: countsAsValues(roleOf(name)) ? values.length : layers,
  });
}

/** Tensors outside the layers come before those of the first. */
const layerOf = ({ layer }: TensorShape): number => layer ?? -1;

const inFileOrder = (a: TensorShape, b: TensorShape): number =>
  layerOf(a) - layerOf(b) || (a.name < b.name ? -1 : Number(a.name > b.name));

function typeOf(recipe: Recipe, { name, shape }: TensorShape, place: Place, isTied: boolean): StoredDType {
  const { base } = recipe;
  if (!isQuantized(base)) return base;
  const columns = shape.at(-1) ?? 1;
  const role = roleOf(name);
  if (role === "output" || (role === "token_embd" && isTied))
    return fittingType(outputType(recipe, columns, place.architecture), columns);
  const special = role === undefined ? undefined : (expertType(recipe, role, place) ?? falconType(recipe, role, place));
  return fittingType(special ?? mixedType(recipe, role, shape, place), columns);
}

function mixedType(recipe: Recipe, role: Role | undefined, shape: readonly number[], place: Place): StoredDType {
  const { base, roles = {} } = recipe;
  if (recipe === RECIPES.mxfp4_moe) return shape.length > 2 && (shape.at(-3) ?? 1) > 1 ? "mxfp4" : base;
  const choice = role && roles[countsAsValues(role) ? "attn_v" : role];
  const chosen = (typeof choice === "function" ? choice(place) : choice) ?? base;
  // in Llama 70 B eight heads share a small attn_v
  const isLarge = LARGE[place.architecture]?.(place) === true && countsAsValues(role);
  return isLarge && (chosen === "q3_k" || chosen === "q4_k") && !isLattice(base) ? "q5_k" : chosen;
}

/** Models that llama.cpp's rules for 70 B apply to. */
const LARGE: Readonly<Record<string, (at: Place) => boolean>> = {
  llama: (at) => at.layers === 80 && at.grouped !== 1 && at.experts !== 8,
  deci: (at) => at.layers === 80,
  qwen2: (at) => at.layers === 80,
  olmo: (at) => at.layers === 80,
  jais2: (at) => at.layers === 68,
};

/** Types of 1 and 2 bits on lattices, whose mixtures have rules of their own. */
const isLattice = (dtype: StoredDType): boolean => /^iq[12]_/.test(dtype);

/** With eight experts attention is a small part of the model, and its matrices get more bits. */
function expertType({ base, fileType }: Recipe, role: Role, place: Place): StoredDType | undefined {
  if (place.experts !== 8 || fileType === RECIPES.mxfp4_moe.fileType) return undefined;
  if (isLattice(base)) return role === "attn_k" ? "q4_k" : role === "attn_output" ? "q5_k" : undefined;
  if (role === "attn_k" || countsAsValues(role)) return "q8_0";
  if (role === "attn_output") return EIGHT_EXPERTS_OUTPUT.has(fileType) ? "q5_k" : base;
  return fileType === RECIPES.iq3_m.fileType && role === "ffn_down" && favoured(place) ? "q4_k" : undefined;
}

/** Kinds of files in which the output matrix of attention gets more bits with eight experts. */
const EIGHT_EXPERTS_OUTPUT: ReadonlySet<number> = new Set(
  [
    RECIPES.q2_k,
    RECIPES.iq3_xs,
    RECIPES.iq3_xxs,
    RECIPES.iq3_s,
    RECIPES.iq3_m,
    RECIPES.q3_k_s,
    RECIPES.q3_k_m,
    RECIPES.iq4_nl,
    RECIPES.iq4_xs,
    RECIPES.q4_k_s,
    RECIPES.q4_k_m,
  ].map(({ fileType }) => fileType),
);

/** Falcon's feed-forward matrices tolerate fewer bits, and its output matrices need no more than the others. */
function falconType({ base, fileType }: Recipe, role: Role, place: Place): StoredDType | undefined {
  if (place.architecture !== "falcon") return undefined;
  const isEarly = place.layer < Math.floor(place.layers / 16);
  if (role === "attn_output" && !isLattice(base)) return fileType === RECIPES.q3_k_l.fileType ? "q4_k" : base;
  if (role !== "ffn_down") return undefined;
  if (fileType === RECIPES.q3_k_m.fileType) return isEarly ? "q5_k" : favoured(place) ? "q4_k" : "q3_k";
  if (fileType === RECIPES.q3_k_l.fileType) return "q4_k";
  if (fileType === RECIPES.q4_k_m.fileType) return isEarly ? "q6_k" : favoured(place) ? "q5_k" : "q4_k";
  return fileType === RECIPES.q4_k_s.fileType ? base : undefined;
}

/** The output head, or the embedding that is also the head, keeps more bits than the rest. */
function outputType({ base, roles }: Recipe, columns: number, architecture: string): StoredDType {
  if (architecture === "falcon" || columns % blockSize(base) !== 0 || base === "q8_0") return "q8_0";
  const type = roles?.output;
  return typeof type === "string" ? type : "q6_k";
}

/** Types that make garbage of most matrices without importances. */
const NEED_IMPORTANCE: readonly QuantizedDType[] = ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"];

/** @throws UsageError when a tensor without importances is to get a type that needs them */
export function checkImportance(name: string, dtype: QuantizedDType, kind: FileKind | undefined): void {
  const role = roleOf(name);
  if (role === "token_embd" || role === "output") return;
  if (NEED_IMPORTANCE.includes(dtype) || (kind === "q2_k_s" && dtype === "q2_k"))
    throw new UsageError(
      `${name}: ${dtype} is garbage without knowing which inputs matter: give calibration data (--data)`,
    );
}
