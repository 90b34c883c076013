import { availableParallelism } from "node:os";
import type { Checkpoint } from "../checkpoint/directory.js";
import { modelFromConfig } from "../models/index.js";
import type { Importance } from "./importance.js";
import { type FileKind, fileTypeOf, typesFor } from "./recipes.js";
import { ggufShapes, recipeFacts, type WriteModelOptions, type WrittenModel, writeModel } from "./write.js";

export interface ExportOptions extends Pick<WriteModelOptions, "shardBytes" | "preTokenizer" | "onBytes" | "signal"> {
  /** What kind of file; the name of one of llama.cpp's mixtures. */
  readonly kind: FileKind;
  readonly importance?: Importance;
  /** How many threads convert; all cores by default. */
  readonly threads?: number;
}

/** Writes a model as a GGUF file of a kind. @throws CoppiceError when llama.cpp could not run it */
export function exportGguf(file: string, checkpoint: Checkpoint, options: ExportOptions): Promise<WrittenModel> {
  const model = modelFromConfig(checkpoint.config);
  const types = typesFor(options.kind, ggufShapes(model), recipeFacts(model, options.importance !== undefined));
  return writeModel(file, checkpoint, model, {
    ...options,
    types,
    fileType: fileTypeOf(options.kind),
    threads: options.threads ?? availableParallelism(),
  });
}
