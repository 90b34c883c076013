import { existsSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { ADAPTER_CONFIG, type AdaptedName, joinAdapters } from "../checkpoint/adapters.js";
import { openSafetensors, type SafetensorsFile } from "../checkpoint/index.js";
import { readJsonObject } from "../checkpoint/json.js";
import {
  floatSource,
  readTensor,
  sourceBytes,
  type TensorInfo,
  type TensorSource,
  tensorInfo,
} from "../checkpoint/tensor-source.js";
import { fromFloat32, toFloat32 } from "../ggml/convert.js";
import type { FloatDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { CoppiceError, FormatError, UsageError } from "../system/errors.js";
import type { Checkpoint } from "./checkpoint.js";
import { bareName } from "./stored-names.js";

/**
 * LoRA adapters in PEFT's layout (`adapter_config.json`, `adapter_model.safetensors`), merged into a model as it is read:
 * W + s · B A (arXiv 2106.09685, section 4.1).
 */

const WEIGHTS = "adapter_model.safetensors";

const pattern = z.record(z.string(), z.number()).nullish();
const configSchema = z.looseObject({
  peft_type: z.string(),
  r: z.number().int().positive(),
  lora_alpha: z.number(),
  use_rslora: z.boolean().nullish(),
  rank_pattern: pattern,
  alpha_pattern: pattern,
});
type AdapterConfig = z.infer<typeof configSchema>;

/** Settings that change the weights in other ways, so that a plain merge would be wrong. */
const UNSUPPORTED: readonly { readonly field: string; readonly isSet: (value: unknown) => boolean }[] = [
  { field: "use_dora", isSet: (value) => value === true },
  { field: "use_qalora", isSet: (value) => value === true },
  { field: "use_bdlora", isSet: Boolean },
  { field: "alora_invocation_tokens", isSet: Boolean },
  { field: "lora_bias", isSet: (value) => value === true },
  { field: "layer_replication", isSet: Boolean },
  { field: "trainable_token_indices", isSet: Boolean },
  { field: "target_parameters", isSet: (value) => Array.isArray(value) && value.length > 0 },
  {
    field: "init_lora_weights", // these initializations also change the base model
    isSet: (value) => typeof value === "string" && /^(pissa|olora|corda|loftq)/i.test(value),
  },
];

function readConfig(directory: string): AdapterConfig {
  const file = path.join(directory, ADAPTER_CONFIG);
  if (!existsSync(file)) throw new UsageError(`${directory} is not a LoRA adapter: it has no ${ADAPTER_CONFIG}`);
  const config = readJsonObject(file);
  if (config.peft_type !== "LORA")
    throw new FormatError(
      `${file}: adapters of the type ${JSON.stringify(config.peft_type)} cannot be merged, only LORA`,
    );
  const parsed = configSchema.safeParse(config);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new FormatError(`${file}: ${issue?.path.join(".")}: ${issue?.message}`);
  }
  for (const { field, isSet } of UNSUPPORTED)
    if (isSet(config[field]))
      throw new FormatError(
        `${file}: ${field} (${JSON.stringify(config[field])}) is not supported; merge the adapter with PEFT's merge_and_unload`,
      );
  return parsed.data;
}

/** The change s · B A of one tensor, with the tensor's rows. */
interface LowRank {
  readonly rank: number;
  /** [rows, rank], scaled. */
  readonly left: Float32Array;
  /** [rank, columns]. */
  readonly right: Float32Array;
}

interface Adapter {
  /** By the model's parameter. */
  readonly changes: ReadonlyMap<string, LowRank>;
  /** Tensors of the adapter that replace the model's parameters (`modules_to_save`, trained biases), by the parameter. */
  readonly replacements: ReadonlyMap<string, string>;
  readonly file: SafetensorsFile;
}

/** Names of tensors in an adapter: the module, and which of its matrices. */
const PART =
  /^(?:base_model\.model\.)?(.+?)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.default)?(?:\.weight)?$/;

function openAdapter(directory: string, strength: number, model: TensorSource): Adapter {
  const config = readConfig(directory);
  const file = openWeights(directory);
  const parameters = new Map([...model.tensors.keys()].map((name) => [bareName(name), name]));
  const parameterNamed = (name: string): string => parameters.get(bareName(name)) ?? name;
  const modules = new Map<string, Map<string, string>>();
  const replacements = new Map<string, string>();
  for (const name of file.tensors.keys()) {
    const [, module, part] = PART.exec(name) ?? [];
    if (module !== undefined && part !== undefined)
      modules.set(module, (modules.get(module) ?? new Map<string, string>()).set(part, name));
    else if (!ORIGINAL.test(name)) replacements.set(parameterNamed(replacedName(name)), name);
  }
  const changes = new Map<string, LowRank>();
  for (const [module, parts] of modules) {
    const parameter = parameterNamed(`${module}.weight`);
    checkTarget(file.path, parameter, model);
    const change = changeOf(file, module, parts, { config, strength });
    checkSize(file.path, parameter, change, model);
    changes.set(parameter, change);
  }
  for (const [parameter, name] of replacements) {
    checkTarget(file.path, parameter, model);
    const [own, theirs] = [tensorInfo(file, name).shape, tensorInfo(model, parameter).shape];
    if (own.join() !== theirs.join())
      throw new FormatError(`${file.path}: ${parameter} is [${own.join(", ")}], the model's is [${theirs.join(", ")}]`);
  }
  if (changes.size + replacements.size === 0) throw new FormatError(`${file.path} has no tensors of an adapter`);
  return { changes, replacements, file };
}

function openWeights(directory: string): SafetensorsFile {
  const file = path.join(directory, WEIGHTS);
  if (existsSync(file)) return openSafetensors(file);
  const hint = existsSync(path.join(directory, "adapter_model.bin"))
    ? "; its adapter_model.bin is a pickle, which could run code: save it with PEFT's safe_serialization"
    : "";
  throw new CoppiceError(`${directory} has no ${WEIGHTS}${hint}`);
}

/** The model's name of a tensor that an adapter replaces. */
const replacedName = (name: string): string =>
  name.replace(/^base_model\.model\./, "").replace(/\.(?:modules_to_save\.[^.]+|base_layer)\./, ".");

/** What a module that was trained as a whole was before. */
const ORIGINAL = /\.original_module\./;

function checkTarget(file: string, parameter: string, model: TensorSource): void {
  if (model.tensors.has(parameter)) return;
  const reason =
    parameter === "lm_head.weight" ? ": its head is its embedding" : "; is it the adapter of another model?";
  throw new FormatError(`${file} changes ${parameter}, which the model does not have${reason}`);
}

/**
 * @param parts the names of the module's matrices in the file, by kind
 * @param strength multiplies the scale that the configuration sets
 */
function changeOf(
  file: SafetensorsFile,
  module: string,
  parts: ReadonlyMap<string, string>,
  { config, strength }: { readonly config: AdapterConfig; readonly strength: number },
): LowRank {
  const embedding = parts.has("lora_embedding_A");
  const [a, b] = embedding ? ["lora_embedding_A", "lora_embedding_B"] : ["lora_A", "lora_B"];
  const [inner, outer] = [a, b].map((part) => matrixOf(file, module, parts.get(part)));
  if (inner === undefined || outer === undefined) throw new FormatError(`${file.path}: ${module} is incomplete`);
  const [rank, width] = inner.shape;
  if (outer.shape[1] !== rank)
    throw new FormatError(`${file.path}: ${module} has ranks ${rank} and ${outer.shape[1]}, which must be the same`);
  const expected = matchingValue(config.rank_pattern, module) ?? config.r;
  if (rank !== expected)
    throw new FormatError(`${file.path}: ${module} has the rank ${rank}, its configuration says ${expected}`);
  const alpha = matchingValue(config.alpha_pattern, module) ?? config.lora_alpha;
  const scale = (strength * alpha) / (config.use_rslora === true ? Math.sqrt(rank) : rank);
  const [left, right] = embedding
    ? [transpose(inner.values, rank, width), transpose(outer.values, outer.shape[0], rank)]
    : [outer.values, inner.values];
  return { rank, left: left.map((value) => value * scale), right };
}

interface Matrix {
  readonly shape: readonly [number, number];
  readonly values: Float32Array;
}

function matrixOf(file: SafetensorsFile, module: string, name: string | undefined): Matrix {
  if (name === undefined) throw new FormatError(`${file.path}: ${module} has only one of its two matrices`);
  const { dtype, shape } = tensorInfo(file, name);
  const [rows, columns] = shape;
  if (shape.length !== 2 || rows === undefined || columns === undefined)
    throw new FormatError(`${file.path}: ${name} is [${shape.join(", ")}], not a matrix`);
  return { shape: [rows, columns], values: toFloat32(loadFunctions(), readTensor(file, name), dtype).slice() };
}

/** The value of the first pattern that a module matches. PEFT's patterns are regular expressions for the end of its name. */
function matchingValue(
  patterns: Readonly<Record<string, number>> | null | undefined,
  module: string,
): number | undefined {
  for (const [key, value] of Object.entries(patterns ?? {})) {
    if (module === key || module.endsWith(`.${key}`)) return value;
    let expression: RegExp;
    try {
      expression = new RegExp(`^(?:.*\\.)?(?:${key})$`);
    } catch {
      throw new FormatError(`${ADAPTER_CONFIG}: ${JSON.stringify(key)} is not a regular expression`);
    }
    if (expression.test(module)) return value;
  }
  return undefined;
}

function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(values.length);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      result[column * rows + row] = values[row * columns + column] as number;
  return result;
}

/** Checks that a change has the tensor's shape: [outputs, inputs] in PEFT and for our parameters, however these are stored. */
function checkSize(file: string, parameter: string, { rank, left, right }: LowRank, model: TensorSource): void {
  const { shape } = tensorInfo(model, parameter);
  const own = [left.length / rank, right.length / rank];
  if (own.join() !== shape.join())
    throw new FormatError(
      `${file} changes ${parameter} as if it were [${own.join(", ")}], the model's is [${shape.join(", ")}]: it is the adapter of another model`,
    );
}

/** A model's tensors with an adapter's changes. Quantized tensors are dequantized where they are changed. */
class MergedSource implements TensorSource {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  private readonly floats: TensorSource<FloatDType>;

  constructor(
    private readonly source: TensorSource,
    private readonly adapter: Adapter,
  ) {
    this.floats = floatSource(source);
    const isChanged = (name: string) => adapter.changes.has(name) || adapter.replacements.has(name);
    this.tensors = new Map(
      [...source.tensors].map(([name, info]) => [name, isChanged(name) ? tensorInfo(this.floats, name) : info]),
    );
  }

  readRows(name: string, from: number, to: number): Uint8Array {
    const f = loadFunctions();
    const { changes, replacements, file } = this.adapter;
    const [replacement, change] = [replacements.get(name), changes.get(name)];
    if (replacement === undefined && change === undefined) return this.source.readRows(name, from, to);
    const { dtype } = tensorInfo(this.floats, name);
    const values =
      replacement === undefined
        ? toFloat32(f, this.floats.readRows(name, from, to), dtype).slice()
        : toFloat32(f, file.readRows(replacement, from, to), tensorInfo(file, replacement).dtype).slice();
    if (change !== undefined) addProduct(values, change, from, to); // of a layer whose own weights are in the file, too
    return fromFloat32(f, values, dtype);
  }

  releaseRows(name: string, from: number, to: number): void {
    this.source.releaseRows(name, from, to);
  }
}

/** Adds rows [from, to) of a change to the values of those rows of a tensor. */
function addProduct(values: Float32Array, { rank, left, right }: LowRank, from: number, to: number): void {
  const columns = right.length / rank;
  for (let row = from; row < to; row++) {
    const target = values.subarray((row - from) * columns, (row - from + 1) * columns);
    for (let i = 0; i < rank; i++) {
      const factor = left[row * rank + i] as number;
      const offset = i * columns;
      for (let column = 0; column < columns; column++)
        target[column] = (target[column] as number) + factor * (right[offset + column] as number);
    }
  }
}

/** A model with adapters merged into it. @throws FormatError for an adapter that does not fit, or cannot be merged */
export function mergeAdapters(checkpoint: Checkpoint, adapters: AdaptedName["adapters"]): Checkpoint {
  const source = adapters.reduce<TensorSource>(
    (model, { name, scale }) => new MergedSource(model, openAdapter(name, scale, model)),
    checkpoint.source,
  );
  return {
    ...checkpoint,
    path: joinAdapters({ base: checkpoint.path, adapters }),
    get directory() {
      return checkpoint.directory;
    },
    source,
    bytes: sourceBytes(source),
    files: [
      ...checkpoint.files,
      ...adapters.flatMap(({ name }) => [ADAPTER_CONFIG, WEIGHTS].map((file) => path.join(name, file))),
    ],
  };
}
