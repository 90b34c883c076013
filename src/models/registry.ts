import { FormatError } from "../system/errors.js";
import type { Architecture, ConfigJson, Model } from "./architecture.js";
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
