import type { GgufFile } from "../checkpoint/gguf.js";
import { FormatError } from "../system/errors.js";
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

/** Every architecture there is. Adding one is its file and its name here. */
export const ARCHITECTURES: readonly Architecture[] = [
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

/** The `model_type` values that `config.json` may have. */
export const knownModelTypes: readonly string[] = [
  ...ARCHITECTURES.flatMap(({ modelTypes }) => modelTypes),
  ...wrapperTypes,
];

/**
 * Makes a model of a parsed `config.json`.
 * @throws FormatError when the architecture is not known or the configuration is invalid
 */
export function modelFromConfig(config: ConfigJson): Model {
  const language = languageConfig(config);
  const type = language.model_type;
  const architecture = ARCHITECTURES.find(({ modelTypes }) => modelTypes.some((known) => known === type));
  if (architecture === undefined)
    throw new FormatError(
      `config.json: model_type ${JSON.stringify(type)} is not supported; supported are ${knownModelTypes.join(", ")}.${didYouMean(String(type), knownModelTypes)}`,
    );
  return decoderModel(architecture, config, architecture.decoder(language), modelFromConfig);
}

/** Values of `general.architecture` that are known. */
export const knownGgufArchitectures: readonly string[] = ARCHITECTURES.flatMap(({ gguf }) => gguf.architectures);

/**
 * The configuration that a GGUF file describes, as a `config.json` would.
 * @throws FormatError when the architecture is not known or a key is missing
 */
export function configFromGguf(file: GgufFile): ConfigJson {
  const read = new GgufConfig(file);
  const architecture = ARCHITECTURES.find(({ gguf }) => gguf.architectures.includes(read.architecture));
  if (architecture === undefined)
    throw new FormatError(
      `${file.path}: the architecture ${JSON.stringify(read.architecture)} is not supported; supported are ${knownGgufArchitectures.join(", ")}.${didYouMean(read.architecture, knownGgufArchitectures)}`,
    );
  return architecture.gguf.configOf(read);
}
