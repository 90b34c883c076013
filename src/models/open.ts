import { existsSync } from "node:fs";
import path from "node:path";
import { splitAdapters } from "../checkpoint/adapters.js";
import { type GgufFile, openGguf } from "../checkpoint/gguf.js";
import { isGguf, openDirectory, type WriteOptions, writeCheckpoint } from "../checkpoint/index.js";
import { floatSource, rowCount, sameTensor, sourceBytes, type TensorSource } from "../checkpoint/tensor-source.js";
import { tokenizerFiles } from "../checkpoint/tokenizer-from-gguf.js";
import type { StoredDType } from "../ggml/dtype.js";
import { FormatError, required } from "../system/errors.js";
import { cacheDirectory, hashBytes, writeJson } from "../system/files.js";
import type { Model } from "./architecture.js";
import type { Checkpoint, ModelTensors } from "./checkpoint.js";
import type { ConfigJson } from "./config.js";
import { shapeOf, sizeOf } from "./dimensions.js";
import { exactNumbers } from "./gguf-config.js";
import type { GgufParameter } from "./gguf-layout.js";
import { mergeAdapters } from "./lora.js";
import { configFromGguf, modelFromConfig } from "./registry.js";
import {
  inverted,
  joinedSource,
  memorySource,
  type Place,
  placedSource,
  renamedSource,
  transposedSource,
} from "./sources.js";
import { type StoredNames, storedNames, wrappedName } from "./stored-names.js";
import { checkTensors } from "./weights.js";
import { languageConfig, withLanguageConfig } from "./wrappers.js";

/**
 * Opens a model: a directory with `config.json` and safetensors files, or a GGUF file. `MODEL+lora:ADAPTER` merges the LoRA
 * adapter in a directory into it.
 * @throws CoppiceError when files are missing, FormatError when they are damaged or the architecture is not supported
 */
export function openCheckpoint(name: string): Checkpoint {
  const { base, adapters } = splitAdapters(name);
  const checkpoint = isGguf(base) ? ggufCheckpoint(openModelFile(base)) : openDirectoryModel(base);
  return adapters.length === 0 ? checkpoint : mergeAdapters(checkpoint, adapters);
}

function openDirectoryModel(directory: string): Checkpoint {
  const { config: storedConfig, source: raw, files, bytes, notes: readNotes } = openDirectory(directory);
  const { config, notes: tieNotes } = untiedIfHeadDiffers(storedConfig, raw);
  const model = modelFromConfig(config);
  const names = storedNames(model, raw.tensors);
  const isWrapped = languageConfig(config) !== config;
  const source = transposedSource(renamedSource(raw, names.tensorOf), transposedParameters(model));
  const others = names.others.filter((name) => !isHead(name));
  const carried = others.length === 0 ? undefined : renamedSource(raw, new Map(others.map((name) => [name, name])));
  return {
    path: directory,
    directory,
    config,
    model,
    source,
    carried,
    prefixes: isWrapped ? names.prefixes : undefined,
    bytes,
    files,
    notes: [...readNotes, ...tieNotes, ...notesOnNames(names, others)],
  };
}

const transposedParameters = (model: Model): ReadonlySet<string> =>
  new Set(model.parameters.flatMap(({ name, transposed }) => (transposed ? [name] : [])));

const isHead = (name: string): boolean => /(^|\.)(lm_head|embed_out)\.weight$/.test(name);

function notesOnNames({ surplusLayers }: StoredNames, others: readonly string[]): string[] {
  const notes: string[] = [];
  const [first, last] = [surplusLayers[0], surplusLayers.at(-1)];
  const range = first === last ? first : `${first} to ${last}`;
  if (surplusLayers.length > 0)
    notes.push(
      `the files hold ${surplusLayers.length} more layers than the configuration has (${range}); they are not used`,
    );
  const groups = [...new Set(others.map((name) => name.split(".").slice(0, 2).join(".")))];
  const examples = `${groups.slice(0, 4).join(", ")}${groups.length > 4 ? ", ..." : ""}`;
  if (others.length > 0)
    notes.push(
      `${others.length} tensors belong to no parameter of the language model (${examples}); a model directory gets them unchanged, a GGUF file does not`,
    );
  return notes;
}

/**
 * The configuration, with the embeddings untied if the files hold an output head of other values: transformers then uses that head,
 * too.
 */
function untiedIfHeadDiffers(
  config: ConfigJson,
  raw: TensorSource,
): { readonly config: ConfigJson; readonly notes: readonly string[] } {
  const language = languageConfig(config);
  const model = modelFromConfig(config);
  const head = [...raw.tensors.keys()].find(isHead);
  const { tensorOf } = storedNames(model, raw.tensors);
  const [embeddingSpec] = model.parameters;
  const embedding = embeddingSpec && tensorOf.get(embeddingSpec.name);
  if (!model.tiedEmbeddings || head === undefined || embedding === undefined || sameTensor(raw, head, embedding))
    return { config, notes: [] };
  return {
    config: withLanguageConfig(config, { ...language, tie_word_embeddings: false }),
    notes: [
      `config.json ties the output head to the embedding, but ${head} has other values: it is used, as in transformers`,
    ],
  };
}

/** A GGUF file as a supported model; or why it is not one, though llama.cpp may run it. */
export type GgufModel =
  | { readonly file: GgufFile; readonly checkpoint: Checkpoint }
  | { readonly file: GgufFile; readonly checkpoint: undefined; readonly reason: string };

/**
 * Opens a GGUF file, whatever its architecture.
 * @throws CoppiceError when files are missing, FormatError when the header is invalid
 */
export function openGgufModel(path: string): GgufModel {
  const file = openModelFile(path);
  try {
    const checkpoint = ggufCheckpoint(file);
    checkTensors(checkpoint.model, checkpoint.source);
    return { file, checkpoint };
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    const reason = error.message.startsWith(path) ? error.message : `${path}: ${error.message}`;
    return { file, checkpoint: undefined, reason };
  }
}

function openModelFile(path: string): GgufFile {
  const file = openGguf(path);
  if (file.metadata.get("general.type")?.value === "adapter")
    throw new FormatError(
      `${path} is a LoRA adapter, not a model: serve takes it with --lora, other commands merge PEFT's`,
    );
  return file;
}

function ggufCheckpoint(file: GgufFile): Checkpoint {
  const config = configFromGguf(file);
  const model = modelFromConfig(config);
  const places = ggufPlaces(file, model);
  checkUnknown(file, model, places);
  const source = joinedSource(placedSource(file, places), listedValues(file, model));
  let directory: string | undefined;
  return {
    path: file.path,
    get directory() {
      directory ??= tokenizerDirectory(file);
      return directory;
    },
    config,
    model,
    source,
    bytes: sourceBytes(file),
    files: file.files,
    notes: [],
  };
}

/** The directory in the cache that holds the file's tokenizer as files. */
function tokenizerDirectory(file: GgufFile): string {
  const files = tokenizerFiles(file.path, file.metadata);
  const directory = path.join(cacheDirectory(), "gguf", hashBytes(JSON.stringify(files)).slice(0, 32));
  for (const [name, content] of Object.entries(files))
    if (!existsSync(path.join(directory, name))) writeJson(path.join(directory, name), content);
  return directory;
}

/** The place of each parameter in a GGUF file. Missing ones are reported when weights are loaded. */
function ggufPlaces(file: GgufFile, model: Model): Map<string, Place> {
  const places = new Map<string, Place>();
  const specs = new Map(model.parameters.map((spec) => [spec.name, spec]));
  for (const tensor of model.gguf().parameters) {
    const spec = required(specs.get(tensor.parameter), `the model has no parameter ${tensor.parameter}`);
    const place = placeOf(file, tensor, rowCount({ shape: shapeOf(spec, model.sizes) }));
    if (place !== undefined) places.set(tensor.parameter, place);
  }
  return places;
}

/**
 * Some of llama.cpp's graphs add biases that the family's checkpoints cannot have, or multiply by scales of a matrix (NVFP4).
 * @throws FormatError naming such a tensor
 */
function checkUnknown(file: GgufFile, model: Model, places: ReadonlyMap<string, Place>): void {
  const known = new Set([...places.values()].map(({ name }) => name));
  for (const { name } of model.gguf().derived) known.add(name);
  for (const name of file.tensors.keys()) {
    if (known.has(name)) continue;
    if (name.endsWith(".bias"))
      throw new FormatError(`${file.path}: ${name} is a bias that ${model.architecture} models do not have`);
    if (/\.(input_)?scale$/.test(name))
      throw new FormatError(
        `${file.path}: ${name} scales a matrix, which is not supported: open the model that the file was made of`,
      );
  }
}

/** Scalar parameters that the metadata lists: one for each layer, or one for all. */
function listedValues(file: GgufFile, model: Model): TensorSource {
  const values = new Map<string, { shape: number[]; values: Float32Array }>();
  const specs = new Map(model.parameters.map((spec) => [spec.name, spec]));
  for (const { key, parameters } of model.gguf().listed) {
    const list = exactNumbers(file.metadata, key);
    if (list === undefined) continue;
    if (Array.isArray(list) && list.length !== parameters.length)
      throw new FormatError(`${file.path}: ${key} lists ${list.length} numbers for ${parameters.length} layers`);
    parameters.forEach((parameter, i) => {
      const spec = specs.get(parameter);
      const value = typeof list === "number" ? list : list[i];
      if (spec === undefined || value === undefined) return;
      values.set(parameter, { shape: shapeOf(spec, model.sizes), values: Float32Array.of(value) });
    });
  }
  return memorySource(values);
}

/** @param count of the parameter's rows */
function placeOf(file: GgufFile, { name, rows, offset }: GgufParameter, count: number): Place | undefined {
  const info = file.tensors.get(name);
  if (info === undefined) return fusedPlace(file, name, rows, count);
  if (rows !== undefined && rows.length !== info.shape[0])
    throw new FormatError(`${file.path}: ${name} has ${info.shape[0]} rows, but its heads need ${rows.length}`);
  return { name, rows: rows && inverted(rows), offset: offset && -offset };
}

/** The place in a matrix of queries, keys and values, which some files have instead of three matrices. */
function fusedPlace(file: GgufFile, name: string, rows: Uint32Array | undefined, count: number): Place | undefined {
  const fused = name.replace(/attn_[qkv]\.(weight|bias)$/, "attn_qkv.$1");
  const total = fused === name ? undefined : file.tensors.get(fused)?.shape[0];
  if (total === undefined) return undefined;
  const others = total - count; // of keys and values where these are queries; else of the other two
  const from = /attn_q\./.test(name) ? 0 : /attn_k\./.test(name) ? total - 2 * count : total - count;
  if (from < 0 || others < 0) throw new FormatError(`${file.path}: ${fused} has ${total} rows, too few for ${name}`);
  const order = rows === undefined ? Uint32Array.from({ length: count }, (_, i) => i) : inverted(rows);
  return { name: fused, rows: order.map((row) => from + row), offset: undefined };
}

/** Writes a model directory, including carried tensors. If transformers cannot load it, a note says why. */
export function writeModel(
  directory: string,
  { model, source, carried, prefixes }: ModelTensors,
  options: WriteOptions = {},
): void {
  const check = (written: TensorSource): void => {
    const names = storedNames(model, written.tensors);
    checkTensors(model, transposedSource(renamedSource(written, names.tensorOf), transposedParameters(model)));
  };
  writeCheckpoint(directory, model.config, storedSource({ model, source, carried, prefixes }), { ...options, check });
  const differing = differingSizes(model);
  if (differing.length > 0)
    options.onNote?.(
      `${directory}: its layers differ in ${differing.join(" and ")}: coppice and, as GGUF, llama.cpp run such a model; transformers does not open it`,
    );
}

/** The names of sizes that differ between layers. */
function differingSizes({ sizes, layerDimensions }: Model): string[] {
  const found = new Map<string, Set<number>>();
  for (const [dimension, { name }] of layerDimensions)
    found.set(name, (found.get(name) ?? new Set()).add(sizeOf(dimension, sizes)));
  return [...found].filter(([, values]) => values.size > 1).map(([name]) => name);
}

/** A model's tensors as a checkpoint stores them, with its names and order of axes, including carried tensors. */
export function storedSource({ model, source, carried, prefixes }: ModelTensors): TensorSource {
  const floats: TensorSource<StoredDType> = floatSource(source);
  const stored = transposedSource(floats, transposedParameters(model));
  const names = model.parameters.map(
    ({ name }) => [prefixes === undefined ? name : wrappedName(name, prefixes), name] as const,
  );
  const renamed = renamedSource(stored, new Map(names));
  return carried === undefined ? renamed : joinedSource(renamed, carried);
}
