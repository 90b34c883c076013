import path from "node:path";
import { type GgufFile, type GgufMetadata, type GgufValue, gguf } from "../checkpoint/gguf.js";
import { tokenizerMetadata } from "../checkpoint/gguf-tokenizer.js";
import { readTensor, type TensorSource, tensorInfo } from "../checkpoint/tensor-source.js";
import { checkHeader, checkRunnable } from "../generate/runnable.js";
import { toFloat32 } from "../ggml/convert.js";
import { loadFunctions } from "../ggml/library.js";
import {
  type Checkpoint,
  countParameters,
  type GgufLayout,
  type GgufParameter,
  type Model,
  shapeOf,
  sizesOfAxis,
  summarizeGguf,
} from "../models/index.js";
import { checkTensors } from "../models/weights.js";
import { FormatError } from "../system/errors.js";
import type { RecipeFacts, TensorShape } from "./tensor-types.js";

/** ggml's version number of the layout of its quantized types. */
const QUANTIZATION_VERSION = 2;

/** What goes into a GGUF file, except for the types of its tensors. */
export interface GgufContent {
  readonly source: TensorSource;
  readonly metadata: GgufMetadata;
  readonly tensors: readonly GgufParameter[];
  readonly derived: GgufLayout["derived"];
  /** What the tensors' types depend on. */
  readonly shapes: readonly TensorShape[];
  readonly facts: Omit<RecipeFacts, "hasImportance">;
  readonly notes: readonly string[];
  /** Checks a written file. @throws FormatError when it must not be run */
  readonly verify: (file: string) => void;
}

export interface ContentOptions {
  /** `general.name`; the name of the model's directory or file by default. */
  readonly name?: string | undefined;
  /** llama.cpp's name for the tokenizer's pre-tokenization, for tokenizers in which it is not recognized. */
  readonly preTokenizer?: string | undefined;
  /** Metadata of the GGUF file that a model was read from: all that it says of the model's origin and tokens is kept. */
  readonly readFrom?: GgufMetadata | undefined;
}

/** Tokens without which llama.cpp fails to load any model that has Phi-3 in its name. */
const PHI3_TOKENS = ["</s>", "<unk>", "<s>", "<|endoftext|>"];

/** The name, changed if llama.cpp would conclude from it that the tokenizer has tokens that it lacks. */
function safeName(name: string, tokenizer: readonly (readonly [string, GgufValue])[]): string {
  const tokens = tokenizer.find(([key]) => key === "tokenizer.ggml.tokens")?.[1];
  const texts = new Set(tokens?.kind === "array" ? tokens.value : []);
  return PHI3_TOKENS.every((token) => texts.has(token)) ? name : name.replace(/(phi)-?(3)/gi, "$1 $2");
}

/** The source of a GGUF file: a model of a known architecture, or another GGUF file, which is copied as it is. */
export type GgufOrigin = Checkpoint | GgufFile;

/** @throws CoppiceError when llama.cpp could not run the file, FormatError when the weights do not match the configuration */
export const contentOf = (origin: GgufOrigin, options: ContentOptions): GgufContent =>
  "model" in origin ? modelContent(origin, options) : fileContent(origin, options);

function modelContent(checkpoint: Checkpoint, options: ContentOptions): GgufContent {
  const { model, source } = checkpoint;
  checkTensors(model, source);
  const layout = model.gguf();
  const tokenizer = tokenizerMetadata(checkpoint.directory, checkpoint.config, model.vocabSize, options.preTokenizer);
  return {
    source,
    metadata: new Map([
      ...generalMetadata(safeName(options.name ?? nameOf(checkpoint), tokenizer.entries), model, layout),
      ...layout.metadata,
      ...listedValues(source, layout),
      ...tokenizer.entries,
      ...keptMetadata(options),
    ]),
    tensors: layout.parameters,
    derived: layout.derived,
    shapes: shapesIn(model, layout),
    facts: factsOf(model),
    notes: [...layout.notes, ...tokenizer.notes],
    verify: checkRunnable, // a file that we would refuse to run must not be written
  };
}

/** What does not depend on the types of tensors or on their layout. */
function keptMetadata({ readFrom = new Map(), name, preTokenizer }: ContentOptions): [string, GgufValue][] {
  const own = new Set(
    ["architecture", "file_type", "quantization_version", "alignment"].map((key) => `general.${key}`),
  );
  if (name !== undefined) own.add("general.name");
  if (preTokenizer !== undefined) own.add("tokenizer.ggml.pre");
  return [...readFrom].filter(([key]) => /^(general|tokenizer)\./.test(key) && !own.has(key));
}

/** Parameters with one number per layer, which GGUF holds as lists in the metadata. */
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

/** The layer in a name that a GGUF file of any architecture gives a tensor, such as `blk.3.ffn_down.weight`. */
function layerIn(name: string): number | undefined {
  const [, layer] = /^blk\.(\d+)\./.exec(name) ?? [];
  return layer === undefined ? undefined : Number(layer);
}

/** A file of any architecture: the tensors keep their names, and the metadata is carried over. */
function fileContent(file: GgufFile, { name, preTokenizer }: ContentOptions): GgufContent {
  const { architecture, layers, heads, kvHeads, experts } = summarizeGguf(file);
  const changes: [string, GgufValue][] = [
    ["general.file_type", gguf.uint32(0)],
    ["general.quantization_version", gguf.uint32(QUANTIZATION_VERSION)],
  ];
  if (name !== undefined) changes.push(["general.name", gguf.string(name)]);
  if (preTokenizer !== undefined) changes.push(["tokenizer.ggml.pre", gguf.string(preTokenizer)]);
  return {
    source: file,
    metadata: new Map([...file.metadata, ...changes]),
    tensors: [...file.tensors.keys()].map((tensor) => ({
      name: tensor,
      parameter: tensor,
      layer: layerIn(tensor),
      rows: undefined,
      offset: undefined,
      factor: undefined,
    })),
    derived: [],
    shapes: [...file.tensors].map(([tensor, { shape, dtype }]) => ({
      name: tensor,
      layer: layerIn(tensor),
      shape,
      stored: dtype,
    })),
    facts: { architecture, layers, experts, heads: heads[0] ?? 0, kvHeads: kvHeads[0] ?? 0 },
    notes: [],
    verify: checkHeader,
  };
}

function shapesIn(model: Model, layout: GgufLayout): TensorShape[] {
  const specs = new Map(model.parameters.map((spec) => [spec.name, spec]));
  return layout.parameters.flatMap(({ name, layer, parameter }) => {
    const spec = specs.get(parameter);
    return spec === undefined ? [] : [{ name, layer, shape: shapeOf(spec, model.sizes) }];
  });
}

/** The shapes of a model's tensors in a GGUF file. */
export const ggufShapes = (model: Model): TensorShape[] => shapesIn(model, model.gguf());

function factsOf(model: Model): Omit<RecipeFacts, "hasImportance"> {
  const [heads = 1, kvHeads = 1, experts = 0] = ["heads", "kvHeads", "experts"].map(
    (name) => sizesOfAxis(model, name)[0],
  );
  return { architecture: model.architecture, layers: model.layerCount, heads, kvHeads, experts };
}

/** What mixtures depend on in a model. */
export const recipeFacts = (model: Model, hasImportance: boolean): RecipeFacts => ({
  ...factsOf(model),
  hasImportance,
});

/** The name of a model's directory or file; of a commit in the hub's cache that of the model. */
export function nameOf({ path: at }: Pick<Checkpoint, "path">): string {
  const whole = path.resolve(at);
  const [, hubName] = /[/\\]models--(?:[^/\\]+?--)?([^/\\]+)[/\\]snapshots[/\\][0-9a-f]{40}$/.exec(whole) ?? [];
  return hubName ?? path.basename(whole).replace(/\.gguf$/, "");
}

const generalMetadata = (name: string, model: Model, layout: GgufLayout): [string, GgufValue][] => [
  ["general.architecture", gguf.string(layout.architecture)],
  ["general.type", gguf.string("model")],
  ["general.name", gguf.string(name)],
  ["general.size_label", gguf.string(sizeLabel(countParameters(model.parameters, model.sizes)))],
  ["general.file_type", gguf.uint32(0)],
  ["general.quantization_version", gguf.uint32(QUANTIZATION_VERSION)],
];

/** 8414105600 becomes 8.4B. */
function sizeLabel(parameters: number): string {
  const [scale, unit] = parameters >= 1e9 ? [1e9, "B"] : parameters >= 1e6 ? [1e6, "M"] : [1e3, "K"];
  const value = parameters / scale;
  return `${value >= 100 ? value.toFixed(0) : Number(value.toPrecision(2))}${unit}`;
}
