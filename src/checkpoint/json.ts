import { readFileSync, statSync } from "node:fs";
import { FormatError } from "../system/errors.js";

const MAX_JSON_BYTES = 256 << 20;

/** Editors on Windows write UTF-16, or a byte order mark before UTF-8. */
function decoded(bytes: Uint8Array): string {
  const [first, second] = bytes;
  const isLittleEndian = first === 0xff && second === 0xfe;
  const isBigEndian = first === 0xfe && second === 0xff;
  return new TextDecoder(isLittleEndian ? "utf-16le" : isBigEndian ? "utf-16be" : "utf-8").decode(bytes);
}

/** Reads a JSON object from a file of limited size. @throws FormatError when the file holds anything else */
export function readJsonObject(file: string): Record<string, unknown> {
  const bytes = statSync(file).size;
  if (bytes > MAX_JSON_BYTES) throw new FormatError(`${file} has ${bytes} bytes; the limit is ${MAX_JSON_BYTES}`);
  let value: unknown;
  try {
    value = JSON.parse(decoded(readFileSync(file)));
  } catch (error) {
    throw new FormatError(`${file} is not valid JSON (${error instanceof Error ? error.message : error})`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new FormatError(`${file} is not a JSON object`);
  return value as Record<string, unknown>;
}
