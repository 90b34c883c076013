import { existsSync, readFileSync, statSync } from "node:fs";
import path from "node:path";
import { hashBytes, hashFile, writeFileAtomic } from "./files.js";

/**
 * Identifies a file's content by a short text: equal content has equal texts, wherever it is. A checkpoint's shard of 5 GB takes some
 * seconds; the text is cached for as long as the file's path, size, times and inode stay the same.
 */
export async function contentIdentity(file: string, cache: string): Promise<string> {
  const { size, mtimeMs, ctimeMs, ino } = statSync(file);
  const name = hashBytes(JSON.stringify([path.resolve(file), size, mtimeMs, ctimeMs, ino])).slice(0, 32);
  const memo = path.join(cache, "identities", name);
  if (existsSync(memo)) return readFileSync(memo, "utf8");
  const identity = await hashFile(file);
  try {
    writeFileAtomic(memo, identity);
  } catch {
    // a cache that cannot be written, as in some containers, only costs time
  }
  return identity;
}
