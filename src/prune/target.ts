import { countParameters, type Model } from "../models/index.js";
import { UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";
import { byteCount } from "../system/units.js";
import { checkNames } from "./plan.js";
import { type AxisSizes, parseSizes } from "./sizes.js";

/** What the smaller model should be. */
export type Target =
  | { readonly kind: "parameters"; readonly parameters: number }
  | { readonly kind: "sizes"; readonly sizes: AxisSizes };

const COUNT_UNITS: Readonly<Record<string, number>> = { "": 1, k: 1e3, m: 1e6, b: 1e9, t: 1e12 };

/**
 * Reads a target: `8.4B` (parameters), `0.67x` (of the original's), `4GiB` (memory of the weights at `bitsPerWeight`), or
 * `hidden=4096,ffn=11520` (sizes).
 * @param alternatives what the caller takes beside these, for suggestions
 * @throws UsageError saying what is accepted
 */
export function parseTarget(
  text: string,
  model: Model,
  bitsPerWeight: number,
  alternatives: readonly string[] = [],
): Target {
  if (text.includes("=")) {
    const sizes = parseSizes(text);
    checkNames(model, sizes);
    return { kind: "sizes", sizes };
  }
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim());
  const value = Number(match?.[1]);
  const unit = match?.[2]?.toLowerCase() ?? "?";
  const original = countParameters(model.parameters, model.sizes);
  let parameters: number | undefined;
  if (unit === "x") parameters = value * original;
  else if (byteCount(text) !== undefined) parameters = ((byteCount(text) ?? 0) * 8) / bitsPerWeight;
  else if (unit in COUNT_UNITS) parameters = value * (COUNT_UNITS[unit] ?? 0);
  if (parameters === undefined || !(parameters > 0))
    throw new UsageError(
      `the target "${text}" is not understood: give parameters (8.4B), a share (0.67x), memory (4GiB) or sizes (hidden=4096,ffn=11520).${didYouMean(text, alternatives)}`,
    );
  if (parameters > original)
    throw new UsageError(
      `the target "${text}" is ${Math.round(parameters)} parameters, more than the model's ${original}`,
    );
  return { kind: "parameters", parameters: Math.round(parameters) };
}
