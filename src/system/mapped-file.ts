import { closeSync, constants, fstatSync, openSync } from "node:fs";
import { CoppiceError } from "./errors.js";
import koffi from "./ffi.js";
import { readAll } from "./files.js";
import { logOf } from "./log.js";

const log = logOf("files");

/** A file mapped into memory, whose pages the operating system loads on access. */
export interface MappedFile {
  readonly path: string;
  readonly byteLength: number;
  /** The bytes of a range, without copying where the platform can map files. Read-only: writing to it faults. */
  bytes(offset: number, length: number): Uint8Array;
  /** Lets the system drop a range from this process's resident memory until it is read again. */
  release(offset: number, length: number): void;
  /** Lets another file take its name, which some systems refuse while it is open. Its bytes must not be read after that. */
  close(): void;
}

const PAGE = 4096;
const PROT_READ = 1;
const MAP_SHARED = 1;
const MADV_DONTNEED = 4;

interface Libc {
  mmap(address: null, length: number, protection: number, flags: number, file: number, offset: number): bigint;
  munmap(address: bigint, length: number): number;
  madvise(address: bigint, length: number, advice: number): number;
}

let libc: Libc | undefined | null;

function loadLibc(): Libc | null {
  if (libc !== undefined) return libc;
  libc = null;
  for (const name of process.platform === "darwin" ? ["libSystem.B.dylib"] : ["libc.so.6", "libc.so"]) {
    if (process.platform === "win32") break;
    try {
      const library = koffi.load(name);
      libc = {
        mmap: library.func("intptr_t mmap(void *a, size_t n, int prot, int flags, int fd, int64_t off)"),
        munmap: library.func("int munmap(intptr_t a, size_t n)"),
        madvise: library.func("int madvise(intptr_t a, size_t n, int advice)"),
      };
      break;
    } catch {
      // try the next name; without one, files are read instead of mapped
    }
  }
  return libc;
}

/** What keeps a mapping alive: it is unmapped when neither its file nor any of its bytes refers to this. */
type Keeper = Readonly<Record<string, never>>;
const unmapper = new FinalizationRegistry<{ address: bigint; length: number }>(({ address, length }) => {
  loadLibc()?.munmap(address, length);
});
const keepers = new WeakMap<ArrayBufferLike, Keeper>();

/**
 * Files are seen through windows of twice so many bytes, which begin at its multiples: Node has no buffers of 4 GiB or more, and
 * half of that serve almost every range.
 */
const WINDOW = 2 ** 30;
/** Node 20 has no larger buffers. */
const LARGEST_RANGE = 2 ** 32 - 1;

/**
 * Opens a file for random access.
 * @throws CoppiceError when it cannot be opened or is not a regular file
 */
export function mapFile(path: string): MappedFile {
  let handle: number;
  try {
    // a named pipe is opened at once, to be refused, rather than when someone writes to it
    handle = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
  } catch (error) {
    throw new CoppiceError(`cannot open ${path}: ${(error as NodeJS.ErrnoException).code ?? error}`);
  }
  const status = fstatSync(handle);
  if (!status.isFile()) {
    closeSync(handle);
    throw new CoppiceError(`${path} is not a regular file`);
  }
  log.debug("file opened", { file: path, bytes: status.size });
  const native = loadLibc();
  if (status.size === 0 || native === null) return new ReadFile(path, status.size, handle);
  const address = BigInt(native.mmap(null, status.size, PROT_READ, MAP_SHARED, handle, 0));
  closeSync(handle);
  if (address === -1n) throw new CoppiceError(`cannot map ${path} (${status.size} bytes) into memory`);
  return new Mapping(path, status.size, address, native);
}

function checkRange(file: MappedFile, offset: number, length: number): void {
  if (!(offset >= 0 && length >= 0 && offset + length <= file.byteLength))
    throw new CoppiceError(
      `${file.path}: bytes ${offset} to ${offset + length} lie beyond its ${file.byteLength} bytes; is it truncated?`,
    );
}

class Mapping implements MappedFile {
  private readonly keeper: Keeper = {};
  private readonly windows = new Map<number, ArrayBuffer>();

  constructor(
    readonly path: string,
    readonly byteLength: number,
    private readonly address: bigint,
    private readonly native: Libc,
  ) {
    unmapper.register(this.keeper, { address, length: byteLength });
  }

  bytes(offset: number, length: number): Uint8Array {
    checkRange(this, offset, length);
    if (length > LARGEST_RANGE)
      throw new CoppiceError(
        `${this.path}: a tensor of ${length} bytes is too large: at most ${LARGEST_RANGE} are read`,
      );
    const from = Math.floor(offset / WINDOW) * WINDOW;
    if (offset + length > from + 2 * WINDOW) return new Uint8Array(this.view(offset, length));
    let window = this.windows.get(from);
    if (window === undefined) {
      window = this.view(from, Math.min(2 * WINDOW, this.byteLength - from));
      this.windows.set(from, window);
    }
    return new Uint8Array(window, offset - from, length);
  }

  private view(offset: number, length: number): ArrayBuffer {
    const buffer = koffi.view(this.address + BigInt(offset), length);
    keepers.set(buffer, this.keeper);
    return buffer;
  }

  release(offset: number, length: number): void {
    checkRange(this, offset, length);
    const start = Math.floor(offset / PAGE) * PAGE;
    // a page shared with a neighboring range is loaded again when that range is read
    if (length > 0) this.native.madvise(this.address + BigInt(start), offset + length - start, MADV_DONTNEED);
  }

  close(): void {} // unmapped when no view is left
}

/** The same by positioned reads, for platforms that cannot map files. */
class ReadFile implements MappedFile {
  constructor(
    readonly path: string,
    readonly byteLength: number,
    private readonly handle: number,
  ) {}

  bytes(offset: number, length: number): Uint8Array {
    checkRange(this, offset, length);
    const bytes = new Uint8Array(length);
    readAll(this.handle, bytes, offset, this.path);
    return bytes;
  }

  release(): void {}

  close(): void {
    closeSync(this.handle);
  }
}
