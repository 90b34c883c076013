import { blockSize, type StoredDType } from "../ggml/dtype.js";
import { UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";

/**
 * The kinds of GGUF files and their mixtures of types. The mixtures are llama.cpp's, so that a kind means here what it means
 * there: facts from its quantizer (src/llama-quant.cpp, release 0.5), checked against it by test.
 */

/** A tensor's role in the model, as far as mixtures distinguish them. */
export type Role =
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

/** What a mixture may depend on, for one tensor. */
export interface Place {
  /** The tensor's index among those of its role, and how many there are. */
  readonly layer: number;
  readonly layers: number;
  /** Query heads per key-value head. */
  readonly grouped: number;
  readonly hasImportance: boolean;
  readonly experts: number;
  readonly architecture: string;
}

type Choice = StoredDType | ((at: Place) => StoredDType | undefined);

export interface Recipe {
  /** The file's `general.file_type`. */
  readonly fileType: number;
  /** The type of tensors for which `roles` has none. */
  readonly base: StoredDType;
  readonly roles?: Readonly<Partial<Record<Role, Choice>>> | undefined;
}

const firstEighth = ({ layer, layers }: Place): boolean => layer < Math.floor(layers / 8);
const lastEighth = ({ layer, layers }: Place): boolean => layer >= Math.floor((7 * layers) / 8);
const middle = (at: Place): boolean => !firstEighth(at) && !lastEighth(at);
/** The first and last eighth of the layers, and every third between. */
export const favoured = (at: Place): boolean =>
  firstEighth(at) || lastEighth(at) || (at.layer - Math.floor(at.layers / 8)) % 3 === 2;

const when =
  (test: (at: Place) => boolean, type: StoredDType, otherwise?: StoredDType): Choice =>
  (at) =>
    test(at) ? type : otherwise;
const grouped = (type: StoredDType, otherwise?: StoredDType): Choice => when((at) => at.grouped >= 4, type, otherwise);

/** The mixtures of 1 and 2 bits on lattices. */
const lattice2 = (fileType: number, base: StoredDType, low: "q2_k" | "iq3_s", attnOutput = base): Recipe => ({
  fileType,
  base,
  roles: {
    output: "q5_k",
    token_embd: low,
    attn_v: when((at) => at.grouped >= 4 || at.experts >= 4, "q4_k", low),
    ffn_down: when(firstEighth, low),
    attn_output: attnOutput,
  },
});

const lattice4 = (fileType: number, base: StoredDType): Recipe => ({
  fileType,
  base,
  roles: { attn_v: grouped("q5_k"), ffn_down: when((at) => firstEighth(at) && !at.hasImportance, "q5_k") },
});

export const RECIPES = {
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
    roles: { ffn_down: when((at) => at.hasImportance && firstEighth(at), "q5_1") },
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
    roles: { ffn_down: when((at) => at.hasImportance && firstEighth(at), "q4_1") },
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
      attn_v: (at) => (at.grouped >= 4 ? "q4_k" : at.hasImportance ? undefined : "iq3_s"),
      attn_k: "iq2_s",
      attn_q: "iq2_s",
      ffn_down: (at) => (at.hasImportance ? undefined : firstEighth(at) ? "q4_k" : "q3_k"),
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

/**
 * A kind of GGUF file.
 * @useDeclaredType
 */
export type FileKind = keyof typeof RECIPES;
/** Kinds of GGUF files, from large to small. */
export const FILE_KINDS = Object.keys(RECIPES) as readonly FileKind[];

/** Reads the name of a kind of file, in either case. @throws UsageError listing the kinds */
export function parseFileKind(text: string): FileKind {
  const kind = FILE_KINDS.find((known) => known === text.toLowerCase());
  if (kind === undefined)
    throw new UsageError(
      `there is no type ${text}; there are ${FILE_KINDS.join(", ")}.${didYouMean(text, FILE_KINDS)}`,
    );
  return kind;
}

export const fileTypeOf = (kind: FileKind): number => RECIPES[kind].fileType;

/** The `general.file_type` of the kind whose tensors mostly have a type: the label for a mixture of one's own. */
export const fileTypeOfMostly = (dtype: StoredDType): number =>
  Object.values<Recipe>(RECIPES).find(({ base }) => base === dtype)?.fileType ?? RECIPES.f16.fileType;

/** The number of elements that rows must be a multiple of to get a kind's main type. */
export const rowMultiple = (kind: FileKind): number => blockSize(RECIPES[kind].base);
