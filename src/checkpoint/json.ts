import { readFileSync, statSync } from "node:fs";
import { FormatError } from "../system/errors.js";

const MAX_JSON_BYTES = 256 << 20;

/** Editors on Windows put a mark before the text, or write UTF-16. */
function decoded(bytes: Uint8Array): string {
  const mark = (bytes[0] ?? 0) * 256 + (bytes[1] ?? 0);
  return new TextDecoder(mark === 0xfffe ? "utf-16le" : mark === 0xfeff ? "utf-16be" : "utf-8").decode(bytes);
}

/** Reads a JSON object from a file of limited size. @throws FormatError when it is none */
export function readJsonObject(file: string): Record<string, unknown> {
  const bytes = statSync(file).size;
  if (bytes > MAX_JSON_BYTES) throw new FormatError(`${file} has ${bytes} bytes; at most ${MAX_JSON_BYTES} are read`);
  let value: unknown;
  try {
    value = JSON.parse(decoded(readFileSync(file)));
  } catch (error) {
    throw new FormatError(`${file} is no valid JSON (${error instanceof Error ? error.message : error})`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new FormatError(`${file} is no JSON object`);
  return value as Record<string, unknown>;
}
