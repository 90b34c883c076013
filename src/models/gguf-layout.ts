import type { GgufFile, GgufMetadata, GgufValue } from "../checkpoint/gguf.js";
import type { ConfigJson } from "./architecture.js";

/** A parameter in a GGUF file. */
export interface GgufParameter {
  /** Its name there. */
  readonly name: string;
  /** Its name in a Hugging Face checkpoint. */
  readonly parameter: string;
  /** Row i there is row `rows[i]` of the checkpoint's; the same where undefined. */
  readonly rows?: Uint32Array;
}

/** How a model lies in a GGUF file. */
export interface GgufLayout {
  /** `general.architecture`: the graph that llama.cpp computes it with. */
  readonly architecture: string;
  readonly metadata: readonly (readonly [key: string, value: GgufValue])[];
  readonly parameters: readonly GgufParameter[];
  /** Tensors that are computed from the configuration. */
  readonly derived: readonly { readonly name: string; readonly values: Float32Array }[];
  /** Where llama.cpp computes something else than the model says. */
  readonly notes: readonly string[];
}

/** How to recognise an architecture in a GGUF file and get its configuration back. */
export interface GgufReader {
  /** Values of `general.architecture`. */
  readonly architectures: readonly string[];
  /** @throws FormatError naming the key that is missing or not supported */
  readonly configOf: (file: GgufFile) => ConfigJson;
}

/** A float32 as the shortest decimal that it came from: 1e-5 rather than 9.999999747378752e-6. */
export const shortest = (value: number): number => Number(value.toPrecision(7));

/** A number among metadata. */
export function metadataNumber(metadata: GgufMetadata, key: string): number | undefined {
  const entry = metadata.get(key);
  if (entry === undefined || entry.kind === "array" || typeof entry.value !== "number") return undefined;
  return entry.kind === "float32" ? shortest(entry.value) : entry.value;
}

/** A number, or a list of one per layer. */
export function metadataNumbers(metadata: GgufMetadata, key: string): number | number[] | undefined {
  const entry = metadata.get(key);
  return entry?.kind === "array" ? entry.value.map(Number) : metadataNumber(metadata, key);
}

export function metadataString(metadata: GgufMetadata, key: string): string | undefined {
  const entry = metadata.get(key);
  return entry?.kind === "string" ? String(entry.value) : undefined;
}
