import { copyFileSync, existsSync, mkdirSync, readdirSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { fromFloat32, toFloat32 } from "../ggml/convert.js";
import type { FloatDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { moveIntoPlace, temporaryBeside, writeJson } from "../system/files.js";
import { isAdapter, notAModel } from "./adapters.js";
import { readConfigJson, writeConfigJson } from "./config-json.js";
import { checkFinite, F16_LARGEST, fitsF16 } from "./finite.js";
import { readJsonObject } from "./json.js";
import { dequantized } from "./quantized.js";
import { openSafetensors, type SafetensorsFile, type TensorToWrite, writeSafetensors } from "./safetensors.js";
import { blocks, floatSource, type TensorInfo, type TensorSource, tensorBytes, tensorInfo } from "./tensor-source.js";

/** A directory in Hugging Face's layout, opened: its configuration and its tensors as they are stored. */
export interface CheckpointDirectory {
  /** The content of `config.json`. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly source: TensorSource;
  /** The files that hold the tensors. */
  readonly files: readonly string[];
  /** Bytes of the tensors as they are stored. */
  readonly bytes: number;
  /** What is read otherwise than it is stored. */
  readonly notes: readonly string[];
}

const WEIGHTS = "model.safetensors";
const INDEX = "model.safetensors.index.json";

/** Files that describe the tokenizer and the generation settings: they go with the weights wherever these go. */
const CARRIED = [
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "tokenizer.model",
  "tekken.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
  "chat_template.json",
];

const isLicence = (name: string): boolean => /^(licen[cs]e|notice|use_policy)/i.test(name);

/**
 * Opens a directory with `config.json` and either `model.safetensors` or the shards of its index.
 * @throws CoppiceError when files are missing, FormatError when they are not what they claim
 */
export function openDirectory(directory: string): CheckpointDirectory {
  const configFile = path.join(directory, "config.json");
  if (isAdapter(directory) && !hasWeights(directory)) throw notAModel(directory);
  if (!existsSync(configFile)) throw new CoppiceError(`${directory} is no model directory: it has no config.json`);
  const config = readConfigJson(configFile);
  const files = openWeights(directory);
  const plain = new ShardedSource(files);
  const quantized = dequantized(directory, config, plain, files);
  return {
    config: quantized?.config ?? config,
    source: quantized?.source ?? plain,
    files: files.map((file) => file.path),
    bytes: files.reduce((sum, { dataBytes }) => sum + dataBytes, 0),
    notes: quantized?.notes ?? leftOut(files),
  };
}

/** Whole numbers (position ids) are no weights: they are neither read nor written again. */
function leftOut(files: readonly SafetensorsFile[]): string[] {
  const names = files.flatMap(({ others }) => [...others.keys()]);
  const some = names.slice(0, 3).join(", ");
  return names.length === 0
    ? []
    : [
        `${names.length} tensors hold whole numbers and are left out of what is written (${some}${names.length > 3 ? ", ..." : ""})`,
      ];
}

/** Whether a path names a GGUF file. */
export const isGguf = (path: string): boolean => path.endsWith(".gguf");

const hasWeights = (directory: string): boolean =>
  [WEIGHTS, INDEX].some((name) => existsSync(path.join(directory, name)));

function openWeights(directory: string): SafetensorsFile[] {
  const single = path.join(directory, WEIGHTS);
  if (existsSync(single)) return [openSafetensors(single)];
  const index = path.join(directory, INDEX);
  if (existsSync(index)) return openShards(directory, index);
  const others = readdirSync(directory).filter((name) => /\.(bin|pth?|gguf|safetensors)$/.test(name));
  throw new CoppiceError(
    `${directory} has neither ${WEIGHTS} nor ${INDEX}${others.length > 0 ? `; it has ${others.slice(0, 4).join(", ")}, which are not read` : ""}`,
  );
}

const indexSchema = z.looseObject({ weight_map: z.record(z.string(), z.string()) });

function openShards(directory: string, index: string): SafetensorsFile[] {
  const parsed = indexSchema.safeParse(readJsonObject(index));
  if (!parsed.success) throw new FormatError(`${index} has no weight_map of names to files`);
  const map = parsed.data.weight_map;
  const shards = new Map<string, SafetensorsFile>();
  for (const [name, file] of Object.entries(map)) {
    if (path.basename(file) !== file || file === "" || file === "..")
      throw new FormatError(`${index}: ${name} is said to be in "${file}", which is no file name beside it`);
    let shard = shards.get(file);
    if (shard === undefined) {
      const full = path.join(directory, file);
      if (!existsSync(full))
        throw new CoppiceError(`${index} names ${file}, which is missing; was the download complete?`);
      shard = openSafetensors(full);
      shards.set(file, shard);
    }
    if (!shard.tensors.has(name) && !shard.others.has(name))
      throw new FormatError(`${index}: ${name} is not in ${file} as it says`);
  }
  return [...shards.values()];
}

/** The tensors of several files as one. */
class ShardedSource implements TensorSource {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  private readonly home = new Map<string, SafetensorsFile>();

  constructor(files: readonly SafetensorsFile[]) {
    const tensors = new Map<string, TensorInfo>();
    for (const file of files) {
      for (const [name, info] of file.tensors) {
        if (tensors.has(name))
          throw new FormatError(`${name} is in ${this.home.get(name)?.path} and again in ${file.path}`);
        tensors.set(name, info);
        this.home.set(name, file);
      }
    }
    this.tensors = tensors;
  }

  private file(name: string): SafetensorsFile {
    const file = this.home.get(name);
    if (file === undefined) throw new FormatError(`the checkpoint has no tensor ${name}`);
    return file;
  }

  readRows(name: string, from: number, to: number): Uint8Array {
    return this.file(name).readRows(name, from, to);
  }

  releaseRows(name: string, from: number, to: number): void {
    this.file(name).releaseRows(name, from, to);
  }
}

export interface WriteOptions {
  /** Stored element type; each tensor's own by default. */
  readonly dtype?: FloatDType | undefined;
  /** Weights are split into files of at most about this size. */
  readonly shardBytes?: number | undefined;
  /** Directory whose tokenizer, generation settings and licence go along. */
  readonly carryFrom?: string | undefined;
  /**
   * Where the file of a name goes; called before it is written, and may throw. By default into a directory that holds no model yet,
   * under its name.
   */
  readonly place?: ((name: string) => string) | undefined;
  /** Told which tensors are kept wider than asked for. */
  readonly onNote?: ((note: string) => void) | undefined;
  readonly onBytes?: ((count: number) => void) | undefined;
  /** Looks at what was written: what could not be opened again gets no config.json. */
  readonly check?: ((written: TensorSource) => void) | undefined;
}

/** As transformers writes: 5 GB. */
const DEFAULT_SHARD_BYTES = 5e9;

/**
 * Writes a model directory that loads in transformers. The weights come first and `config.json` last, each file
 * atomically, so a directory with a `config.json` is whole.
 * @throws CoppiceError when the directory holds a model already, unless `place` says otherwise
 */
export function writeCheckpoint(
  directory: string,
  config: Readonly<Record<string, unknown>>,
  source: TensorSource,
  given: WriteOptions = {},
): void {
  mkdirSync(directory, { recursive: true });
  const place = given.place ?? intoNewModel(directory);
  const options = { ...given, place };
  const floats = floatSource(source);
  const tensors = [...source.tensors.keys()].map((name) =>
    convertedTensor(floats, name, wishFor(floats, name, options)),
  );
  writeShards(tensors, options);
  if (options.carryFrom !== undefined && path.resolve(options.carryFrom) !== path.resolve(directory))
    carryFiles(options.carryFrom, place);
  options.check?.(new ShardedSource(openWeights(directory)));
  writeConfigJson(place("config.json"), withDtype(config, tensors, options.dtype));
}

/** Files of two models mixed would be neither. */
function intoNewModel(directory: string): (name: string) => string {
  const found = readdirSync(directory).find(
    (name) => /^model(-\d+-of-\d+)?\.safetensors(\.index\.json)?$/.test(name) || name === "config.json",
  );
  if (found !== undefined)
    throw new CoppiceError(`${directory} holds a model already (${found}): write into another directory`);
  return (name) => path.join(directory, name);
}

/** The type that a tensor is asked for in, or f32 where it has values that f16 would turn into infinity. */
function wishFor(
  source: TensorSource<FloatDType>,
  name: string,
  { dtype, onNote }: WriteOptions,
): FloatDType | undefined {
  const stored = tensorInfo(source, name).dtype;
  if (dtype !== "f16" || stored === "f16") return dtype;
  for (const { bytes } of blocks(source, name)) {
    if (fitsF16(bytes, stored)) continue;
    onNote?.(
      `${name} has values beyond ${F16_LARGEST}, the largest of f16: it stays f32; load the model as bf16 or f32`,
    );
    return "f32";
  }
  return dtype;
}

/** States the stored type under the name that the configuration already uses for it. */
function withDtype(
  config: Readonly<Record<string, unknown>>,
  tensors: readonly TensorInfo<FloatDType>[],
  wish: FloatDType | undefined,
): Record<string, unknown> {
  const stored = { f32: "float32", f16: "float16", bf16: "bfloat16" }[wish ?? tensors[0]?.dtype ?? "f32"];
  const field = "dtype" in config ? "dtype" : "torch_dtype";
  return { ...config, [field]: stored };
}

function convertedTensor(source: TensorSource<FloatDType>, name: string, wish: FloatDType | undefined): TensorToWrite {
  const info = tensorInfo(source, name);
  const dtype = wish ?? info.dtype;
  const functions = loadFunctions();
  return {
    name,
    dtype,
    shape: info.shape,
    *chunks() {
      for (const { bytes } of blocks(source, name)) {
        const converted =
          dtype === info.dtype ? bytes : fromFloat32(functions, toFloat32(functions, bytes, info.dtype), dtype);
        if (dtype !== info.dtype) checkFinite(`${name} as ${dtype}`, dtype, converted);
        yield converted;
      }
    },
  };
}

function writeShards(
  tensors: readonly TensorToWrite[],
  options: WriteOptions & { readonly place: (name: string) => string },
): void {
  const limit = options.shardBytes ?? DEFAULT_SHARD_BYTES;
  const shards: TensorToWrite[][] = [];
  let size = Number.POSITIVE_INFINITY;
  for (const tensor of tensors) {
    if (size + tensorBytes(tensor) > limit) {
      shards.push([]);
      size = 0;
    }
    shards.at(-1)?.push(tensor);
    size += tensorBytes(tensor);
  }
  const digits = (n: number) => String(n).padStart(5, "0");
  const weightMap: Record<string, string> = {};
  shards.forEach((shard, i) => {
    const name = shards.length === 1 ? WEIGHTS : `model-${digits(i + 1)}-of-${digits(shards.length)}.safetensors`;
    writeSafetensors(options.place(name), shard, {}, options.onBytes);
    for (const tensor of shard) weightMap[tensor.name] = name;
  });
  if (shards.length > 1) {
    const total = tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), 0);
    writeJson(options.place(INDEX), { metadata: { total_size: total }, weight_map: weightMap });
  }
}

function carryFiles(from: string, place: (name: string) => string): void {
  for (const name of readdirSync(from)) {
    if (!CARRIED.includes(name) && !isLicence(name)) continue;
    const to = place(name);
    const temporary = temporaryBeside(to);
    copyFileSync(path.join(from, name), temporary);
    moveIntoPlace(temporary, to);
  }
}
