import { blockSize, isQuantized, type QuantizedDType, type StoredDType } from "../ggml/dtype.js";
import { UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";

/**
 * Which type each tensor gets in a file of a given kind. The mixtures are llama.cpp's, so that a file of a name is here what it is
 * there: facts from its quantizer (src/llama-quant.cpp, release 0.5), checked against it by test.
 */

/** A tensor's part in the model, as far as mixtures tell them apart. */
type Role =
  | "output"
  | "token_embd"
  | "attn_qkv"
  | "attn_kv_b"
  | "attn_v"
  | "attn_k"
  | "attn_q"
  | "attn_output"
  | "ffn_down"
  | "ffn_gate"
  | "ffn_up";

/** Where a role's name stands in a tensor's, in the order in which they are looked for. */
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

/** Matrices of queries, keys and values, and those that latents are expanded by, are treated as values are. */
const countsAsValues = (role: Role | undefined): boolean =>
  role === "attn_v" || role === "attn_qkv" || role === "attn_kv_b";

/** What a mixture may look at. */
interface Place {
  /** Its place among the tensors of its role, and how many there are. */
  readonly layer: number;
  readonly layers: number;
  /** Query heads to a key-value head. */
  readonly grouped: number;
  /** Whether there are importances. */
  readonly weighted: boolean;
  readonly experts: number;
  readonly architecture: string;
}

type Choice = StoredDType | ((at: Place) => StoredDType | undefined);

interface Recipe {
  /** `general.file_type` of the file. */
  readonly fileType: number;
  /** What tensors without a word of their own get. */
  readonly base: StoredDType;
  readonly roles?: Readonly<Partial<Record<Role, Choice>>> | undefined;
}

const firstEighth = ({ layer, layers }: Place): boolean => layer < Math.floor(layers / 8);
const lastEighth = ({ layer, layers }: Place): boolean => layer >= Math.floor((7 * layers) / 8);
const middle = (at: Place): boolean => !firstEighth(at) && !lastEighth(at);
/** The ends, and every third layer between. */
const favoured = (at: Place): boolean =>
  firstEighth(at) || lastEighth(at) || (at.layer - Math.floor(at.layers / 8)) % 3 === 2;

const when =
  (test: (at: Place) => boolean, type: StoredDType, otherwise?: StoredDType): Choice =>
  (at) =>
    test(at) ? type : otherwise;
const grouped = (type: StoredDType, otherwise?: StoredDType): Choice => when((at) => at.grouped >= 4, type, otherwise);

/** The 1 and 2 bit mixtures on lattices. */
const lattice2 = (fileType: number, base: StoredDType, low: "q2_k" | "iq3_s", attnOutput?: StoredDType): Recipe => ({
  fileType,
  base,
  roles: {
    output: "q5_k",
    token_embd: low,
    attn_v: when((at) => at.grouped >= 4 || at.experts >= 4, "q4_k", low),
    ffn_down: when(firstEighth, low),
    ...(attnOutput !== undefined && { attn_output: attnOutput }),
  },
});

const lattice4 = (fileType: number, base: StoredDType): Recipe => ({
  fileType,
  base,
  roles: { attn_v: grouped("q5_k"), ffn_down: when((at) => firstEighth(at) && !at.weighted, "q5_k") },
});

const RECIPES = {
  f32: { fileType: 0, base: "f32" },
  f16: { fileType: 1, base: "f16" },
  bf16: { fileType: 32, base: "bf16" },
  q8_0: { fileType: 7, base: "q8_0" },
  q6_k: { fileType: 18, base: "q6_k" },
  q5_k_m: { fileType: 17, base: "q5_k", roles: { attn_v: when(favoured, "q6_k"), ffn_down: when(favoured, "q6_k") } },
  q5_k_s: { fileType: 16, base: "q5_k" },
  q5_1: { fileType: 9, base: "q5_1" },
  q5_0: {
    fileType: 8,
    base: "q5_0",
    roles: { ffn_down: when((at) => at.weighted && firstEighth(at), "q5_1") },
  },
  q4_k_m: { fileType: 15, base: "q4_k", roles: { attn_v: when(favoured, "q6_k"), ffn_down: when(favoured, "q6_k") } },
  q4_k_s: {
    fileType: 14,
    base: "q4_k",
    roles: { attn_v: when(({ layer }) => layer < 4, "q5_k"), ffn_down: when(firstEighth, "q5_k") },
  },
  q4_1: { fileType: 3, base: "q4_1" },
  q4_0: {
    fileType: 2,
    base: "q4_0",
    roles: { ffn_down: when((at) => at.weighted && firstEighth(at), "q4_1") },
  },
  iq4_nl: lattice4(25, "iq4_nl"),
  iq4_xs: lattice4(30, "iq4_xs"),
  mxfp4: { fileType: 38, base: "mxfp4", roles: { output: "q8_0", token_embd: "q8_0" } },
  mxfp4_moe: { fileType: 38, base: "q8_0" },
  nvfp4: { fileType: 39, base: "nvfp4", roles: { output: "q8_0", token_embd: "q8_0" } },
  q3_k_l: { fileType: 13, base: "q3_k", roles: { attn_v: "q5_k", ffn_down: "q5_k", attn_output: "q5_k" } },
  q3_k_m: {
    fileType: 12,
    base: "q3_k",
    roles: {
      attn_v: when(({ layer }) => layer < 2, "q5_k", "q4_k"),
      ffn_down: when(({ layer, layers }) => layer < Math.floor(layers / 16), "q5_k", "q4_k"),
      attn_output: "q4_k",
    },
  },
  q3_k_s: { fileType: 11, base: "q3_k" },
  iq3_m: {
    fileType: 27,
    base: "iq3_s",
    roles: { attn_v: "q4_k", ffn_down: when(firstEighth, "q4_k"), attn_output: "q4_k" },
  },
  iq3_s: { fileType: 26, base: "iq3_s", roles: { attn_v: grouped("q4_k") } },
  iq3_xs: {
    fileType: 22,
    base: "iq3_s",
    roles: {
      attn_v: grouped("q4_k"),
      attn_k: "iq3_xxs",
      attn_q: "iq3_xxs",
      ffn_gate: when(middle, "iq3_xxs"),
      ffn_up: when(middle, "iq3_xxs"),
    },
  },
  iq3_xxs: {
    fileType: 23,
    base: "iq3_xxs",
    roles: {
      output: "q5_k",
      token_embd: "iq3_s",
      attn_v: (at) => (at.grouped >= 4 ? "q4_k" : at.weighted ? undefined : "iq3_s"),
      attn_k: "iq2_s",
      attn_q: "iq2_s",
      ffn_down: (at) => (at.weighted ? undefined : firstEighth(at) ? "q4_k" : "q3_k"),
      attn_output: "iq3_s",
    },
  },
  q2_k: {
    fileType: 10,
    base: "q2_k",
    roles: { attn_v: grouped("q4_k", "q3_k"), ffn_down: "q3_k", attn_output: "q3_k" },
  },
  q2_k_s: { fileType: 21, base: "q2_k", roles: { attn_v: grouped("q4_k"), ffn_down: when(firstEighth, "q4_k") } },
  q2_0: { fileType: 41, base: "q2_0", roles: { token_embd: "q4_k" } },
  iq2_m: lattice2(29, "iq2_s", "iq3_s", "iq3_s"),
  iq2_s: lattice2(28, "iq2_xs", "iq3_s", "iq3_s"),
  iq2_xs: lattice2(20, "iq2_xs", "q2_k"),
  iq2_xxs: lattice2(19, "iq2_xxs", "q2_k"),
  tq2_0: { fileType: 37, base: "tq2_0", roles: { token_embd: "q4_k" } },
  tq1_0: { fileType: 36, base: "tq1_0", roles: { token_embd: "q4_k" } },
  iq1_m: lattice2(31, "iq1_m", "q2_k", "iq2_xxs"),
  iq1_s: lattice2(24, "iq1_s", "q2_k", "iq2_xxs"),
  q1_0: { fileType: 40, base: "q1_0" },
} as const satisfies Record<string, Recipe>;

/** Kinds of GGUF files, from large to small. */
export type FileKind = keyof typeof RECIPES;
export const FILE_KINDS = Object.keys(RECIPES) as readonly FileKind[];

/** Reads the name of a kind of file, in either case. @throws UsageError listing what there is */
export function parseFileKind(text: string): FileKind {
  const kind = FILE_KINDS.find((known) => known === text.toLowerCase());
  if (kind === undefined)
    throw new UsageError(
      `there is no type ${text}; there are ${FILE_KINDS.join(", ")}.${didYouMean(text, FILE_KINDS)}`,
    );
  return kind;
}

export const fileTypeOf = (kind: FileKind): number => RECIPES[kind].fileType;

/** The kind of file whose tensors are mostly of a type, for the label of a mixture of one's own. */
export const fileTypeOfMostly = (dtype: StoredDType): number =>
  Object.values<Recipe>(RECIPES).find(({ base }) => base === dtype)?.fileType ?? RECIPES.f16.fileType;

/** A tensor as far as its type depends on it. */
export interface TensorShape {
  /** Its name in the file. */
  readonly name: string;
  readonly shape: readonly number[];
  /** The type of one that is not quantized; f32 by default. */
  readonly stored?: StoredDType | undefined;
}

/** What of the model mixtures depend on. */
export interface RecipeFacts {
  readonly architecture: string;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly experts: number;
  readonly weighted: boolean;
}

/** Matrices that are never quantized: small ones on which much depends, such as routers, convolutions and positions. */
const KEPT = new RegExp(
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

/** Whether a tensor is ever quantized: matrices are, but for a few. */
export const isQuantizable = ({ name, shape }: Pick<TensorShape, "name" | "shape">): boolean =>
  dimensionsOf(shape) > 1 && name.endsWith("weight") && !KEPT.test(name);

/** As ggml counts them: without outer axes of one element. */
function dimensionsOf(shape: readonly number[]): number {
  const first = shape.findIndex((size) => size > 1);
  return first === -1 ? 1 : shape.length - first;
}

/** What comes instead of a type whose blocks the rows do not fill. */
const SMALLER_BLOCKS: Readonly<Partial<Record<QuantizedDType, QuantizedDType>>> = {
  ...{ iq1_s: "iq4_nl", iq1_m: "iq4_nl", iq2_xxs: "iq4_nl", iq2_xs: "iq4_nl", iq2_s: "iq4_nl", iq3_xxs: "iq4_nl" },
  ...{ iq3_s: "iq4_nl", iq4_xs: "iq4_nl", q2_0: "q4_0", q2_k: "q4_0", q3_k: "q4_0", tq1_0: "q4_0", tq2_0: "q4_0" },
  ...{ q4_k: "q5_0", q5_k: "q5_1", q6_k: "q8_0", nvfp4: "mxfp4", q1_0: "q4_0" },
};

/** A type that rows of so many elements can have: the wish, the next with smaller blocks, or f16. */
export function fittingType(wish: StoredDType, columns: number): StoredDType {
  if (!isQuantized(wish) || columns % blockSize(wish) === 0) return wish;
  const smaller = SMALLER_BLOCKS[wish];
  return smaller !== undefined && columns % blockSize(smaller) === 0 ? smaller : "f16";
}

/** The type that each tensor has in a file of a kind. */
export function typesFor(
  kind: FileKind,
  tensors: readonly TensorShape[],
  facts: RecipeFacts,
): Map<string, StoredDType> {
  const recipe: Recipe = RECIPES[kind];
  const tied = !tensors.some(({ name }) => roleOf(name) === "output");
  const places = placesOf(tensors, facts, facts.experts > 1 && !isLattice(recipe.base));
  return new Map(
    tensors.map((tensor) => [
      tensor.name,
      isQuantizable(tensor) ? typeOf(recipe, tensor, places(tensor.name), tied) : (tensor.stored ?? "f32"),
    ]),
  );
}

/** Elements of which rows must be a multiple to have a kind's own type. */
export const rowMultiple = (kind: FileKind): number => blockSize(RECIPES[kind].base);

/** Rows of so many elements fill the blocks of every type. */
const FILLING = 256;

/** Tensors whose rows do not fill the blocks of the type that their kind of file would give them, by the type that they get. */
export function fallbacks(
  kind: FileKind,
  tensors: readonly TensorShape[],
  facts: RecipeFacts,
): ReadonlyMap<StoredDType, number> {
  const filling = tensors.map((tensor) => {
    const columns = tensor.shape.at(-1) ?? 1;
    return { ...tensor, shape: [...tensor.shape.slice(0, -1), Math.ceil(columns / FILLING) * FILLING] };
  });
  const [wished, given] = [typesFor(kind, filling, facts), typesFor(kind, tensors, facts)];
  const counts = new Map<StoredDType, number>();
  for (const [name, dtype] of given) if (wished.get(name) !== dtype) counts.set(dtype, (counts.get(dtype) ?? 0) + 1);
  return counts;
}

/**
 * Where each tensor stands among those of its role, in the order of their layers.
 * @param byLayer whether for feed-forward tensors that is the layer itself, of which there may be several in one
 */
function placesOf(tensors: readonly TensorShape[], facts: RecipeFacts, byLayer: boolean): (name: string) => Place {
  const names = tensors.filter(isQuantizable).map(({ name }) => name);
  const values = names.filter((name) => countsAsValues(roleOf(name))).sort(inFileOrder);
  const order = new Map<string, number>(values.map((name, i) => [name, i]));
  for (const role of ["ffn_down", "ffn_gate", "ffn_up"] as const)
    names
      .filter((name) => roleOf(name) === role)
      .sort(inFileOrder)
      .forEach((name, i) => void order.set(name, byLayer ? layerOf(name) : i));
  const { heads, kvHeads, layers, experts, weighted, architecture } = facts;
  const shared = { grouped: kvHeads === 0 ? 0 : heads / kvHeads, weighted, experts, architecture };
  return (name) => ({
    ...shared,
    layer: order.get(name) ?? 0,
    layers: countsAsValues(roleOf(name)) ? values.length : layers,
  });
}

/** The number in `blk.3.ffn_down.weight`; -1 where there is none. */
const layerOf = (name: string): number => Number(/^blk\.(\d+)\./.exec(name)?.[1] ?? -1);

const inFileOrder = (a: string, b: string): number => layerOf(a) - layerOf(b) || (a < b ? -1 : Number(a > b));

function typeOf(recipe: Recipe, { name, shape }: TensorShape, place: Place, tied: boolean): StoredDType {
  const { base } = recipe;
  if (!isQuantized(base)) return base;
  const columns = shape.at(-1) ?? 1;
  const role = roleOf(name);
  if (role === "output" || (role === "token_embd" && tied))
    return fittingType(outputType(recipe, columns, place.architecture), columns);
  const special = role === undefined ? undefined : (expertType(recipe, role, place) ?? falconType(recipe, role, place));
  return fittingType(special ?? mixedType(recipe, role, shape, place), columns);
}

function mixedType(recipe: Recipe, role: Role | undefined, shape: readonly number[], place: Place): StoredDType {
  const { base, roles = {} } = recipe;
  if (recipe === RECIPES.mxfp4_moe) return shape.length > 2 && (shape.at(-3) ?? 1) > 1 ? "mxfp4" : base;
  const choice = role && roles[countsAsValues(role) ? "attn_v" : role];
  const chosen = (typeof choice === "function" ? choice(place) : choice) ?? base;
  // Llama's 70 B: eight heads share a small attn_v
  const isLarge = LARGE[place.architecture]?.(place) === true && countsAsValues(role);
  return isLarge && (chosen === "q3_k" || chosen === "q4_k") && !isLattice(base) ? "q5_k" : chosen;
}

/** Models that llama.cpp calls 70 B. */
const LARGE: Readonly<Record<string, (at: Place) => boolean>> = {
  llama: (at) => at.layers === 80 && at.grouped !== 1 && at.experts !== 8,
  deci: (at) => at.layers === 80,
  qwen2: (at) => at.layers === 80,
  olmo: (at) => at.layers === 80,
  jais2: (at) => at.layers === 68,
};

/** Types of 1 and 2 bits on lattices, whose mixtures have rules of their own. */
const isLattice = (dtype: StoredDType): boolean => /^iq[12]_/.test(dtype);

/** With eight experts the matrices of attention are a small part of the model, and get more bits. */
function expertType({ base, fileType }: Recipe, role: Role, place: Place): StoredDType | undefined {
  if (place.experts !== 8 || fileType === RECIPES.mxfp4_moe.fileType) return undefined;
  if (isLattice(base)) return role === "attn_k" ? "q4_k" : role === "attn_output" ? "q5_k" : undefined;
  if (role === "attn_k" || countsAsValues(role)) return "q8_0";
  if (role === "attn_output") return EIGHT_EXPERTS_OUTPUT.has(fileType) ? "q5_k" : base;
  return fileType === RECIPES.iq3_m.fileType && role === "ffn_down" && favoured(place) ? "q4_k" : undefined;
}

/** Kinds of files in which the output matrix of attention is raised with eight experts. */
const EIGHT_EXPERTS_OUTPUT: ReadonlySet<number> = new Set(
  [
    ...[RECIPES.q2_k, RECIPES.iq3_xs, RECIPES.iq3_xxs, RECIPES.q3_k_s, RECIPES.q3_k_m, RECIPES.iq4_nl],
    ...[RECIPES.q4_k_s, RECIPES.q4_k_m, RECIPES.iq3_s, RECIPES.iq3_m, RECIPES.iq4_xs],
  ].map(({ fileType }) => fileType),
);

/** Falcon's feed-forward matrices bear fewer bits, and its output matrices need no more than the others. */
function falconType({ base, fileType }: Recipe, role: Role, place: Place): StoredDType | undefined {
  if (place.architecture !== "falcon") return undefined;
  const atFirst = place.layer < Math.floor(place.layers / 16);
  if (role === "attn_output" && !isLattice(base)) return fileType === RECIPES.q3_k_l.fileType ? "q4_k" : base;
  if (role !== "ffn_down") return undefined;
  if (fileType === RECIPES.q3_k_m.fileType) return atFirst ? "q5_k" : favoured(place) ? "q4_k" : "q3_k";
  if (fileType === RECIPES.q3_k_l.fileType) return "q4_k";
  if (fileType === RECIPES.q4_k_m.fileType) return atFirst ? "q6_k" : favoured(place) ? "q5_k" : "q4_k";
  return fileType === RECIPES.q4_k_s.fileType ? base : undefined;
}

/** The output head, or the embedding that is also the head, keeps more bits than the rest. */
function outputType({ base, roles }: Recipe, columns: number, architecture: string): StoredDType {
  if (architecture === "falcon" || columns % blockSize(base) !== 0 || base === "q8_0") return "q8_0";
  const own = roles?.output;
  return typeof own === "string" ? own : "q6_k";
}

/** @throws UsageError when a tensor needs importances and has none */
export function checkImportance(name: string, dtype: QuantizedDType, kind: FileKind | undefined): void {
  const tooCoarse = ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"].includes(dtype);
  if ((tooCoarse || (kind === "q2_k_s" && dtype === "q2_k")) && !isTable(name))
    throw new UsageError(
      `${name}: ${dtype} is garbage without knowing which inputs matter: give calibration data (--data)`,
    );
}

const isTable = (name: string): boolean => ["token_embd", "output"].includes(roleOf(name) ?? "");
