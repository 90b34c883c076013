import { createHash } from "node:crypto";
import { closeSync, existsSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import path from "node:path";
import { hashBytes, hashFile, writeFileAtomic } from "./files.js";

/** Files up to this size are hashed whole, which takes seconds. */
const WHOLE_BYTES = 4 * 2 ** 30;
/** Of larger ones the modification time, the beginning with the header, and samples spread over the rest are hashed. */
const [HEADER_BYTES, SAMPLES, SAMPLE_BYTES] = [4 * 2 ** 20, 256, 64 * 2 ** 10];

/**
 * Identifies a file's content by a short text: equal texts mean equal content. The text is cached for as long as the file's path,
 * size, times and inode stay the same.
 */
export async function contentIdentity(file: string, cache: string, wholeBytes = WHOLE_BYTES): Promise<string> {
  const { size, mtimeMs, ctimeMs, ino } = statSync(file);
  const name = hashBytes(JSON.stringify([path.resolve(file), size, mtimeMs, ctimeMs, ino, wholeBytes])).slice(0, 32);
  const memo = path.join(cache, "identities", name);
  if (existsSync(memo)) return readFileSync(memo, "utf8");
  const identity = size <= wholeBytes ? await hashFile(file) : `${mtimeMs}-${sampledHash(file, size)}`;
  try {
    writeFileAtomic(memo, identity);
  } catch {
    // a cache that cannot be written, as in some containers, only costs time
  }
  return identity;
}

function sampledHash(file: string, size: number): string {
  const hash = createHash("sha256").update(String(size));
  const handle = openSync(file, "r");
  try {
    const sample = new Uint8Array(HEADER_BYTES);
    hash.update(sample.subarray(0, readSync(handle, sample, 0, HEADER_BYTES, 0)));
    for (let i = 1; i <= SAMPLES; i++) {
      const offset = Math.floor((i * (size - SAMPLE_BYTES)) / SAMPLES);
      hash.update(sample.subarray(0, readSync(handle, sample, 0, SAMPLE_BYTES, offset)));
    }
  } finally {
    closeSync(handle);
  }
  return hash.digest("hex");
}
