import { availableParallelism } from "node:os";
import type { QuantizedDType, StoredDType } from "../ggml/dtype.js";
import type { Checkpoint } from "../models/index.js";
import type { Importance } from "./importance.js";
import { bestMix } from "./mix.js";
import { type FileKind, fileTypeOf, fileTypeOfMostly, typesFor } from "./recipes.js";
import type { Sensitivity } from "./sensitivity.js";
import { fileBytes, ggufShapes, recipeFacts, type WriteModelOptions, type WrittenModel, writeModel } from "./write.js";

export interface ExportOptions
  extends Pick<WriteModelOptions, "name" | "shardBytes" | "preTokenizer" | "onFiles" | "onBytes" | "signal"> {
  /** What kind of file; the name of one of llama.cpp's mixtures. */
  readonly kind: FileKind;
  readonly importance?: Importance;
  /** How many threads convert; all cores by default. */
  readonly threads?: number;
}

/** Writes a model as a GGUF file of a kind. @throws CoppiceError when llama.cpp could not run it */
export function exportGguf(file: string, checkpoint: Checkpoint, options: ExportOptions): Promise<WrittenModel> {
  const { model } = checkpoint;
  const types = typesFor(options.kind, ggufShapes(model), recipeFacts(model, options.importance !== undefined));
  return writeModel(file, checkpoint, model, {
    ...options,
    types,
    fileType: fileTypeOf(options.kind),
    threads: options.threads ?? availableParallelism(),
  });
}

export interface FitOptions extends Omit<ExportOptions, "kind" | "importance"> {
  readonly importance: Importance;
  readonly sizeBytes: number;
}

/** A file that was fitted to a size. */
export interface FittedModel extends WrittenModel {
  /** The sum of what each tensor's type costs alone: nats per token from the unquantized model, to first order. */
  readonly expectedLoss: number;
}

/**
 * Writes a model as a GGUF file of at most so many bytes, each tensor in the type that makes the whole the best.
 * @throws UsageError when it cannot be made so small
 */
export async function exportToSize(
  file: string,
  checkpoint: Checkpoint,
  sensitivity: Sensitivity,
  options: FitOptions,
): Promise<FittedModel> {
  const { model } = checkpoint;
  const shapes = ggufShapes(model);
  const typed = (choice: ReadonlyMap<string, QuantizedDType>): Map<string, StoredDType> =>
    new Map(shapes.map(({ name }) => [name, choice.get(name) ?? "f32"]));
  const { importance } = options;
  // what is not quantized, the header and the gaps between tensors take their share
  const any = new Map([...sensitivity].flatMap(([name, costs]) => (costs[0] ? [[name, costs[0]] as const] : [])));
  const whole = fileBytes(checkpoint, model, {
    ...{ importance, fileType: 0, types: typed(new Map([...any].map(([name, { dtype }]) => [name, dtype]))) },
    ...(options.preTokenizer !== undefined && { preTokenizer: options.preTokenizer }),
  });
  const rest = whole - [...any.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  const mix = await bestMix(sensitivity, options.sizeBytes - rest - ALIGNMENT * any.size);
  const written = await writeModel(file, checkpoint, model, {
    ...options,
    types: typed(mix.types),
    fileType: fileTypeOfMostly(mostly(mix.types, sensitivity)),
    threads: options.threads ?? availableParallelism(),
  });
  return { ...written, expectedLoss: mix.expectedLoss };
}

/** The largest gap between tensors. */
const ALIGNMENT = 32;

/** The type that most bytes have. */
function mostly(types: ReadonlyMap<string, QuantizedDType>, sensitivity: Sensitivity): QuantizedDType {
  const sums = new Map<QuantizedDType, number>();
  for (const [name, dtype] of types) {
    const bytes = sensitivity.get(name)?.find((cost) => cost.dtype === dtype)?.bytes ?? 0;
    sums.set(dtype, (sums.get(dtype) ?? 0) + bytes);
  }
  return [...sums].sort((a, b) => b[1] - a[1])[0]?.[0] ?? "q8_0";
}
