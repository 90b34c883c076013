import { copyFileSync, existsSync, mkdirSync, readdirSync, statSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { fromFloat32, toFloat32 } from "../ggml/convert.js";
import type { FloatDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { moveIntoPlace, temporaryBeside, writeJson } from "../system/files.js";
import { isAdapter, notAModel } from "./adapters.js";
import { namedTemplateFiles } from "./chat-templates.js";
import { readConfigJson, writeConfigJson } from "./config-json.js";
import { checkFinite, F16_LARGEST, fitsF16 } from "./finite.js";
import { readJsonObject } from "./json.js";
import { dequantized } from "./quantized.js";
import { openSafetensors, type SafetensorsFile, type TensorToWrite, writeSafetensors } from "./safetensors.js";
import {
  blocks,
  floatSource,
  splitIntoShards,
  type TensorInfo,
  type TensorSource,
  tensorBytes,
  tensorInfo,
} from "./tensor-source.js";

/** An open directory in Hugging Face's layout: its configuration and its tensors as stored. */
export interface CheckpointDirectory {
  /** The content of `config.json`. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly source: TensorSource;
  /** The files that hold the tensors. */
  readonly files: readonly string[];
  /** Bytes of the tensors as stored. */
  readonly bytes: number;
  /** What is not read as it is stored. */
  readonly notes: readonly string[];
}

const WEIGHTS = "model.safetensors";
const INDEX = "model.safetensors.index.json";

/** Files of the tokenizer, the processors of images and the generation settings, which are copied along with the weights. */
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
  "preprocessor_config.json",
  "processor_config.json",
  "video_preprocessor_config.json",
];

/** Whether a file of a model directory belongs to the model: its configuration, weights, tokenizer, processors, or conditions. */
export const isModelFile = (name: string): boolean =>
  name === "config.json" ||
  name === INDEX ||
  /^model(-\d+-of-\d+)?\.safetensors$/.test(name) ||
  CARRIED.includes(name) ||
  isLicense(name);

const isLicense = (name: string): boolean => /^(licen[cs]e|notice|use_policy)/i.test(name);

/**
 * Opens a directory with `config.json` and either `model.safetensors` or the shards of its index.
 * @throws CoppiceError when files are missing, FormatError when they are not what they claim
 */
export function openDirectory(directory: string): CheckpointDirectory {
  const configFile = path.join(directory, "config.json");
  if (isAdapter(directory) && !hasWeights(directory)) throw notAModel(directory);
  if (!existsSync(configFile)) throw new CoppiceError(`${directory} is not a model directory: it has no config.json`);
  const config = readConfigJson(configFile);
  const files = openWeights(directory);
  const plain = new ShardedSource(files);
  const quantized = dequantized(directory, config, plain, files);
  return {
    config: quantized?.config ?? config,
    source: quantized?.source ?? plain,
    files: files.map((file) => file.path),
    bytes: files.reduce((sum, { dataBytes }) => sum + dataBytes, 0),
    notes: quantized?.notes ?? omissions(files),
  };
}

/** Notes on tensors of whole numbers (position ids): they are not weights, and are neither read nor written. */
function omissions(files: readonly SafetensorsFile[]): string[] {
  const names = files.flatMap(({ others }) => [...others.keys()]);
  if (names.length === 0) return [];
  const examples = `${names.slice(0, 3).join(", ")}${names.length > 3 ? ", ..." : ""}`;
  return [`${names.length} tensors hold whole numbers and are left out of what is written (${examples})`];
}

/** Whether a path is that of a GGUF file. */
export const isGguf = (path: string): boolean => path.endsWith(".gguf");

const hasWeights = (directory: string): boolean =>
  [WEIGHTS, INDEX].some((name) => existsSync(path.join(directory, name)));

function openWeights(directory: string): SafetensorsFile[] {
  const single = path.join(directory, WEIGHTS);
  if (existsSync(single)) return [openSafetensors(single)];
  const index = path.join(directory, INDEX);
  if (existsSync(index)) return openShards(directory, index);
  const others = readdirSync(directory).filter((name) => /\.(bin|pth?|gguf|safetensors)$/.test(name));
  const present =
    others.length > 0
      ? `; it has ${others.slice(0, 4).join(", ")}, which are not read: transformers' \`save_pretrained\` writes ${WEIGHTS}`
      : "";
  throw new CoppiceError(`${directory} has neither ${WEIGHTS} nor ${INDEX}${present}`);
}

const indexSchema = z.looseObject({ weight_map: z.record(z.string(), z.string()) });

function openShards(directory: string, index: string): SafetensorsFile[] {
  const parsed = indexSchema.safeParse(readJsonObject(index));
  if (!parsed.success) throw new FormatError(`${index} has no weight_map of names to files`);
  const map = parsed.data.weight_map;
  const shards = new Map<string, SafetensorsFile>();
  for (const [name, file] of Object.entries(map)) {
    if (path.basename(file) !== file || file === "" || file === "..")
      throw new FormatError(`${index}: ${name} is said to be in "${file}", which is not the name of a file beside it`);
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

/** The tensors of several files as one source. */
class ShardedSource implements TensorSource {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  private readonly fileOf = new Map<string, SafetensorsFile>();

  constructor(files: readonly SafetensorsFile[]) {
    const tensors = new Map<string, TensorInfo>();
    for (const file of files) {
      for (const [name, info] of file.tensors) {
        if (tensors.has(name))
          throw new FormatError(`${name} is in ${this.fileOf.get(name)?.path} and again in ${file.path}`);
        tensors.set(name, info);
        this.fileOf.set(name, file);
      }
    }
    this.tensors = tensors;
  }

  private file(name: string): SafetensorsFile {
    const file = this.fileOf.get(name);
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
  /** Directory whose tokenizer, generation settings and license are copied along. */
  readonly carryFrom?: string | undefined;
  /**
   * The path to write a file to, by its name; called before the file is written, and may throw. By default files keep their names
   * in a directory that must not hold a model yet.
   */
  readonly place?: ((name: string) => string) | undefined;
  /** Called with a note on each tensor that is kept wider than requested. */
  readonly onNote?: ((note: string) => void) | undefined;
  readonly onBytes?: ((count: number) => void) | undefined;
  /** Called with the weights as written; throws to leave the directory without a config.json. */
  readonly check?: ((written: TensorSource) => void) | undefined;
}

/** The default of transformers: 5 GB. */
const DEFAULT_SHARD_BYTES = 5e9;

/**
 * Writes a model directory that loads in transformers. The weights come first and `config.json` last, each file
 * atomically, so a directory with a `config.json` is complete.
 * @throws CoppiceError when the directory already holds a model, unless there is a `place` option
 */
export function writeCheckpoint(
  directory: string,
  config: Readonly<Record<string, unknown>>,
  source: TensorSource,
  options: WriteOptions = {},
): void {
  mkdirSync(directory, { recursive: true });
  const place = options.place ?? intoNewModel(directory);
  const floats = floatSource(source);
  const tensors = [...source.tensors.keys()].map((name) =>
    convertedTensor(floats, name, targetDtype(floats, name, options)),
  );
  writeShards(tensors, place, options);
  if (options.carryFrom !== undefined && path.resolve(options.carryFrom) !== path.resolve(directory))
    carryFiles(options.carryFrom, place);
  options.check?.(new ShardedSource(openWeights(directory)));
  writeConfigJson(place("config.json"), withDtype(config, tensors, options.dtype));
}

/** Refuses a directory that holds a model: two models' files would mix. */
function intoNewModel(directory: string): (name: string) => string {
  const found = readdirSync(directory).find(
    (name) => /^model(-\d+-of-\d+)?\.safetensors(\.index\.json)?$/.test(name) || name === "config.json",
  );
  if (found !== undefined)
    throw new CoppiceError(`${directory} already holds a model (${found}): write into another directory`);
  return (name) => path.join(directory, name);
}

/** The type to store a tensor in: the one requested, or f32 where f16 would turn values into infinity. */
function targetDtype(
  source: TensorSource<FloatDType>,
  name: string,
  { dtype, onNote }: WriteOptions,
): FloatDType | undefined {
  const stored = tensorInfo(source, name).dtype;
  if (dtype !== "f16" || stored === "f16") return dtype;
  for (const { bytes } of blocks(source, name)) {
    if (fitsF16(bytes, stored)) continue;
    onNote?.(
      `${name} has values beyond ${F16_LARGEST}, the largest of f16: it is stored as f32; load the model as bf16 or f32`,
    );
    return "f32";
  }
  return dtype;
}

/** Gemma's activations exceed what f16 holds (transformers' issue 36822): by what is stated, transformers computes in bf16. */
const overflowsF16 = ({ model_type }: Readonly<Record<string, unknown>>): boolean =>
  /^gemma[23]/.test(String(model_type));

/** States the stored type under the name that the configuration already uses for it. */
function withDtype(
  config: Readonly<Record<string, unknown>>,
  tensors: readonly TensorInfo<FloatDType>[],
  requested: FloatDType | undefined,
): Record<string, unknown> {
  const dtype = requested ?? tensors[0]?.dtype ?? "f32";
  const computed = dtype === "f16" && overflowsF16(config) ? "bf16" : dtype;
  const stored = { f32: "float32", f16: "float16", bf16: "bfloat16" }[computed];
  const field = "dtype" in config ? "dtype" : "torch_dtype";
  // the Python files that it names are not carried; transformers has every family itself
  const { auto_map: _, ...rest } = config;
  return { ...rest, [field]: stored };
}

/** @param target the type to convert to; the tensor's own where undefined */
function convertedTensor(
  source: TensorSource<FloatDType>,
  name: string,
  target: FloatDType | undefined,
): TensorToWrite {
  const info = tensorInfo(source, name);
  const dtype = target ?? info.dtype;
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

function writeShards(tensors: readonly TensorToWrite[], place: (name: string) => string, options: WriteOptions): void {
  const shards = splitIntoShards(tensors, options.shardBytes ?? DEFAULT_SHARD_BYTES);
  const digits = (n: number) => String(n).padStart(5, "0");
  const weightMap: Record<string, string> = Object.create(null); // any name is a tensor's, also __proto__
  shards.forEach((shard, i) => {
    const name = shards.length === 1 ? WEIGHTS : `model-${digits(i + 1)}-of-${digits(shards.length)}.safetensors`;
    writeSafetensors(place(name), shard, {}, options.onBytes);
    for (const tensor of shard) weightMap[tensor.name] = name;
  });
  if (shards.length > 1) {
    const total = tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), 0);
    writeJson(place(INDEX), { metadata: { total_size: total }, weight_map: weightMap });
  }
}

function isRegularFile(file: string): boolean {
  try {
    return statSync(file).isFile();
  } catch {
    return false; // a link to nothing, or to itself
  }
}

function carryFiles(from: string, place: (name: string) => string): void {
  const carried = readdirSync(from).filter((name) => CARRIED.includes(name) || isLicense(name));
  for (const name of [...carried, ...namedTemplateFiles(from)]) {
    const file = path.join(from, name);
    if (!isRegularFile(file)) {
      if (isLicense(name)) continue; // a directory of licenses
      throw new CoppiceError(`${file} is not a regular file: replace it, or take it out of the model`);
    }
    const to = place(name);
    mkdirSync(path.dirname(to), { recursive: true });
    const temporary = temporaryBeside(to);
    copyFileSync(file, temporary);
    moveIntoPlace(temporary, to);
  }
}
