import { existsSync, readFileSync, statSync } from "node:fs";
import path from "node:path";
import { FormatError } from "../system/errors.js";

const MAX_JSON_BYTES = 256 << 20;

/** Small files have smaller limits: parsed, JSON takes up to twenty times its size. Real ones have a few kilobytes, or megabytes. */
const LIMITS: Readonly<Record<string, number>> = {
  "config.json": 4 << 20,
  "generation_config.json": 1 << 20,
  "adapter_config.json": 4 << 20,
  "special_tokens_map.json": 4 << 20,
  "model.safetensors.index.json": 32 << 20,
  "tokenizer_config.json": 32 << 20,
};

/** The most bytes that a JSON file of a model may have. */
export const jsonLimit = (file: string): number => LIMITS[path.basename(file)] ?? MAX_JSON_BYTES;

/** Editors on Windows write UTF-16, or a byte order mark before UTF-8. */
function decoded(bytes: Uint8Array): string {
  const [first, second] = bytes;
  const isLittleEndian = first === 0xff && second === 0xfe;
  const isBigEndian = first === 0xfe && second === 0xff;
  return new TextDecoder(isLittleEndian ? "utf-16le" : isBigEndian ? "utf-16be" : "utf-8").decode(bytes);
}

/** Reads a file of limited size. @throws FormatError when it is larger, or no regular file */
export function readLimited(file: string): Uint8Array {
  const status = statSync(file);
  if (!status.isFile()) throw new FormatError(`${file} is not a regular file`);
  if (status.size > jsonLimit(file))
    throw new FormatError(`${file} has ${status.size} bytes; the limit is ${jsonLimit(file)}`);
  return readFileSync(file);
}

/** Reads a JSON object from a file of limited size. @throws FormatError when the file holds anything else */
export function readJsonObject(file: string): Record<string, unknown> {
  const bytes = readLimited(file);
  let value: unknown;
  try {
    value = JSON.parse(decoded(bytes));
  } catch (error) {
    throw new FormatError(`${file} is not valid JSON (${error instanceof Error ? error.message : error})`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new FormatError(`${file} is not a JSON object`);
  return value as Record<string, unknown>;
}

/** The same of a file that a directory may lack: then an empty object. */
export function readOptionalJson(directory: string, name: string): Record<string, unknown> {
  const file = path.join(directory, name);
  return existsSync(file) ? readJsonObject(file) : {};
}
