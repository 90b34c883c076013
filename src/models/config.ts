import { z } from "zod";
import { FormatError } from "../system/errors.js";
import { describeSchemaError } from "../system/schema.js";

/** The parsed content of a checkpoint's `config.json`. */
export type ConfigJson = Readonly<Record<string, unknown>>;

/** A size, with a limit far above what any model has. */
export const size = z
  .number()
  .int()
  .positive()
  .max(2 ** 24);
export const layerCount = z.number().int().positive().max(4096);
export const positive = z.number().positive();
export const flag = (unset: boolean) => z.boolean().default(unset);
/** One of the values that are supported; the first where the field is absent or null. */
export const choice = <T extends string>(...known: readonly [T, ...T[]]): z.ZodType<T> =>
  z
    .enum(known)
    .nullish()
    .transform((value) => value ?? known[0]);

/** Parses a configuration. @throws FormatError naming the first field that is missing or invalid */
export function parseConfig<T extends z.ZodType>(schema: T, config: ConfigJson): z.infer<T> {
  const parsed = schema.safeParse(config);
  if (parsed.success) return parsed.data;
  throw new FormatError(`config.json: ${describeSchemaError(parsed.error, config)}`);
}

/** @throws FormatError when query heads cannot be divided among key-value heads; a layer without attention has none of either */
export function checkHeads(heads: number, kvHeads: number): void {
  const isSkipped = heads === 0 && kvHeads === 0;
  if (!isSkipped && (heads === 0 || heads % kvHeads !== 0))
    throw new FormatError(`config.json: ${heads} attention heads cannot be divided among ${kvHeads} key-value heads`);
}

/** Most channels of all heads of a layer, sixteen times what models have: orders of rows are listed channel by channel. */
const MOST_CHANNELS = 2 ** 18;

/** The size of a head: that of the configuration, or the width divided by the heads. @throws FormatError when it does not divide */
export function headSize(headDim: number | null | undefined, hidden: number, heads: number): number {
  const size = headDim ?? hidden / heads;
  if (!Number.isInteger(size))
    throw new FormatError(
      `config.json: hidden_size ${hidden} is not a multiple of ${heads} heads and there is no head_dim`,
    );
  if (heads * size > MOST_CHANNELS)
    throw new FormatError(
      `config.json: ${heads} heads of ${size} channels are more than a layer can have (${MOST_CHANNELS} channels)`,
    );
  return size;
}

/** The entry for a layer in a list with one for each layer. @throws FormatError when the list has another length */
export function entryOf<T>(field: string, list: readonly T[], layer: number, layers: number): T {
  const entry = list.length === layers ? list[layer] : undefined;
  if (entry === undefined)
    throw new FormatError(`config.json: ${field} lists ${list.length} sizes for ${layers} layers`);
  return entry;
}
