import { availableParallelism } from "node:os";
import { sourceBytes } from "../checkpoint/tensor-source.js";
import { isQuantized, type QuantizedDType, type StoredDType } from "../ggml/dtype.js";
import type { Checkpoint } from "../models/index.js";
import { elementCount } from "../tensor/index.js";
import { type ContentOptions, contentOf, type GgufContent, type GgufOrigin } from "./content.js";
import type { Importance } from "./importance.js";
import { bestMix, checkSmallest } from "./mix.js";
import { type FileKind, fileTypeOf, fileTypeOfMostly } from "./recipes.js";
import { possibleSizes, type Sensitivity } from "./sensitivity.js";
import { fallbacks, type RecipeFacts, type TensorShape, typesFor } from "./tensor-types.js";
import { fileBytes, type WriteContentOptions, type WrittenModel, writeContent } from "./write.js";

export interface ExportOptions
  extends ContentOptions,
    Pick<WriteContentOptions, "shardBytes" | "onFiles" | "onBytes" | "signal"> {
  /** The name of one of llama.cpp's mixtures of types. */
  readonly kind: FileKind;
  readonly importance?: Importance | undefined;
  /** Threads that convert; one per core by default. */
  readonly threads?: number | undefined;
}

/**
 * Writes a model as a GGUF file of a kind.
 * @throws CoppiceError when llama.cpp could not run it, FormatError when the weights do not match the configuration
 */
export async function exportGguf(file: string, origin: GgufOrigin, options: ExportOptions): Promise<WrittenModel> {
  const { kind } = options;
  const content = contentOf(origin, options);
  const facts = { ...content.facts, hasImportance: options.importance !== undefined };
  const written = await writeContent(file, content, {
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

/** Notes that the file is larger than its kind promises, when rows do not fill a type's blocks. */
function fallbackNotes(
  kind: FileKind,
  shapes: readonly TensorShape[],
  facts: RecipeFacts,
  { bytes }: WrittenModel,
): string[] {
  const counts = [...fallbacks(kind, shapes, facts)];
  if (counts.length === 0) return [];
  const count = counts.reduce((sum, [, tensors]) => sum + tensors, 0);
  const elements = shapes.reduce((sum, { shape }) => sum + elementCount(shape), 0);
  const listed = counts.map(([dtype, tensors]) => `${tensors} ${dtype}`).join(", ");
  return [
    `${count} of ${shapes.length} tensors have rows that do not fill the blocks of ${kind} and take other types (${listed}): ${((8 * bytes) / elements).toFixed(1)} bits a weight in all`,
  ];
}

/** Notes that a model that was quantized already has grown. */
function growthNotes(origin: GgufOrigin, { bytes }: WrittenModel): string[] {
  const source = "model" in origin ? origin.source : origin;
  const before = "model" in origin ? origin.bytes : sourceBytes(origin);
  const stored = [...source.tensors.values()].map(({ dtype }) => dtype).filter(isQuantized);
  if (stored.length === 0 || bytes <= before) return [];
  return [
    `the file is larger than the model that it was made from, which is quantized already (${[...new Set(stored)].join(", ")}): ${(bytes / before).toFixed(2)} times its size`,
  ];
}

export interface ExportToSizeOptions extends Omit<ExportOptions, "kind" | "importance"> {
  readonly importance: Importance;
  /** The size that the file may have at most. */
  readonly sizeBytes: number;
}

/** A file of a given size. */
export interface FittedModel extends WrittenModel {
  /** The sum of what each tensor's type costs alone: to first order, the divergence from the unquantized model in nats per token. */
  readonly expectedLoss: number;
}

/**
 * Writes a model as a GGUF file of at most a given size, with the mix of types that is expected to lose least.
 * @throws UsageError when it cannot be made that small
 */
export async function exportToSize(
  file: string,
  checkpoint: Checkpoint,
  sensitivity: Sensitivity,
  options: ExportToSizeOptions,
): Promise<FittedModel> {
  const content = contentOf(checkpoint, options);
  const mix = await bestMix(sensitivity, bytesForWeights(content, sensitivity, options));
  const written = await writeContent(file, content, {
    ...options,
    types: typesIn(content, mix.types),
    fileType: fileTypeOfMostly(mainType(mix.types, sensitivity)),
    threads: options.threads ?? availableParallelism(),
  });
  const notes = [...written.notes, ...growthNotes(checkpoint, written)];
  return { ...written, notes, expectedLoss: mix.expectedLoss };
}

/**
 * Checks that a file can be as small as is asked, before anything is measured for it.
 * @param types to choose from; those of {@link measureSensitivity} by default
 * @throws UsageError saying what it takes at least
 */
export function checkSize(
  checkpoint: Checkpoint,
  types: readonly QuantizedDType[] | undefined,
  options: Omit<ExportToSizeOptions, "importance">,
): void {
  const content = contentOf(checkpoint, options);
  const { sizes, importance } = possibleSizes(checkpoint.model, types);
  checkSmallest(sizes, bytesForWeights(content, sizes, { ...options, importance }));
}

const typesIn = (content: GgufContent, choice: ReadonlyMap<string, QuantizedDType>): Map<string, StoredDType> =>
  new Map(content.shapes.map(({ name }) => [name, choice.get(name) ?? "f32"]));

/** What a file of a size leaves for tensors that are quantized: header, gaps and other tensors take space as well. */
function bytesForWeights(
  content: GgufContent,
  sensitivity: Sensitivity,
  { importance, sizeBytes }: Pick<ExportToSizeOptions, "importance" | "sizeBytes">,
): number {
  const arbitrary = [...sensitivity].flatMap(([name, [cost]]) => (cost === undefined ? [] : [{ name, ...cost }]));
  const types = typesIn(content, new Map(arbitrary.map(({ name, dtype }) => [name, dtype])));
  const weights = arbitrary.reduce((sum, { bytes }) => sum + bytes, 0);
  const overhead = fileBytes(content, { importance, fileType: 0, types }) - weights;
  return sizeBytes - overhead - ALIGNMENT * arbitrary.length;
}

/** The largest gap between tensors. */
const ALIGNMENT = 32;

/** The type that takes most bytes. */
function mainType(types: ReadonlyMap<string, QuantizedDType>, sensitivity: Sensitivity): QuantizedDType {
  const sums = new Map<QuantizedDType, number>();
  for (const [name, dtype] of types) {
    const cost = sensitivity.get(name)?.find((candidate) => candidate.dtype === dtype);
    if (cost !== undefined) sums.set(dtype, (sums.get(dtype) ?? 0) + cost.bytes);
  }
  return [...sums].sort((a, b) => b[1] - a[1])[0]?.[0] ?? "q8_0";
}
