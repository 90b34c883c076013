import { availableParallelism } from "node:os";
import { sourceBytes } from "../checkpoint/tensor-source.js";
import { isQuantized, type QuantizedDType, type StoredDType } from "../ggml/dtype.js";
import type { Checkpoint } from "../models/index.js";
import { type ContentOptions, contentOf, type GgufOrigin } from "./content.js";
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
import { fileBytes, type WriteModelOptions, type WrittenModel, writeModel } from "./write.js";

export interface ExportOptions
  extends ContentOptions,
    Pick<WriteModelOptions, "shardBytes" | "onFiles" | "onBytes" | "signal"> {
  /** What kind of file; the name of one of llama.cpp's mixtures. */
  readonly kind: FileKind;
  readonly importance?: Importance | undefined;
  /** How many threads convert; all cores by default. */
  readonly threads?: number | undefined;
}

/**
 * Writes a model as a GGUF file of a kind.
 * @throws CoppiceError when llama.cpp could not run it, FormatError when the weights are not what the configuration says
 */
export async function exportGguf(file: string, origin: GgufOrigin, options: ExportOptions): Promise<WrittenModel> {
  const { kind } = options;
  const content = contentOf(origin, options);
  const facts = { ...content.facts, weighted: options.importance !== undefined };
  const written = await writeModel(file, content, {
    ...options,
    types: typesFor(kind, content.shapes, facts),
    fileType: fileTypeOf(kind),
    threads: options.threads ?? availableParallelism(),
  });
  const notes = [
    ...written.notes,
    ...fallbackNotes(kind, content.shapes, facts, written),
    ...growthNotes(origin, written),
  ];
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
function growthNotes(origin: GgufOrigin, { bytes }: WrittenModel): string[] {
  const source = "model" in origin ? origin.source : origin;
  const before = "model" in origin ? origin.bytes : sourceBytes(origin);
  const stored = [...source.tensors.values()].map(({ dtype }) => dtype).filter(isQuantized);
  if (stored.length === 0 || bytes <= before) return [];
  return [
    `the file is larger than the model that it was made of, which is quantized already (${[...new Set(stored)].join(", ")}): ${(bytes / before).toFixed(2)} times its size`,
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
  const content = contentOf(checkpoint, options);
  const typed = (choice: ReadonlyMap<string, QuantizedDType>): Map<string, StoredDType> =>
    new Map(content.shapes.map(({ name }) => [name, choice.get(name) ?? "f32"]));
  const { importance } = options;
  // what is not quantized, the header and the gaps between tensors take their share
  const any = new Map([...sensitivity].flatMap(([name, costs]) => (costs[0] ? [[name, costs[0]] as const] : [])));
  const whole = fileBytes(content, {
    importance,
    fileType: 0,
    types: typed(new Map([...any].map(([name, { dtype }]) => [name, dtype]))),
  });
  const rest = whole - [...any.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  const mix = await bestMix(sensitivity, options.sizeBytes - rest - ALIGNMENT * any.size);
  const written = await writeModel(file, content, {
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
