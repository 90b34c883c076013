import type { GgufFile, GgufMetadata } from "../checkpoint/gguf.js";
import { rowCount, sameTensor } from "../checkpoint/tensor-source.js";
import { toFloat32 } from "../ggml/convert.js";
import { loadFunctions } from "../ggml/library.js";
import { FormatError } from "../system/errors.js";
import { type ConfigJson, layerCount } from "./config.js";

/** A float32 as a short decimal: 1e-5 rather than 9.999999747378752e-6. */
export const shortest = (value: number): number => Number(value.toPrecision(7));

/** A number in metadata, if the key holds one. */
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

/** The same with all digits of a float32. */
export function exactNumbers(metadata: GgufMetadata, key: string): number | number[] | undefined {
  const entry = metadata.get(key);
  if (entry?.kind === "array") return entry.value.map(Number);
  return typeof entry?.value === "number" ? entry.value : undefined;
}

export function metadataString(metadata: GgufMetadata, key: string): string | undefined {
  const entry = metadata.get(key);
  return entry?.kind === "string" ? String(entry.value) : undefined;
}

/** Reads a GGUF file for its architecture: keys are without the architecture's name, and errors name what is missing. */
export class GgufConfig {
  readonly architecture: string;
  readonly path: string;

  constructor(readonly file: GgufFile) {
    this.path = file.path;
    this.architecture = metadataString(file.metadata, "general.architecture") ?? "";
  }

  private key(name: string): string {
    return `${this.architecture}.${name}`;
  }

  optional(name: string): number | undefined {
    return metadataNumber(this.file.metadata, this.key(name));
  }

  /** @throws FormatError when the key is missing */
  number(name: string): number {
    return this.required(this.optional(name), name);
  }

  /** The number of layers. @throws FormatError when the file states none, or one that no model has */
  get layers(): number {
    const count = this.number("block_count");
    const layers = layerCount.safeParse(count);
    if (layers.success) return layers.data;
    throw new FormatError(`${this.path}: ${count} is not a valid number of layers (${this.key("block_count")})`);
  }

  optionalNumbers(name: string): number | number[] | undefined {
    return metadataNumbers(this.file.metadata, this.key(name));
  }

  /** @throws FormatError when the key is missing */
  numbers(name: string): number | number[] {
    return this.required(this.optionalNumbers(name), name);
  }

  /** A number that all layers share. @throws FormatError when it is missing or differs */
  shared(name: string): number {
    const value = this.numbers(name);
    const [first = 0, ...others] = [value].flat();
    if (others.some((other) => other !== first))
      throw new FormatError(
        `${this.path}: layers differ in ${this.key(name)}, which this architecture does not support`,
      );
    return first;
  }

  string(name: string): string | undefined {
    return metadataString(this.file.metadata, this.key(name));
  }

  boolean(name: string): boolean | undefined {
    const entry = this.file.metadata.get(this.key(name));
    return entry?.kind === "bool" ? Boolean(entry.value) : undefined;
  }

  has(tensor: string): boolean {
    return this.file.tensors.has(tensor);
  }

  /** Whether any layer has a tensor of this name (`attn_q.bias`): some layers may do without the block that it belongs to. */
  hasInLayers(name: string): boolean {
    return Array.from({ length: this.layers }, (_, i) => `blk.${i}.${name}`).some((tensor) => this.has(tensor));
  }

  /** The elements of a small tensor. */
  values(tensor: string): Float32Array | undefined {
    const info = this.file.tensors.get(tensor);
    if (info === undefined) return undefined;
    return toFloat32(loadFunctions(), this.file.readRows(tensor, 0, rowCount(info)), info.dtype);
  }

  /** Whether the tensor of this name (`attn_output.bias`) has a nonzero element in any layer. */
  readonly isSet = (name: string): boolean => {
    const layers = Array.from({ length: this.layers }, (_, i) => `blk.${i}.${name}`);
    return layers.some((tensor) => this.values(tensor)?.some((value) => value !== 0) ?? false);
  };

  /** Whether the output head is the embedding: it is absent, or a copy where llama.cpp's graph needs one. */
  hasCopiedHead(): boolean {
    return !this.has("output.weight") || sameTensor(this.file, "output.weight", "token_embd.weight");
  }

  /** The size of a head. */
  get headDim(): number {
    return this.optional("attention.key_length") ?? this.number("embedding_length") / this.firstHeads;
  }

  /** Heads of the first layer. */
  get firstHeads(): number {
    const [heads] = [this.numbers("attention.head_count")].flat();
    return this.required(heads, "attention.head_count");
  }

  /** The rotated fraction of each head. */
  get rotaryShare(): number {
    return (this.optional("rope.dimension_count") ?? this.headDim) / this.headDim;
  }

  /** @throws FormatError saying that `feature` is not supported, where the key holds a number that `isUnsupported` */
  refuse(name: string, isUnsupported: (value: number) => boolean, feature: string): void {
    if ([this.optionalNumbers(name) ?? []].flat().some(isUnsupported))
      throw new FormatError(`${this.path}: ${feature} (${this.key(name)}) are not supported`);
  }

  /** `bos_token_id` and `eos_token_id`, if the file has them, and `pad_token_id`: null if it has none, as some classes have a default. */
  get specialTokens(): Record<string, number | null> {
    const id = (name: string) => metadataNumber(this.file.metadata, `tokenizer.ggml.${name}_token_id`);
    const [bos, eos] = [id("bos"), id("eos")];
    const tokens: Record<string, number | null> = {};
    if (bos !== undefined) tokens.bos_token_id = bos;
    if (eos !== undefined) tokens.eos_token_id = eos;
    tokens.pad_token_id = id("padding") ?? null;
    return tokens;
  }

  /** Fields that nearly every configuration has, under their usual names. */
  common(modelType: string, className: string) {
    if ((this.optional("expert_count") ?? 0) > 0)
      throw new FormatError(`${this.path}: mixtures of experts are not supported`);
    this.refuse("nextn_predict_layers", (layers) => layers > 0, "layers for multi-token prediction");
    if (this.boolean("attention.causal") === false)
      throw new FormatError(
        `${this.path}: models that read in both directions (${this.key("attention.causal")}) are not supported`,
      );
    const embedding = this.file.tensors.get("token_embd.weight");
    if (embedding === undefined) throw new FormatError(`${this.path}: the tensor token_embd.weight is missing`);
    const heads = oneIfEqual(this.numbers("attention.head_count"));
    return {
      architectures: [className],
      model_type: modelType,
      vocab_size: embedding.shape[0],
      hidden_size: this.number("embedding_length"),
      intermediate_size: oneIfEqual(this.numbers("feed_forward_length")),
      num_hidden_layers: this.layers,
      num_attention_heads: heads,
      num_key_value_heads: oneIfEqual(this.optionalNumbers("attention.head_count_kv") ?? heads),
      head_dim: this.headDim,
      max_position_embeddings: this.number("context_length"),
      tie_word_embeddings: !this.has("output.weight"),
      ...this.specialTokens,
      torch_dtype: "float16",
    };
  }

  private required<T>(value: T | undefined, name: string): T {
    if (value === undefined)
      throw new FormatError(`${this.path}: the key ${this.key(name)} is missing or not a number`);
    return value;
  }
}

/** A list of equal numbers as that number: some files list what does not differ. */
const oneIfEqual = (numbers: number | number[]): number | number[] => {
  const [first = 0, ...others] = [numbers].flat();
  return others.every((other) => other === first) ? first : numbers;
};

/** A configuration without the fields that are undefined. */
export const defined = (config: Record<string, unknown>): ConfigJson =>
  Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined));
