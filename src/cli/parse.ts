import { InvalidArgumentError } from "commander";
import { parseByteCount } from "../system/units.js";

/** A positive number, with the units K, M, B, T. */
export function parseCount(text: string): number {
  const match = /^(\d+(?:\.\d+)?(?:e\d+)?)([kmbt]?)$/i.exec(text);
  const value = Number(match?.[1]) * ({ k: 1e3, m: 1e6, b: 1e9, t: 1e12 }[match?.[2]?.toLowerCase() ?? ""] ?? 1);
  if (!(value > 0 && value <= Number.MAX_SAFE_INTEGER))
    throw new InvalidArgumentError("a positive number is needed, for example 2M.");
  return value;
}

/** A number of bytes, with or without a unit. */
export function parseBytes(text: string): number {
  const value = parseByteCount(text) ?? (/^\d+$/.test(text) ? Number(text) : 0);
  if (!(value >= 1 && value <= Number.MAX_SAFE_INTEGER))
    throw new InvalidArgumentError("a size is needed, for example 4GiB or 500MB.");
  return Math.floor(value);
}

export function parsePositive(text: string): number {
  const value = Number(text);
  if (!(value > 0 && Number.isFinite(value))) throw new InvalidArgumentError("a positive number is needed.");
  return value;
}

/** A number from 0 up. */
export function parseNonNegative(text: string): number {
  const value = text.trim() === "" ? Number.NaN : Number(text);
  if (!(value >= 0 && Number.isFinite(value))) throw new InvalidArgumentError("a number from 0 up is needed.");
  return value;
}

/** A share: more than 0, less than 1. */
export function parseShare(text: string): number {
  const value = Number(text);
  if (!(value > 0 && value < 1)) throw new InvalidArgumentError("a share between 0 and 1 is needed, for example 0.4.");
  return value;
}

export function parseWhole(text: string): number {
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(Number(text)))
    throw new InvalidArgumentError("a whole number is needed.");
  return Number(text);
}

/** A whole number from 1 up. */
export function parseAtLeastOne(text: string): number {
  const value = parseWhole(text);
  if (value < 1) throw new InvalidArgumentError("a whole number from 1 up is needed.");
  return value;
}

/** A port to listen on: 0 stands for any that is free. */
export function parsePort(text: string): number {
  const value = parseWhole(text);
  if (value > 65_535) throw new InvalidArgumentError("a port from 0 to 65535 is needed.");
  return value;
}

/** A text in which \n, \t and \\ stand for a line's end, a tabulator and a backslash. */
export function parseSeparator(text: string): string {
  if (text === "") throw new InvalidArgumentError("it cannot be empty.");
  const meanings = new Map([
    ["\\n", "\n"],
    ["\\t", "\t"],
    ["\\\\", "\\"],
  ]);
  return text.replace(/\\[nt\\]/g, (sequence) => meanings.get(sequence) ?? sequence);
}

/** Comma-separated names. */
export const parseNames = (text: string): string[] => text.split(",").map((name) => name.trim());

/** A regular expression, whatever the case of letters. */
export function parsePattern(text: string): RegExp {
  try {
    return new RegExp(text, "i");
  } catch (error) {
    throw new InvalidArgumentError(`a regular expression is needed: ${(error as Error).message}.`);
  }
}
