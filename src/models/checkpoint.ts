import type { TensorSource } from "../checkpoint/tensor-source.js";
import type { Model } from "./architecture.js";
import type { ConfigJson } from "./config.js";
import type { StoredNames } from "./stored-names.js";

/** A model and its tensors. */
export interface ModelTensors {
  readonly model: Model;
  /** By parameter name. */
  readonly source: TensorSource;
  /** Tensors that belong to no parameter (a vision tower), under their names in the file: they are copied along with the model. */
  readonly carried?: TensorSource | undefined;
  /** Prefixes of stored names, where the model is a part of a larger one. */
  readonly prefixes?: StoredNames["prefixes"] | undefined;
}

/** A model on disk, read lazily: a directory in Hugging Face's layout or a GGUF file. */
export interface Checkpoint extends ModelTensors {
  /** The path that opens it again. */
  readonly path: string;
  /** The directory of its tokenizer and generation settings. */
  readonly directory: string;
  readonly config: ConfigJson;
  /** Bytes of its tensors. */
  readonly bytes: number;
  /** The files that hold them. */
  readonly files: readonly string[];
  /** What in the files is not used, or not as one might expect. */
  readonly notes: readonly string[];
}
