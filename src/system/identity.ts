import { createHash } from "node:crypto";
import { closeSync, existsSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import path from "node:path";
import { hashBytes, hashFile, writeFileAtomic } from "./files.js";

/** Up to this size a file is read wholly to tell it from others: seconds. */
const WHOLE_BYTES = 4 * 2 ** 30;
/** Of larger ones its time, the beginning with the header, and pieces spread over the rest. */
const [HEADER_BYTES, PIECES, PIECE_BYTES] = [4 * 2 ** 20, 256, 64 * 2 ** 10];

/**
 * What a file contains, as a short text: equal texts mean equal content. It is remembered in the cache for as long as the file's
 * size, times and place on disk stay.
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
    // a cache that cannot be written, as in some containers, costs time and no more
  }
  return identity;
}

function sampledHash(file: string, size: number): string {
  const hash = createHash("sha256").update(String(size));
  const handle = openSync(file, "r");
  try {
    const piece = new Uint8Array(HEADER_BYTES);
    hash.update(piece.subarray(0, readSync(handle, piece, 0, HEADER_BYTES, 0)));
    for (let i = 1; i <= PIECES; i++) {
      const at = Math.floor((i * (size - PIECE_BYTES)) / PIECES);
      hash.update(piece.subarray(0, readSync(handle, piece, 0, PIECE_BYTES, at)));
    }
  } finally {
    closeSync(handle);
  }
  return hash.digest("hex");
}
