import { type GgufMetadata, type GgufTensor, gguf, ggufBytes, writeGguf } from "../checkpoint/gguf.js";
import { gatherRows, type TensorSource, tensorBytes, tensorInfo } from "../checkpoint/tensor-source.js";
import { toFloat32 } from "../ggml/convert.js";
import { bytesOf, isQuantized, type StoredDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import type { GgufLayout, GgufParameter } from "../models/index.js";
import { elementCount } from "../tensor/index.js";
import type { GgufContent } from "./content.js";
import { convertRows, Scratch } from "./convert.js";
import type { Importance } from "./importance.js";
import { Pipeline } from "./pipeline.js";
import type { FileKind } from "./recipes.js";
import { checkImportance } from "./tensor-types.js";

/** About how many elements a thread converts at once. */
const BLOCK_ELEMENTS = 1 << 20;
/** The Hugging Face hub accepts files of up to 50 GB. */
const DEFAULT_SHARD_BYTES = 48e9;
/** Blocks that are started ahead of the ones that threads convert. */
const AHEAD = 2;

export interface WriteContentOptions {
  /** The type of each tensor, by the tensor's name in GGUF. */
  readonly types: ReadonlyMap<string, StoredDType>;
  /** `general.file_type`. */
  readonly fileType: number;
  readonly kind?: FileKind | undefined;
  readonly importance?: Importance | undefined;
  readonly shardBytes?: number | undefined;
  readonly threads: number;
  readonly onFiles?: ((files: readonly string[]) => void) | undefined;
  readonly onBytes?: ((done: number, total: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface WrittenModel {
  readonly files: readonly string[];
  /** Bytes of the tensors. */
  readonly bytes: number;
  /** Where llama.cpp will compute something else than the model specifies, and other things that the user should know. */
  readonly notes: readonly string[];
}

/** A file whose tensors are yet to be converted. */
interface PlannedFile {
  readonly metadata: GgufMetadata;
  readonly derived: GgufLayout["derived"];
  readonly tensors: readonly ReturnType<typeof plannedTensor>[];
  readonly notes: readonly string[];
}

function planFile(content: GgufContent, options: Omit<WriteContentOptions, "threads">): PlannedFile {
  const scratch = new Scratch();
  return {
    metadata: new Map([...content.metadata, ["general.file_type", gguf.uint32(options.fileType)]]),
    derived: content.derived,
    tensors: content.tensors.map((tensor) => plannedTensor(content.source, scratch, tensor, options)),
    notes: [...content.notes, ...requantizedNotes(content, options.types)],
  };
}

/** Notes tensors that are quantized a second time, which adds the errors of both roundings. */
function requantizedNotes({ source, tensors }: GgufContent, types: WriteContentOptions["types"]): string[] {
  const requantized = tensors.filter(({ name, parameter }) => {
    const { dtype } = tensorInfo(source, parameter);
    return isQuantized(dtype) && (types.get(name) ?? dtype) !== dtype;
  });
  if (requantized.length === 0) return [];
  return [
    `${requantized.length} tensors were quantized already and are quantized a second time, which loses more: better start from the original`,
  ];
}

const derivedShape = ({ name, shape }: GgufLayout["derived"][number]) => ({ name, dtype: "f32" as const, shape });

/** The size of the file that {@link writeContent} would write, if it is not split. */
export function fileBytes(content: GgufContent, options: Omit<WriteContentOptions, "threads">): number {
  const { metadata, derived, tensors } = planFile(content, options);
  return ggufBytes(metadata, [...derived.map(derivedShape), ...tensors]);
}

/**
 * Writes a GGUF file, converting on several threads and streaming: only a few blocks of rows are in memory at a time.
 * @throws FormatError when values are not finite
 */
export async function writeContent(
  file: string,
  content: GgufContent,
  options: WriteContentOptions,
): Promise<WrittenModel> {
  const { metadata, derived, tensors: planned, notes } = planFile(content, options);
  const jobs = function* () {
    for (const tensor of planned) yield* tensor.rowBlocks();
  };
  const pipeline = new Pipeline(jobs(), options.threads + AHEAD);
  const tensors: GgufTensor[] = [
    ...derived.map((tensor) => ({ ...derivedShape(tensor), chunks: () => [bytesOf(tensor.values)] })),
    ...planned.map(({ name, dtype, shape, blockCount }) => ({
      name,
      dtype,
      shape,
      async *chunks() {
        for (let i = 0; i < blockCount; i++) {
          const block = await pipeline.next();
          yield block.bytes;
          block.release();
        }
      },
    })),
  ];
  const bytes = tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), 0);
  let done = 0;
  const files = await writeGguf(file, metadata, tensors, {
    shardBytes: options.shardBytes ?? DEFAULT_SHARD_BYTES,
    onFiles: options.onFiles,
    verify: content.verify,
    signal: options.signal,
    onBytes: (written) => {
      done += written;
      options.onBytes?.(done, bytes);
    },
  });
  return { files, bytes, notes };
}

/** Rows in their new type. */
interface RowBlock {
  readonly bytes: Uint8Array;
  /** Gives the memory back once the rows are written. */
  readonly release: () => void;
}

/** A tensor to be converted: the number of blocks of rows that it comes in, and the work for each. */
function plannedTensor(
  source: TensorSource,
  scratch: Scratch,
  { name, parameter, rows, offset, factor }: GgufParameter,
  { types, importance, kind }: Omit<WriteContentOptions, "threads">,
) {
  const { dtype: from, shape } = tensorInfo(source, parameter);
  const to = types.get(name) ?? from;
  const weights = importance?.get(parameter);
  if (isQuantized(to) && from !== to && weights === undefined) checkImportance(name, to, kind);
  const columns = shape.length > 1 ? (shape.at(-1) ?? 1) : 1;
  const total = shape[0] ?? 1;
  const rowElements = elementCount(shape.slice(1)); // with three axes, of an expert
  const step = Math.max(1, Math.floor(BLOCK_ELEMENTS / rowElements));
  return {
    name,
    shape,
    dtype: to,
    blockCount: Math.ceil(total / step),
    *rowBlocks() {
      for (let row = 0; row < total; row += step) {
        const end = Math.min(total, row + step);
        yield async (): Promise<RowBlock> => {
          const bytes =
            rows === undefined
              ? source.readRows(parameter, row, end)
              : gatherRows(source, parameter, rows.subarray(row, end));
          const isScaled = offset !== undefined || factor !== undefined;
          const values = isScaled ? scaled(bytes, from, offset, factor) : bytes;
          const dtype = isScaled ? "f32" : from;
          const converted = await convertRows(values, { name, from: dtype, to, columns, importance: weights }, scratch);
          const release = () => {
            source.releaseRows(parameter, row, end);
            if (converted !== bytes) scratch.give(converted);
          };
          return { bytes: converted, release };
        };
      }
    },
  };
}

/** (x + offset) · factor of each element, in f32. */
function scaled(bytes: Uint8Array, dtype: StoredDType, offset = 0, factor = 1): Uint8Array {
  return bytesOf(toFloat32(loadFunctions(), bytes, dtype).map((value) => (value + offset) * factor));
}
