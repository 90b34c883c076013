import type { TensorSource } from "../checkpoint/tensor-source.js";
import type { Model } from "./architecture.js";
import type { ConfigJson } from "./config.js";
import type { StoredNames } from "./stored-names.js";

/** A model's description with its tensors. */
export interface ModelTensors {
  readonly model: Model;
  /** By parameter name. */
  readonly source: TensorSource;
  /** Tensors of no parameter (a vision tower), under their names in the file: they go wherever the model goes. */
  readonly carried?: TensorSource | undefined;
  /** What stands before names where the model is a part of a larger one. */
  readonly prefixes?: StoredNames["prefixes"] | undefined;
}

/** A model, opened lazily: a directory in Hugging Face's layout or a GGUF file. */
export interface Checkpoint extends ModelTensors {
  /** What to open again. */
  readonly path: string;
  /** Where its tokenizer and generation settings lie. */
  readonly directory: string;
  readonly config: ConfigJson;
  /** Bytes of its tensors. */
  readonly bytes: number;
  /** The files that hold them. */
  readonly files: readonly string[];
  /** What in the files is not used, or not as one might think. */
  readonly notes: readonly string[];
}
