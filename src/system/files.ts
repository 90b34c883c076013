import { createHash, randomBytes } from "node:crypto";
import {
  closeSync,
  createReadStream,
  fsyncSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  statfsSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import { CoppiceError } from "./errors.js";

/** The directory for files that can be recreated: `directory`, or COPPICE_CACHE, or `~/.cache/coppice`. */
export const cacheDirectory = (directory?: string): string =>
  directory ?? process.env.COPPICE_CACHE ?? path.join(homedir(), ".cache", "coppice");

/** Flushes a directory, so that a rename in it survives a power failure. */
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

/** A name in the directory of `file` that no other process uses, to write to before renaming. */
export function temporaryBeside(file: string): string {
  return `${file}.partial-${process.pid}-${randomBytes(4).toString("hex")}`;
}

/** A size in the units of all messages. */
const formatSize = (bytes: number): string =>
  bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/**
 * Turns an error of writing a file into one that says what did not fit, when the disk is full or the quota exceeded. Other errors
 * are returned as they are.
 * @param bytes size of the whole file, where known
 */
export function writingError(error: unknown, file: string, bytes?: number): unknown {
  const { code } = (error ?? {}) as NodeJS.ErrnoException;
  if (code !== "ENOSPC" && code !== "EDQUOT") return error;
  return new CoppiceError(
    `${file} could not be written${bytes === undefined ? "" : ` (${formatSize(bytes)})`}: ${code === "ENOSPC" ? "the disk is full" : "your quota is used up"}; free some space and run the same command again to continue`,
  );
}

/**
 * Checks for disk space before the work that ends in writing a file.
 * @param file the file to write; neither it nor its directory need exist
 * @param what names what is written, for example `two checkpoints`
 * @throws CoppiceError saying how much is needed and how much there is
 */
export function checkSpace(file: string, bytes: number, what: string): void {
  const free = freeBytes(file);
  if (free !== undefined && bytes > free)
    throw new CoppiceError(
      `${file}: ${what} need${what.endsWith("s") ? "" : "s"} ${formatSize(bytes)}, its disk has ${formatSize(free)} left: free some space, or write elsewhere`,
    );
}

/** Free space on the disk of a file that may not exist yet; undefined when the system does not say. */
export function freeBytes(file: string): number | undefined {
  for (let at = path.resolve(file); ; at = path.dirname(at)) {
    try {
      const { bavail, bsize, blocks } = statfsSync(at);
      return blocks === 0 ? undefined : bavail * bsize; // some virtual file systems do not count blocks
    } catch {
      if (at === path.dirname(at)) return undefined;
    }
  }
}

/**
 * Reads until the bytes are full: the system may read fewer at a time, and Node takes no more than 2 GiB.
 * @param name says in an error what ended too early
 */
export function readAll(handle: number, bytes: Uint8Array, position: number, name: string): void {
  for (let done = 0; done < bytes.byteLength; ) {
    const count = readSync(handle, bytes, done, Math.min(bytes.byteLength - done, MOST_AT_ONCE), position + done);
    if (count === 0) throw new CoppiceError(`${name} ended at byte ${position + done} while being read`);
    done += count;
  }
}

/** Writes all bytes: the system may take fewer at a time, as it does before it reports that the disk is full. */
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

/** No system writes more than 2 GiB at once. */
const MOST_AT_ONCE = 2 ** 30;

/** Renames a finished temporary file or directory to its final name and flushes the parent. */
export function moveIntoPlace(temporary: string, file: string): void {
  renameSync(temporary, file);
  syncDirectory(path.dirname(file));
}

/** Writes a small file atomically. */
export function writeFileAtomic(file: string, content: string | Uint8Array): void {
  mkdirSync(path.dirname(path.resolve(file)), { recursive: true });
  writeAtomically(file, content.length, (handle) => writeFileSync(handle, content));
}

/**
 * Writes a file atomically: to a temporary file beside it, flushed and then renamed. Nothing is left after an error.
 * @param bytes the file's size, for messages
 * @param write writes everything to the open file
 * @throws CoppiceError when the disk is full
 */
export function writeAtomically(file: string, bytes: number, write: (handle: number) => void): void {
  const temporary = temporaryBeside(file);
  try {
    const handle = openSync(temporary, "w");
    try {
      write(handle);
      fsyncSync(handle);
    } finally {
      closeSync(handle);
    }
    moveIntoPlace(temporary, file);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw writingError(error, file, bytes);
  }
}

/** Writes a value as indented JSON, atomically. @param replacer as in `JSON.stringify` */
export function writeJson(file: string, value: unknown, replacer?: (key: string, value: unknown) => unknown): void {
  writeFileAtomic(file, `${JSON.stringify(value, replacer, 2)}\n`);
}

/** A replacer for {@link writeJson}: paths below `directory` begin with `prefix` instead. */
export const pathsBelow = (directory: string, prefix: string) => (_: string, value: unknown) =>
  typeof value === "string" && value.startsWith(directory + path.sep)
    ? prefix + value.slice(directory.length + 1)
    : value;

/** Turns a name chosen by a person into a file name. */
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
