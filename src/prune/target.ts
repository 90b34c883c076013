import { countParameters, type Model } from "../models/index.js";
import { UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";
import { parseByteCount } from "../system/units.js";
import { checkNames } from "./plan.js";
import { type AxisSizes, parseSizes } from "./sizes.js";

/** The smaller model that is wanted. */
export type Target =
  | { readonly kind: "parameters"; readonly parameters: number }
  | { readonly kind: "sizes"; readonly sizes: AxisSizes };

const COUNT_UNITS: ReadonlyMap<string, number> = new Map([
  ["", 1],
  ["k", 1e3],
  ["m", 1e6],
  ["b", 1e9],
  ["t", 1e12],
]);

/**
 * Reads a target: `8.4B` (parameters), `0.67x` (a share of the original's), `4GiB` (memory of the weights at `bitsPerWeight`),
 * or `hidden=4096,ffn=11520` (sizes).
 * @param alternatives other targets that the caller accepts, for suggestions
 * @throws UsageError listing what is accepted
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
  const original = countParameters(model.parameters, model.sizes);
  const parameters = parameterCount(text, original, bitsPerWeight);
  if (!(parameters > 0)) {
    const device = alternatives.length > 0 ? `, a device (${alternatives[0]}, ...)` : "";
    throw new UsageError(
      `the target "${text}" is not understood: give parameters (8.4B), a share (0.67x), memory (4GiB)${device} or sizes (hidden=4096,ffn=11520).${didYouMean(text, alternatives)}`,
    );
  }
  if (/^[\d.]+$/.test(text.trim()) && parameters < original / 1000)
    throw new UsageError(
      `the target "${text}" means ${parameters} parameters, and the model has ${original}: ${parameters <= 1 ? `did you mean ${text.trim()}x, a share?` : "give a unit (8.4B, 135M)"}`,
    );
  if (parameters > original)
    throw new UsageError(
      `the target "${text}" is ${Math.round(parameters)} parameters, more than the model's ${original}`,
    );
  return { kind: "parameters", parameters: Math.round(parameters) };
}

/** @returns NaN for a text that is not understood */
function parameterCount(text: string, original: number, bitsPerWeight: number): number {
  const [, value, unit = ""] = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim()) ?? [];
  if (unit.toLowerCase() === "x") return Number(value) * original;
  const bytes = parseByteCount(text);
  if (bytes !== undefined) return (bytes * 8) / bitsPerWeight;
  return Number(value) * (COUNT_UNITS.get(unit.toLowerCase()) ?? Number.NaN);
}
