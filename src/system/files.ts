import { createHash, randomBytes } from "node:crypto";
import {
  closeSync,
  createReadStream,
  fsyncSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  statfsSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import { CoppiceError } from "./errors.js";

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

/** What people call sizes; as in every message. */
const size = (bytes: number): string =>
  bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/** An error of writing a file: where the disk is full, it says what had no room. @param bytes of the whole file, where known */
export function writingError(error: unknown, file: string, bytes?: number): unknown {
  const { code } = (error ?? {}) as NodeJS.ErrnoException;
  if (code !== "ENOSPC" && code !== "EDQUOT") return error;
  return new CoppiceError(
    `${file} could not be written${bytes === undefined ? "" : ` (${size(bytes)})`}: ${code === "ENOSPC" ? "the disk is full" : "your quota is used up"}; make room, and the same command goes on`,
  );
}

/**
 * Makes sure that there is room for something before the work that ends in it.
 * @param file where it goes; it need not be there yet
 * @param what for the message, for example `two checkpoints`
 * @throws CoppiceError saying how much is needed and how much there is
 */
export function checkSpace(file: string, bytes: number, what: string): void {
  const free = freeBytes(file);
  if (free !== undefined && bytes > free)
    throw new CoppiceError(
      `${file}: ${what} need${what.endsWith("s") ? "" : "s"} ${size(bytes)}, its disk has ${size(free)} left: make room, or write elsewhere`,
    );
}

/** Undefined where the system does not tell. */
function freeBytes(file: string): number | undefined {
  for (let at = path.resolve(file); ; at = path.dirname(at)) {
    try {
      const { bavail, bsize, blocks } = statfsSync(at);
      return blocks === 0 ? undefined : bavail * bsize; // some virtual file systems count nothing
    } catch {
      if (at === path.dirname(at)) return undefined;
    }
  }
}

/** Writes all of some bytes: the system may take fewer at a time, as it does before it says that a disk is full. */
export function writeAll(handle: number, bytes: Uint8Array, position?: number): void {
  for (let done = 0; done < bytes.byteLength; )
    done += writeSync(
      handle,
      bytes,
      done,
      Math.min(bytes.byteLength - done, MOST_AT_ONCE),
      position === undefined ? null : position + done,
    );
}

/** Systems write at most 2 GiB at once. */
const MOST_AT_ONCE = 2 ** 30;

/** Puts a finished temporary file or directory in its place: flush, rename, flush the parent. */
export function moveIntoPlace(temporary: string, file: string): void {
  renameSync(temporary, file);
  syncDirectory(path.dirname(file));
}

/** Writes a whole small file atomically: beside it, flushed, then renamed. */
export function writeFileAtomic(file: string, content: string | Uint8Array): void {
  mkdirSync(path.dirname(path.resolve(file)), { recursive: true });
  const temporary = temporaryBeside(file);
  try {
    const handle = openSync(temporary, "w");
    try {
      writeFileSync(handle, content);
      fsyncSync(handle);
    } finally {
      closeSync(handle);
    }
    moveIntoPlace(temporary, file);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw writingError(error, file, content.length);
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
