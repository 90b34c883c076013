import { type GgufValue, gguf } from "../checkpoint/gguf.js";
import type { RotaryConfig } from "./rotary.js";

/** A parameter in a GGUF file. */
export interface GgufParameter {
  /** Its name there. */
  readonly name: string;
  readonly layer: number | undefined;
  /** Its name in a Hugging Face checkpoint. */
  readonly parameter: string;
  /** Row i there is row `rows[i]` of the checkpoint's tensor; in the same order where undefined. */
  readonly rows: Uint32Array | undefined;
  /** Every element there is (element + offset) · factor. */
  readonly offset: number | undefined;
  readonly factor: number | undefined;
}

/** A tensor that is computed from the configuration. */
export interface DerivedTensor {
  readonly name: string;
  /** Outermost axis first. */
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

/** Scalar parameters that are a list in the metadata. */
export interface ListedValues {
  /** The whole key. */
  readonly key: string;
  /** The parameter of each layer, in order. */
  readonly parameters: readonly string[];
}

/** The layout of a model in a GGUF file. */
export interface GgufLayout {
  /** `general.architecture`: the graph that llama.cpp uses. */
  readonly architecture: string;
  readonly metadata: readonly (readonly [key: string, value: GgufValue])[];
  readonly parameters: readonly GgufParameter[];
  readonly derived: readonly DerivedTensor[];
  readonly listed: readonly ListedValues[];
  /** Where llama.cpp computes something other than the model. */
  readonly notes: readonly string[];
}

/** What an architecture defines of its GGUF files, beside what its blocks define. */
export interface GgufFacts {
  /** `general.architecture`. */
  readonly architecture: string;
  /** By key without the architecture. They override those of the blocks; undefined removes a key. */
  readonly metadata?: Readonly<Record<string, GgufValue | undefined>> | undefined;
  /** The rotary settings whose scaling is written. */
  readonly rotary?: RotaryConfig | undefined;
  /** Whether the graph reads factors of the rotary frequencies (llama3, longrope), and YaRN's betas. */
  readonly rotaryReads?: { readonly factors?: boolean | undefined; readonly betas?: boolean | undefined } | undefined;
  /** The graph needs a separate head: a tied embedding is written twice. */
  readonly copiesHead?: boolean | undefined;
  /** Tensors of zeros that the graph needs in a layer and the checkpoint does not have (`attn_output.bias`), with their shapes. */
  readonly zeros?: ((layer: number) => Readonly<Record<string, readonly number[]>>) | undefined;
  readonly notes?: readonly string[] | undefined;
  /** Why llama.cpp cannot compute the model at all. */
  readonly refused?: string | undefined;
}

/** Keys whose value may be a list of one for each layer. */
const LISTS: ReadonlySet<string> = new Set(["attention.head_count", "attention.head_count_kv", "feed_forward_length"]);
const INTEGER = /(length|count|head_count_kv)$/;

/** A number as a metadata value: an integer for keys of counts and lengths, else a float. */
export const numberValue = (key: string, value: number | readonly number[]): GgufValue => {
  const isInteger = INTEGER.test(key);
  if (typeof value !== "number") return gguf.numbers(isInteger ? "uint32" : "float32", [...value]);
  return isInteger ? gguf.uint32(value) : gguf.float32(value);
};

/** The values of a key in all layers as one value: a number, or a list if they differ and the key allows it; otherwise undefined. */
export function combined(key: string, values: readonly number[]): GgufValue | undefined {
  const [first] = values;
  if (first !== undefined && values.every((value) => value === first)) return numberValue(key, first);
  return LISTS.has(key) ? numberValue(key, values) : undefined;
}
