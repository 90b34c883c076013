import type { GgufFile } from "../checkpoint/gguf.js";
import { FormatError } from "../system/errors.js";
import type { Architecture, ConfigJson, Model } from "./architecture.js";
import { metadataString } from "./gguf-layout.js";
import { llama } from "./llama.js";

/** Every architecture there is. Adding one is its file and its name here. */
const ARCHITECTURES: readonly Architecture[] = [llama];

/** The architecture names that `config.json` may ask for. */
export const knownModelTypes: readonly string[] = ARCHITECTURES.flatMap(({ modelTypes }) => modelTypes);

/**
 * Makes a model of a parsed `config.json`.
 * @throws FormatError when the architecture is not known or the configuration is invalid
 */
export function modelFromConfig(config: ConfigJson): Model {
  const type = config.model_type;
  const architecture = ARCHITECTURES.find(({ modelTypes }) => modelTypes.some((known) => known === type));
  if (architecture === undefined)
    throw new FormatError(
      `config.json: model_type ${JSON.stringify(type)} is not supported; supported are ${knownModelTypes.join(", ")}`,
    );
  return architecture.parse(config);
}

/**
 * The configuration that a GGUF file describes, as a `config.json` would.
 * @throws FormatError when the architecture is not known or a key is missing
 */
export function configFromGguf(file: GgufFile): ConfigJson {
  const name = metadataString(file.metadata, "general.architecture");
  const architecture = ARCHITECTURES.find(({ gguf }) => gguf.architectures.some((known) => known === name));
  if (architecture === undefined)
    throw new FormatError(
      `${file.path}: the architecture ${JSON.stringify(name)} is not supported; supported are ${ARCHITECTURES.flatMap(({ gguf }) => gguf.architectures).join(", ")}`,
    );
  return architecture.gguf.configOf(file);
}
