import { createHash, randomBytes } from "node:crypto";
import {
  closeSync,
  createReadStream,
  fsyncSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import path from "node:path";

/** Where what can be made again is kept: `given`, or COPPICE_CACHE, or `~/.cache/coppice`. */
export const cacheDirectory = (given?: string): string =>
  given ?? process.env.COPPICE_CACHE ?? path.join(homedir(), ".cache", "coppice");

/** Flushes a directory entry, so that a rename in it survives a power cut. Not every platform allows it. */
export function syncDirectory(directory: string): void {
  try {
    const handle = openSync(directory, "r");
    try {
      fsyncSync(handle);
    } finally {
      closeSync(handle);
    }
  } catch {
    // Windows cannot open a directory; the rename itself is atomic there.
  }
}

/** A name beside `file` that no other process uses, for writing before the rename. */
export function temporaryBeside(file: string): string {
  return `${file}.partial-${process.pid}-${randomBytes(4).toString("hex")}`;
}

/** Puts a finished temporary file or directory in its place: flush, rename, flush the parent. */
export function moveIntoPlace(temporary: string, file: string): void {
  renameSync(temporary, file);
  syncDirectory(path.dirname(file));
}

/** Writes a whole small file atomically: beside it, flushed, then renamed. */
export function writeFileAtomic(file: string, content: string | Uint8Array): void {
  mkdirSync(path.dirname(path.resolve(file)), { recursive: true });
  const temporary = temporaryBeside(file);
  const handle = openSync(temporary, "w");
  try {
    writeFileSync(handle, content);
    fsyncSync(handle);
    closeSync(handle);
    moveIntoPlace(temporary, file);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
}

/** Writes a value as indented JSON, atomically. @param replacer as `JSON.stringify` has it */
export function writeJson(file: string, value: unknown, replacer?: (key: string, value: unknown) => unknown): void {
  writeFileAtomic(file, `${JSON.stringify(value, replacer, 2)}\n`);
}

/** For {@link writeJson}: paths below a directory begin with something else. */
export const pathsBelow = (directory: string, start: string) => (_: string, value: unknown) =>
  typeof value === "string" && value.startsWith(directory + path.sep)
    ? start + value.slice(directory.length + 1)
    : value;

/** A name that people gave, as one for files. */
export const safeFileName = (name: string): string =>
  name
    .normalize("NFKD")
    .replace(/[^\w.-]+/g, "-")
    .replace(/^[-._]+|[-._]+$/g, "")
    .slice(0, 60) || "model";

/** SHA-256 of a file's bytes, streamed, in hexadecimal. */
export async function hashFile(file: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 })) hash.update(chunk);
  return hash.digest("hex");
}

/** SHA-256 of a string or bytes, in hexadecimal. */
export function hashBytes(content: string | Uint8Array): string {
  return createHash("sha256").update(content).digest("hex");
}
