import type { GgufFile } from "../checkpoint/gguf.js";
import { FormatError, UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";
import type { Architecture, Model } from "./architecture.js";
import { apertus } from "./architectures/apertus.js";
import { arcee } from "./architectures/arcee.js";
import { ernie45 } from "./architectures/ernie4-5.js";
import { exaone4 } from "./architectures/exaone4.js";
import { gemma2, gemma3 } from "./architectures/gemma.js";
import { glm4 } from "./architectures/glm4.js";
import { gptNeox } from "./architectures/gpt-neox.js";
import { gpt2 } from "./architectures/gpt2.js";
import { granite } from "./architectures/granite.js";
import { hunyuan } from "./architectures/hunyuan.js";
import { llama } from "./architectures/llama.js";
import { ministral3 } from "./architectures/ministral3.js";
import { nemotron } from "./architectures/nemotron.js";
import { olmo2, olmo3 } from "./architectures/olmo.js";
import { phi3 } from "./architectures/phi3.js";
import { qwen2, qwen3 } from "./architectures/qwen.js";
import { smollm3 } from "./architectures/smollm3.js";
import { starcoder2 } from "./architectures/starcoder2.js";
import type { ConfigJson } from "./config.js";
import { decoderModel } from "./decoder.js";
import { GgufConfig } from "./gguf-config.js";
import { languageConfig, wrapperTypes } from "./wrappers.js";

/** To add an architecture, write its file and list it here. */
const registered: Architecture[] = [
  llama,
  qwen3,
  qwen2,
  gemma3,
  ministral3,
  phi3,
  granite,
  olmo2,
  olmo3,
  smollm3,
  gemma2,
  glm4,
  exaone4,
  hunyuan,
  ernie45,
  nemotron,
  arcee,
  apertus,
  starcoder2,
  gptNeox,
  gpt2,
];

/** Every architecture there is, those of {@link registerArchitecture} included. */
export const ARCHITECTURES: readonly Architecture[] = registered;

/** The `model_type` values that are supported. */
export const knownModelTypes = (): readonly string[] => [
  ...ARCHITECTURES.flatMap(({ modelTypes }) => modelTypes),
  ...wrapperTypes,
];

/** Values of `general.architecture` that are known. */
export const knownGgufArchitectures = (): readonly string[] => ARCHITECTURES.flatMap(({ gguf }) => gguf.architectures);

/**
 * Adds an architecture of your own to this process: from then on every function opens its models. To have the command
 * line know it too, register it in a module that Node loads first: `NODE_OPTIONS="--import ./mine.js" coppice ...`.
 * @throws UsageError when another architecture already has its name, a model type or a GGUF architecture
 */
export function registerArchitecture(own: Architecture): void {
  for (const { name, modelTypes, gguf } of ARCHITECTURES) {
    const taken = [
      ...[own.name].filter((one) => one === name),
      ...own.modelTypes.filter((one) => modelTypes.includes(one)),
      ...own.gguf.architectures.filter((one) => gguf.architectures.includes(one)),
    ];
    if (taken.length > 0)
      throw new UsageError(`the architecture ${own.name} cannot be registered: ${name} already has ${taken[0]}`);
  }
  registered.push(own);
}

/**
 * Builds a model from a parsed `config.json`.
 * @throws FormatError when the architecture is not supported or the configuration is invalid
 */
export function modelFromConfig(config: ConfigJson): Model {
  const language = languageConfig(config);
  const type = language.model_type;
  const architecture = ARCHITECTURES.find(({ modelTypes }) => modelTypes.some((known) => known === type));
  if (architecture === undefined)
    throw new FormatError(
      `config.json: model_type ${JSON.stringify(type)} is not supported; supported are ${knownModelTypes().join(", ")}.${didYouMean(String(type), knownModelTypes())}`,
    );
  return decoderModel(architecture, config, architecture.decoder(language), modelFromConfig);
}

/**
 * The configuration that a GGUF file describes, in the form of a `config.json`.
 * @throws FormatError when the architecture is not supported or a key is missing
 */
export function configFromGguf(file: GgufFile): ConfigJson {
  const read = new GgufConfig(file);
  const architecture = ARCHITECTURES.find(({ gguf }) => gguf.architectures.includes(read.architecture));
  if (architecture === undefined)
    throw new FormatError(
      `${file.path}: the architecture ${JSON.stringify(read.architecture)} is not supported; supported are ${knownGgufArchitectures().join(", ")}.${didYouMean(read.architecture, knownGgufArchitectures())}`,
    );
  return architecture.gguf.configOf(read);
}
