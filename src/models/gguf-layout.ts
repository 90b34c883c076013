import { type GgufValue, gguf } from "../checkpoint/gguf.js";
import type { RotaryConfig } from "./rotary.js";

/** A parameter in a GGUF file. */
export interface GgufParameter {
  /** Its name there. */
  readonly name: string;
  readonly layer: number | undefined;
  /** Its name in a Hugging Face checkpoint. */
  readonly parameter: string;
  /** Row i there is row `rows[i]` of the checkpoint's; the same where undefined. */
  readonly rows: Uint32Array | undefined;
  /** Every element there is (element + offset) · factor. */
  readonly offset: number | undefined;
  readonly factor: number | undefined;
}

/** A tensor that is computed from the configuration. */
export interface DerivedTensor {
  readonly name: string;
  readonly values: Float32Array;
}

/** Parameters of one number that are a list in the metadata. */
export interface ListedValues {
  /** The whole key. */
  readonly key: string;
  /** The parameter of each layer, in order. */
  readonly parameters: readonly string[];
}

/** How a model lies in a GGUF file. */
export interface GgufLayout {
  /** `general.architecture`: the graph that llama.cpp computes it with. */
  readonly architecture: string;
  readonly metadata: readonly (readonly [key: string, value: GgufValue])[];
  readonly parameters: readonly GgufParameter[];
  readonly derived: readonly DerivedTensor[];
  readonly listed: readonly ListedValues[];
  /** Where llama.cpp computes something else than the model says. */
  readonly notes: readonly string[];
}

/** What an architecture says of its GGUF files beside what its blocks say. */
export interface GgufFacts {
  /** `general.architecture`. */
  readonly architecture: string;
  /** By key without the architecture; in place of what the blocks say. Undefined: the key is left out. */
  readonly metadata?: Readonly<Record<string, GgufValue | undefined>> | undefined;
  /** Whose scaling the file tells of. */
  readonly rotary?: RotaryConfig | undefined;
  /** Whether the graph reads factors of the rotary frequencies (llama3, longrope), and YaRN's betas. */
  readonly rotaryReads?: { readonly factors?: boolean | undefined; readonly betas?: boolean | undefined } | undefined;
  /** The graph wants a head of its own: the embedding is written twice where it is the head. */
  readonly copiesHead?: boolean | undefined;
  /** What the graph wants in every layer and the checkpoint does not have (`attn_output.bias`), with its size: zeros. */
  readonly zeros?: Readonly<Record<string, number>> | undefined;
  readonly notes?: readonly string[] | undefined;
  /** Why llama.cpp cannot compute the model at all. */
  readonly refused?: string | undefined;
}

/** Keys whose value may be a list of one for each layer. */
const LISTS: ReadonlySet<string> = new Set(["attention.head_count", "attention.head_count_kv", "feed_forward_length"]);
const INTEGER = /(length|count|head_count_kv)$/;

/** A number as a value of a key: counts and lengths are whole. */
export const numberValue = (key: string, value: number | readonly number[]): GgufValue => {
  const whole = INTEGER.test(key);
  if (typeof value !== "number") return gguf.numbers(whole ? "uint32" : "float32", [...value]);
  return whole ? gguf.uint32(value) : gguf.float32(value);
};

/** Values of a key in each layer as one: a number, or a list where they differ and may; undefined where it cannot be said. */
export function combined(key: string, values: readonly number[]): GgufValue | undefined {
  const [first = 0] = values;
  if (values.every((value) => value === first)) return numberValue(key, first);
  return LISTS.has(key) ? numberValue(key, values) : undefined;
}
