import { blockSize, isQuantized, type QuantizedDType, type StoredDType } from "../ggml/dtype.js";
import { UsageError } from "../system/errors.js";

/**
 * Which type each tensor gets in a file of a given kind. The mixtures are llama.cpp's, so that a file of a name is here what it is
 * there: facts from its quantizer (src/llama-quant.cpp, release 0.5), checked against it by test.
 */

/** A tensor's part in the model, as far as mixtures tell them apart: its name in GGUF files without layer and kind. */
export type Role =
  | "output"
  | "token_embd"
  | "attn_v"
  | "attn_k"
  | "attn_q"
  | "attn_output"
  | "ffn_down"
  | "ffn_gate"
  | "ffn_up";

/** What a mixture may look at. */
interface Place {
  readonly layer: number;
  readonly layers: number;
  /** Query heads to a key-value head. */
  readonly grouped: number;
  /** Whether there are importances. */
  readonly weighted: boolean;
}

type Choice = StoredDType | ((at: Place) => StoredDType | undefined);

interface Recipe {
  /** `general.file_type` of the file. */
  readonly fileType: number;
  /** What tensors without a word of their own get. */
  readonly base: StoredDType;
  readonly roles?: Readonly<Partial<Record<Role, Choice>>>;
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
    attn_v: grouped("q4_k", low),
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
  if (kind === undefined) throw new UsageError(`there is no type ${text}; there are ${FILE_KINDS.join(", ")}`);
  return kind;
}

export const fileTypeOf = (kind: FileKind): number => RECIPES[kind].fileType;

/** The kind of file whose tensors are mostly of a type, for the label of a mixture of one's own. */
export const fileTypeOfMostly = (dtype: StoredDType): number =>
  Object.values<Recipe>(RECIPES).find(({ base }) => base === dtype)?.fileType ?? RECIPES.f16.fileType;

/** A tensor as far as its type depends on it. */
export interface TensorShape {
  readonly name: string;
  readonly role: string;
  readonly layer: number | undefined;
  readonly shape: readonly number[];
}

/** What of the model mixtures depend on. */
export interface RecipeFacts {
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly weighted: boolean;
}

/** Whether a tensor is ever quantized: matrices are, vectors and learnt positions are not. */
export const isQuantizable = ({ role, shape }: Pick<TensorShape, "role" | "shape">): boolean =>
  shape.length > 1 && !role.endsWith("_norm") && role !== "position_embd";

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
  const tied = !tensors.some(({ role }) => role === "output");
  return new Map(
    tensors.map((tensor) => [
      tensor.name,
      isQuantizable(tensor) ? typeOf(recipe, tensor, facts, tied) : ("f32" as const),
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

function typeOf(
  recipe: Recipe,
  { role: own, layer = 0, shape }: TensorShape,
  facts: RecipeFacts,
  tied: boolean,
): StoredDType {
  const { base, roles = {} } = recipe;
  if (!isQuantized(base)) return base;
  const columns = shape.at(-1) ?? 1;
  // mixtures treat a matrix of queries, keys and values as they treat values
  const role = own === "token_embd" && tied ? "output" : own === "attn_qkv" ? "attn_v" : own;
  if (role === "output") return fittingType(outputType(recipe, columns), columns);
  const choice = roles[role as Role];
  const { layers, heads, kvHeads, weighted } = facts;
  const place = { layer, layers, grouped: heads / kvHeads, weighted };
  const chosen = (typeof choice === "function" ? choice(place) : choice) ?? base;
  // Llama's 70 B: eight heads share a small attn_v
  const large = role === "attn_v" && layers === 80 && heads !== kvHeads && (chosen === "q3_k" || chosen === "q4_k");
  return fittingType(large ? "q5_k" : chosen, columns);
}

/** The output head, or the embedding that is also the head, keeps more bits than the rest. */
function outputType({ base, roles }: Recipe, columns: number): StoredDType {
  if (columns % blockSize(base) !== 0 || base === "q8_0") return "q8_0";
  const own = roles?.output;
  return typeof own === "string" ? own : "q6_k";
}

/** @throws UsageError when a tensor needs importances and has none */
export function checkImportance(
  { name, role }: Pick<TensorShape, "name" | "role">,
  dtype: QuantizedDType,
  kind: FileKind | undefined,
): void {
  const tooCoarse = ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"].includes(dtype);
  if ((tooCoarse || (kind === "q2_k_s" && dtype === "q2_k")) && role !== "token_embd" && role !== "output")
    throw new UsageError(
      `${name}: ${dtype} is garbage without knowing which inputs matter: give calibration data (--data)`,
    );
}
