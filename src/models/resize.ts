import { FormatError } from "../system/errors.js";
import type { Architecture, SizeField } from "./architecture.js";
import type { ConfigJson } from "./config.js";
import { layerDimension, type Sizes, sizeOf } from "./dimensions.js";
import type { DecoderSpec } from "./spec.js";
import { languageConfig, withLanguageConfig } from "./wrappers.js";

/**
 * A configuration with other sizes.
 * @param keptLayers for each layer of the result, the layer of the original it comes from; the first ones by default
 * @throws FormatError when the architecture's configuration cannot express them
 */
export function resizedConfig(
  architecture: Architecture,
  config: ConfigJson,
  spec: DecoderSpec,
  sizes: Sizes,
  keptLayers?: readonly number[],
): ConfigJson {
  const count = sizeOf("layers", sizes);
  const kept = keptLayers ?? Array.from({ length: count }, (_, i) => i);
  const changed: Record<string, unknown> = { ...languageConfig(config) };
  for (const [dimension, field] of Object.entries(architecture.fields)) {
    const value = dimension in sizes ? sizes[dimension] : perLayer(architecture, sizes, dimension, field, count);
    if (value !== undefined) changed[field.name] = value;
  }
  for (const [field, entries] of Object.entries(spec.perLayer ?? {}))
    if (field in changed || kept.length < spec.layers.length) changed[field] = kept.map((layer) => entries[layer]);
  const adapted = architecture.adapt?.(changed) ?? changed;
  return withLanguageConfig(config, adapted);
}

/** The value of a field for a dimension of layers: a number, or a list if the layers differ. */
function perLayer(
  { name }: Architecture,
  sizes: Sizes,
  dimension: string,
  field: SizeField,
  count: number,
): number | number[] | undefined {
  const known = Array.from({ length: count }, (_, i) => sizes[layerDimension(i, dimension)]).filter(
    (size) => size !== undefined,
  );
  if (known.length === 0) return undefined;
  if (known.length === count && new Set(known).size === 1) return known[0];
  if (field.list !== true || known.length < count)
    throw new FormatError(
      `${name}: its configuration has one ${field.name} for all layers, not ${[...new Set(known)].join(" and ")}`,
    );
  return known;
}
