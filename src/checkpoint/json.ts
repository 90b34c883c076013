import { readFileSync, statSync } from "node:fs";
import { FormatError } from "../system/errors.js";

const MAX_JSON_BYTES = 256 << 20;

/** Reads a JSON object from a file of limited size. @throws FormatError when it is none */
export function readJsonObject(file: string): Record<string, unknown> {
  const bytes = statSync(file).size;
  if (bytes > MAX_JSON_BYTES) throw new FormatError(`${file} has ${bytes} bytes; at most ${MAX_JSON_BYTES} are read`);
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new FormatError(`${file} is no valid JSON (${error instanceof Error ? error.message : error})`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new FormatError(`${file} is no JSON object`);
  return value as Record<string, unknown>;
}
