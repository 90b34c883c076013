import { type GgufMetadata, type GgufTensor, gguf, ggufBytes, writeGguf } from "../checkpoint/gguf.js";
import { gatherRows, type TensorSource, tensorBytes, tensorInfo } from "../checkpoint/tensor-source.js";
import { toFloat32 } from "../ggml/convert.js";
import { bytesOf, isQuantized, type StoredDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import type { GgufLayout, GgufParameter } from "../models/index.js";
import type { GgufContent } from "./content.js";
import { convertRows, Scratch } from "./convert.js";
import type { Importance } from "./importance.js";
import { Pipeline } from "./pipeline.js";
import { checkImportance, type FileKind } from "./recipes.js";

/** About so many elements are converted at once by a thread. */
const PIECE_ELEMENTS = 1 << 20;
/** Hubs take files of at most 50 GB. */
const DEFAULT_SHARD_BYTES = 48e9;
/** Pieces that are begun ahead of the one being written. */
const AHEAD = 2;

export interface WriteModelOptions {
  /** The type of each tensor, by its name in GGUF. */
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
  /** Where llama.cpp will do something else than the model says. */
  readonly notes: readonly string[];
}

/** A file before its tensors are converted. */
interface Plan {
  readonly metadata: GgufMetadata;
  readonly derived: GgufLayout["derived"];
  readonly tensors: readonly ReturnType<typeof plannedTensor>[];
  readonly notes: readonly string[];
}

function planFile(content: GgufContent, options: Omit<WriteModelOptions, "threads">): Plan {
  const scratch = new Scratch();
  return {
    metadata: new Map([...content.metadata, ["general.file_type", gguf.uint32(options.fileType)]]),
    derived: content.derived,
    tensors: content.tensors.map((tensor) => plannedTensor(content.source, scratch, tensor, options)),
    notes: [...content.notes, ...requantized(content, options.types)],
  };
}

/** Errors of two roundings add up. */
function requantized({ source, tensors }: GgufContent, types: WriteModelOptions["types"]): string[] {
  const again = tensors.filter(({ name, parameter }) => {
    const { dtype } = tensorInfo(source, parameter);
    return isQuantized(dtype) && (types.get(name) ?? dtype) !== dtype;
  });
  return again.length === 0
    ? []
    : [
        `${again.length} tensors were quantized already, and are quantized again from what that left: better from the original`,
      ];
}

const derivedShape = ({ name, values }: GgufLayout["derived"][number]) => ({
  ...{ name, dtype: "f32" as const, shape: [values.length] },
});

/** The size of the file that {@link writeModel} would write, when it is one. */
export function fileBytes(content: GgufContent, options: Omit<WriteModelOptions, "threads">): number {
  const { metadata, derived, tensors } = planFile(content, options);
  return ggufBytes(metadata, [...derived.map(derivedShape), ...tensors]);
}

/**
 * Writes a GGUF file, converting on several threads and streaming: a few pieces of a tensor are in memory at a time.
 * @throws FormatError when values are no numbers
 */
export async function writeModel(
  file: string,
  content: GgufContent,
  options: WriteModelOptions,
): Promise<WrittenModel> {
  const { metadata, derived, tensors: planned, notes } = planFile(content, options);
  const jobs = function* () {
    for (const tensor of planned) yield* tensor.pieces();
  };
  const pipeline = new Pipeline(jobs(), options.threads + AHEAD);
  const tensors: GgufTensor[] = [
    ...derived.map((tensor) => ({ ...derivedShape(tensor), chunks: () => [bytesOf(tensor.values)] })),
    ...planned.map(({ name, dtype, shape, count }) => ({
      ...{ name, dtype, shape },
      async *chunks() {
        for (let i = 0; i < count; i++) {
          const piece = await pipeline.next();
          yield piece.bytes;
          piece.written();
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
    ...(options.signal && { signal: options.signal }),
    onBytes: (written) => {
      done += written;
      options.onBytes?.(done, bytes);
    },
  });
  return { files, bytes, notes };
}

/** Some rows in their new type. */
interface Piece {
  readonly bytes: Uint8Array;
  /** To be called when they are written: gives back what they held. */
  readonly written: () => void;
}

/** A tensor on its way: how many pieces it comes in, and the work for each. */
function plannedTensor(
  source: TensorSource,
  scratch: Scratch,
  { name, parameter, rows, offset, factor }: GgufParameter,
  { types, importance, kind }: Omit<WriteModelOptions, "threads">,
) {
  const { dtype: from, shape } = tensorInfo(source, parameter);
  const to = types.get(name) ?? from;
  const weights = importance?.get(parameter);
  if (isQuantized(to) && from !== to && weights === undefined) checkImportance(name, to, kind);
  const columns = shape.length > 1 ? (shape.at(-1) ?? 1) : 1;
  const total = shape[0] ?? 1;
  const rowElements = shape.slice(1).reduce((product, size) => product * size, 1); // of an expert, where there are three axes
  const step = Math.max(1, Math.floor(PIECE_ELEMENTS / rowElements));
  return {
    name,
    shape,
    dtype: to,
    count: Math.ceil(total / step),
    *pieces() {
      for (let row = 0; row < total; row += step) {
        const end = Math.min(total, row + step);
        yield async (): Promise<Piece> => {
          const bytes =
            rows === undefined
              ? source.readRows(parameter, row, end)
              : gatherRows(source, parameter, rows.subarray(row, end));
          const isChanged = offset !== undefined || factor !== undefined;
          const plain = isChanged ? changed(bytes, from, offset, factor) : bytes;
          const dtype = isChanged ? "f32" : from;
          const converted = await convertRows(plain, { name, from: dtype, to, columns, importance: weights }, scratch);
          const written = () => {
            source.releaseRows(parameter, row, end);
            if (converted !== bytes) scratch.give(converted);
          };
          return { bytes: converted, written };
        };
      }
    },
  };
}

/** (x + offset) · factor of each number, f32. */
function changed(bytes: Uint8Array, dtype: StoredDType, offset = 0, factor = 1): Uint8Array {
  return bytesOf(toFloat32(loadFunctions(), bytes, dtype).map((value) => (value + offset) * factor));
}
