import path from "node:path";
import { type GgufMetadata, type GgufTensor, type GgufValue, gguf, ggufBytes, writeGguf } from "../checkpoint/gguf.js";
import { tokenizerMetadata } from "../checkpoint/gguf-tokenizer.js";
import { gatherRows, readTensor, type TensorSource, tensorBytes, tensorInfo } from "../checkpoint/tensor-source.js";
import { checkRunnable } from "../generate/runnable.js";
import { bytesOf, isQuantized, type StoredDType, toFloat32 } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import {
  type Checkpoint,
  countParameters,
  type GgufLayout,
  type GgufParameter,
  type Model,
  shapeOf,
  sizesOfAxis,
} from "../models/index.js";
import { checkTensors } from "../models/weights.js";
import { FormatError } from "../system/errors.js";
import { convertRows, Scratch } from "./convert.js";
import type { Importance } from "./importance.js";
import { Pipeline } from "./pipeline.js";
import { checkImportance, type FileKind, type RecipeFacts, type TensorShape } from "./recipes.js";

/** ggml's number for the way its quantized types are laid out today. */
const QUANTIZATION_VERSION = 2;
/** About so many elements are converted at once by a thread. */
const PIECE_ELEMENTS = 1 << 20;
/** Hubs take files of at most 50 GB. */
const DEFAULT_SHARD_BYTES = 48e9;
/** Pieces that are begun ahead of the one being written. */
const AHEAD = 2;

export interface WriteModelOptions {
  /** The type of each tensor, by its name in GGUF. */
  readonly types: ReadonlyMap<string, StoredDType>;
  /** `general.name`; as the model's directory or file by default. */
  readonly name?: string;
  /** `general.file_type`. */
  readonly fileType: number;
  readonly kind?: FileKind;
  readonly importance?: Importance | undefined;
  readonly shardBytes?: number;
  readonly preTokenizer?: string;
  readonly threads: number;
  readonly onFiles?: ((files: readonly string[]) => void) | undefined;
  readonly onBytes?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

export interface WrittenModel {
  readonly files: readonly string[];
  /** Bytes of the tensors. */
  readonly bytes: number;
  /** Where llama.cpp will do something else than the model says. */
  readonly notes: readonly string[];
}

/** The tensors of a model as they will lie in a GGUF file, without their types. */
export const ggufShapes = (model: Model): TensorShape[] => {
  const specs = new Map(model.parameters.map((spec) => [spec.name, spec]));
  return model.gguf().parameters.flatMap(({ name, role, layer, parameter }) => {
    const spec = specs.get(parameter);
    return spec === undefined ? [] : [{ name, role, layer, shape: shapeOf(spec, model.sizes) }];
  });
};

/** What mixtures want to know of a model. */
export function recipeFacts(model: Model, weighted: boolean): RecipeFacts {
  const [heads = 1, kvHeads = 1] = ["heads", "kvHeads"].map((name) => sizesOfAxis(model, name)[0]);
  return { layers: model.layerCount, heads, kvHeads, weighted };
}

/** A file before its tensors are converted. */
interface Plan {
  readonly metadata: GgufMetadata;
  readonly derived: GgufLayout["derived"];
  readonly tensors: readonly ReturnType<typeof plannedTensor>[];
  readonly notes: readonly string[];
}

function planFile(checkpoint: Checkpoint, model: Model, options: Omit<WriteModelOptions, "threads">): Plan {
  checkTensors(model, checkpoint.source);
  const layout = model.gguf();
  const scratch = new Scratch();
  const tokenizer = tokenizerMetadata(checkpoint.directory, checkpoint.config, model.vocabSize, options.preTokenizer);
  return {
    metadata: describe(
      harmless(options.name ?? nameOf(checkpoint), tokenizer.entries),
      model,
      layout,
      options.fileType,
      [...listedValues(checkpoint.source, layout), ...tokenizer.entries],
    ),
    derived: layout.derived,
    tensors: layout.parameters.map((parameter) => plannedTensor(checkpoint.source, scratch, parameter, options)),
    notes: [...layout.notes, ...tokenizer.notes, ...requantized(checkpoint.source, options.types, layout)],
  };
}

/** Tokens that llama.cpp looks for in any model with Phi-3 in its name, and fails without. */
const PHI3_TOKENS = ["</s>", "<unk>", "<s>", "<|endoftext|>"];

/** A name that llama.cpp reads nothing into that the tokenizer does not hold. */
function harmless(name: string, tokenizer: readonly (readonly [string, GgufValue])[]): string {
  const tokens = tokenizer.find(([key]) => key === "tokenizer.ggml.tokens")?.[1];
  const texts = new Set(tokens?.kind === "array" ? tokens.value : []);
  return PHI3_TOKENS.every((token) => texts.has(token)) ? name : name.replace(/(phi)-?(3)/gi, "$1 $2");
}

/** Parameters of one number a layer that are lists in the metadata. */
const listedValues = (source: TensorSource, { listed }: GgufLayout): [string, GgufValue][] =>
  listed.map(({ key, parameters }) => [
    key,
    gguf.numbers(
      "float32",
      parameters.map((name) => numberOf(source, name)),
    ),
  ]);

function numberOf(source: TensorSource, name: string): number {
  const [value] = toFloat32(loadFunctions(), readTensor(source, name), tensorInfo(source, name).dtype);
  if (value === undefined) throw new FormatError(`${name} is empty`);
  return value;
}

/** Errors of two roundings add up. */
function requantized(source: TensorSource, types: WriteModelOptions["types"], layout: GgufLayout): string[] {
  const again = layout.parameters.filter(({ name, parameter }) => {
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
export function fileBytes(checkpoint: Checkpoint, model: Model, options: Omit<WriteModelOptions, "threads">): number {
  const { metadata, derived, tensors } = planFile(checkpoint, model, options);
  return ggufBytes(metadata, [...derived.map(derivedShape), ...tensors]);
}

/**
 * Writes a model as GGUF, converting on several threads and streaming: a few pieces of a tensor are in memory at a time.
 * @throws CoppiceError when llama.cpp could not run it, FormatError when the weights are not what the configuration says
 */
export async function writeModel(
  file: string,
  checkpoint: Checkpoint,
  model: Model,
  options: WriteModelOptions,
): Promise<WrittenModel> {
  const { metadata, derived, tensors: planned, notes } = planFile(checkpoint, model, options);
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
    verify: (written) => void checkRunnable(written), // what we would not run, nobody gets
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
  { name, role, parameter, rows, offset, factor }: GgufParameter,
  { types, importance, kind }: Omit<WriteModelOptions, "threads">,
) {
  const { dtype: from, shape } = tensorInfo(source, parameter);
  const to = types.get(name) ?? from;
  const weights = importance?.get(parameter);
  if (isQuantized(to) && from !== to && weights === undefined) checkImportance({ name, role }, to, kind);
  const columns = shape.length > 1 ? (shape.at(-1) ?? 1) : 1;
  const total = shape[0] ?? 1;
  const step = Math.max(1, Math.floor(PIECE_ELEMENTS / columns));
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

/** What a model's directory or file is called. */
export const nameOf = ({ path: at }: Checkpoint): string => path.basename(path.resolve(at)).replace(/\.gguf$/, "");

function describe(
  name: string,
  model: Model,
  layout: GgufLayout,
  fileType: number,
  others: readonly (readonly [string, GgufValue])[],
): GgufMetadata {
  return new Map<string, GgufValue>([
    ["general.architecture", gguf.string(layout.architecture)],
    ["general.type", gguf.string("model")],
    ["general.name", gguf.string(name)],
    ["general.size_label", gguf.string(sizeLabel(countParameters(model.parameters, model.sizes)))],
    ["general.file_type", gguf.uint32(fileType)],
    ["general.quantization_version", gguf.uint32(QUANTIZATION_VERSION)],
    ...layout.metadata,
    ...others,
  ]);
}

/** 8414105600 as 8.4B. */
function sizeLabel(parameters: number): string {
  const [scale, unit] = parameters >= 1e9 ? [1e9, "B"] : parameters >= 1e6 ? [1e6, "M"] : [1e3, "K"];
  const value = parameters / scale;
  return `${value >= 100 ? value.toFixed(0) : Number(value.toPrecision(2))}${unit}`;
}
