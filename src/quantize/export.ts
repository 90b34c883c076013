import { availableParallelism } from "node:os";
import { isQuantized, type QuantizedDType, type StoredDType } from "../ggml/dtype.js";
import type { Checkpoint } from "../models/index.js";
import type { Importance } from "./importance.js";
import { bestMix } from "./mix.js";
import {
  type FileKind,
  fallbacks,
  fileTypeOf,
  fileTypeOfMostly,
  type RecipeFacts,
  type TensorShape,
  typesFor,
} from "./recipes.js";
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
export async function exportGguf(file: string, checkpoint: Checkpoint, options: ExportOptions): Promise<WrittenModel> {
  const { kind } = options;
  const { model } = checkpoint;
  const [shapes, facts] = [ggufShapes(model), recipeFacts(model, options.importance !== undefined)];
  const written = await writeModel(file, checkpoint, model, {
    ...options,
    types: typesFor(kind, shapes, facts),
    fileType: fileTypeOf(kind),
    threads: options.threads ?? availableParallelism(),
  });
  const notes = [...written.notes, ...fallbackNotes(kind, shapes, facts, written), ...growthNotes(checkpoint, written)];
  return { ...written, notes };
}

/** Where rows do not fill a type's blocks, files become larger than their kind promises. */
function fallbackNotes(
  kind: FileKind,
  shapes: readonly TensorShape[],
  facts: RecipeFacts,
  { bytes }: WrittenModel,
): string[] {
  const counts = [...fallbacks(kind, shapes, facts)];
  if (counts.length === 0) return [];
  const count = counts.reduce((sum, [, tensors]) => sum + tensors, 0);
  const elements = shapes.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  return [
    `${count} of ${shapes.length} tensors have rows that do not fill the blocks of ${kind} and take other types (${counts
      .map(([dtype, tensors]) => `${tensors} ${dtype}`)
      .join(", ")}): ${((8 * bytes) / elements).toFixed(1)} bits a weight in all`,
  ];
}

/** A model that is quantized already may grow by being quantized. */
function growthNotes(checkpoint: Checkpoint, { bytes }: WrittenModel): string[] {
  const stored = [...checkpoint.source.tensors.values()].map(({ dtype }) => dtype).filter(isQuantized);
  if (stored.length === 0 || bytes <= checkpoint.bytes) return [];
  return [
    `the file is larger than the model that it was made of, which is quantized already (${[...new Set(stored)].join(", ")}): ${(bytes / checkpoint.bytes).toFixed(2)} times its size`,
  ];
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
  const notes = [...written.notes, ...growthNotes(checkpoint, written)];
  return { ...written, notes, expectedLoss: mix.expectedLoss };
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
