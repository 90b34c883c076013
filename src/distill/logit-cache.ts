import { closeSync, constants, mkdirSync, openSync, readdirSync, readSync, statSync } from "node:fs";
import path from "node:path";
import { crc32 } from "node:zlib";
import { checkSpace, writeAll, writeJson, writingError } from "../system/files.js";
import { logOf } from "../system/log.js";

const log = logOf("training");

export interface LogitCacheOptions {
  /** Written beside the entries, for people. */
  readonly description: unknown;
  /** About how many bytes all entries will take, to check that there is room for them. */
  readonly expectedBytes: number;
}

/** Where an entry is. */
interface Place {
  /** The number of its file, from 1. */
  readonly file: number;
  readonly offset: number;
  readonly bytes: number;
  readonly checksum: number;
}

const INDEX = "index.bin";
/** The bytes of a place in the index: f64, three u32. */
const PLACE_BYTES = 20;
const entriesFile = (file: number): string => `entries-${file}.bin`;
const isEntriesFile = (name: string): boolean => /^entries-\d+\.bin$/.test(name);

/**
 * Entries on disk by the numbers of sequences. Each process appends to a file of its own, so that several may fill a cache at once. An
 * index says where an entry is, after its bytes are written, and has its checksum: what a kill or a crash left incomplete is missing.
 */
export class LogitCache {
  private index: number;
  private readonly handles = new Map<number, number>();
  /** The file that entries are appended to. */
  private appended: { readonly file: number; readonly handle: number; offset: number } | undefined;

  /** @throws CoppiceError when the disk has too little space for the entries that are missing */
  constructor(
    private readonly directory: string,
    { description, expectedBytes }: LogitCacheOptions,
  ) {
    mkdirSync(directory, { recursive: true });
    const present = readdirSync(directory)
      .filter(isEntriesFile)
      .reduce((sum, name) => sum + statSync(path.join(directory, name)).size, 0);
    checkSpace(directory, expectedBytes - present, "the teacher's logits");
    writeJson(path.join(directory, "cache.json"), description);
    this.index = this.openIndex();
    log.debug(present > 0 ? "teacher's logits cached" : "teacher's logits not cached", { directory });
  }

  private openIndex(): number {
    return openSync(path.join(this.directory, INDEX), constants.O_RDWR | constants.O_CREAT);
  }

  /** Opens its files anew: network file systems show what other machines have written to those who open a file after that. */
  refresh(): void {
    for (const handle of this.handles.values()) closeSync(handle);
    this.handles.clear();
    this.appended = undefined;
    closeSync(this.index);
    this.index = this.openIndex();
  }

  put(number: number, entry: Uint8Array): void {
    this.appended ??= { ...this.createFile(), offset: 0 };
    const { file, handle, offset } = this.appended;
    const place = { file, offset, bytes: entry.byteLength, checksum: crc32(entry) };
    try {
      writeAll(handle, entry, offset);
      writeAll(this.index, packed(place), number * PLACE_BYTES);
    } catch (error) {
      throw writingError(error, path.join(this.directory, entriesFile(file)));
    }
    this.appended.offset += entry.byteLength;
  }

  /** Undefined when there is none, or only a damaged one. */
  get(number: number): Uint8Array | undefined {
    const record = Buffer.alloc(PLACE_BYTES);
    if (readSync(this.index, record, 0, PLACE_BYTES, number * PLACE_BYTES) < PLACE_BYTES) return undefined;
    const { file, offset, bytes, checksum } = unpacked(record);
    // a record that was cut off as it was written has zeros
    const handle = file === 0 || bytes === 0 ? undefined : this.handleIfPresent(file);
    if (handle === undefined) return undefined;
    const entry = new Uint8Array(bytes);
    return readSync(handle, entry, 0, bytes, offset) === bytes && crc32(entry) === checksum ? entry : undefined;
  }

  private createFile(): { readonly file: number; readonly handle: number } {
    for (let file = 1; ; file++) {
      try {
        const handle = openSync(path.join(this.directory, entriesFile(file)), "wx+");
        this.handles.set(file, handle);
        return { file, handle };
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      }
    }
  }

  private handleIfPresent(file: number): number | undefined {
    const known = this.handles.get(file);
    if (known !== undefined) return known;
    try {
      const handle = openSync(path.join(this.directory, entriesFile(file)), "r");
      this.handles.set(file, handle);
      return handle;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined; // deleted by hand
      throw error;
    }
  }

  close(): void {
    closeSync(this.index);
    for (const handle of this.handles.values()) closeSync(handle);
    this.handles.clear();
  }
}

function packed({ file, offset, bytes, checksum }: Place): Uint8Array {
  const record = Buffer.alloc(PLACE_BYTES);
  record.writeDoubleLE(offset, 0);
  record.writeUInt32LE(file, 8);
  record.writeUInt32LE(bytes, 12);
  record.writeUInt32LE(checksum, 16);
  return record;
}

/** A place of zeros, in the file 0, is none. */
const unpacked = (record: Buffer): Place => ({
  offset: record.readDoubleLE(0),
  file: record.readUInt32LE(8),
  bytes: record.readUInt32LE(12),
  checksum: record.readUInt32LE(16),
});
