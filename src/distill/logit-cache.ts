import { closeSync, fstatSync, mkdirSync, openSync, readdirSync, readSync, statSync } from "node:fs";
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

/** The bytes of a record in an index: f64, three u32. */
const RECORD_BYTES = 20;
const entriesFile = (file: number): string => `entries-${file}.bin`;
const indexFile = (file: number): string => `index-${file}.bin`;
const numberOf = (name: string): number => Number(/^(?:entries|index)-(\d+)\.bin$/.exec(name)?.[1] ?? 0);

/** The files that a process appends to. */
interface Appended {
  readonly file: number;
  readonly entries: number;
  readonly index: number;
  /** Bytes of entries. */
  offset: number;
}

/**
 * Entries on disk by the numbers of sequences. Each process appends to files of its own, so that several may fill a cache at once, on
 * network file systems, too, where those who write to one file lose each other's bytes. An index says where an entry is, after its bytes
 * are written, and has its checksum: what a kill or a crash left incomplete is missing.
 */
export class LogitCache {
  private readonly places = new Map<number, Place>();
  /** How many bytes of each index have been read, by its number. */
  private readonly read = new Map<number, number>();
  private readonly handles = new Map<number, number>();
  private appended: Appended | undefined;

  /** @throws CoppiceError when the disk has too little space for the entries that are missing */
  constructor(
    private readonly directory: string,
    { description, expectedBytes }: LogitCacheOptions,
  ) {
    mkdirSync(directory, { recursive: true });
    const present = readdirSync(directory)
      .filter((name) => numberOf(name) > 0)
      .reduce((sum, name) => sum + statSync(path.join(directory, name)).size, 0);
    checkSpace(directory, expectedBytes - present, "the teacher's logits");
    writeJson(path.join(directory, "cache.json"), description);
    this.readIndices();
    log.debug(present > 0 ? "teacher's logits cached" : "teacher's logits not cached", { directory });
  }

  /** Reads what has been added to the indices of other processes. */
  private readIndices(): void {
    const files = readdirSync(this.directory)
      .filter((name) => name === indexFile(numberOf(name)))
      .map(numberOf)
      .filter((file) => file !== this.appended?.file)
      .sort((a, b) => a - b); // an entry that was damaged is in a later file again
    for (const file of files) this.readIndex(file);
  }

  private readIndex(file: number): void {
    const handle = openSync(path.join(this.directory, indexFile(file)), "r");
    try {
      const from = this.read.get(file) ?? 0;
      const added = fstatSync(handle).size - from;
      const records = Buffer.alloc(Math.max(0, added - (added % RECORD_BYTES))); // the last may be incomplete
      const complete = readSync(handle, records, 0, records.byteLength, from);
      for (let at = 0; at + RECORD_BYTES <= complete; at += RECORD_BYTES) {
        const { number, ...place } = unpacked(records.subarray(at, at + RECORD_BYTES));
        if (place.bytes > 0) this.places.set(number, { file, ...place }); // what a crash has left of a record may be zeros
        this.read.set(file, from + at + RECORD_BYTES);
      }
    } finally {
      closeSync(handle);
    }
  }

  /** Opens its files anew: network file systems show what other machines have written to those who open a file after that. */
  refresh(): void {
    this.close();
    this.read.clear();
    this.readIndices();
  }

  put(number: number, entry: Uint8Array): void {
    this.appended ??= this.createFiles();
    const { file, entries, index, offset } = this.appended;
    const place = { offset, bytes: entry.byteLength, checksum: crc32(entry) };
    try {
      writeAll(entries, entry, offset);
      writeAll(index, packed({ number, ...place }));
    } catch (error) {
      throw writingError(error, path.join(this.directory, entriesFile(file)));
    }
    this.places.set(number, { file, ...place });
    this.appended.offset += entry.byteLength;
  }

  /** Undefined when there is none, or only a damaged one. */
  get(number: number): Uint8Array | undefined {
    const known = this.entryAt(this.places.get(number));
    if (known !== undefined) return known;
    this.readIndices();
    return this.entryAt(this.places.get(number));
  }

  /** Those of some numbers that have no entry, each once. */
  missing(numbers: Iterable<number>): number[] {
    this.readIndices();
    return [...new Set(numbers)].filter((number) => this.entryAt(this.places.get(number)) === undefined);
  }

  private entryAt(place: Place | undefined): Uint8Array | undefined {
    const handle = place === undefined ? undefined : this.handleIfPresent(place.file);
    if (place === undefined || handle === undefined) return undefined;
    const { offset, bytes, checksum } = place;
    if (offset + bytes > fstatSync(handle).size) return undefined; // before memory is taken for it
    const entry = new Uint8Array(bytes);
    return readSync(handle, entry, 0, bytes, offset) === bytes && crc32(entry) === checksum ? entry : undefined;
  }

  private createFiles(): Appended {
    const present = readdirSync(this.directory).map(numberOf);
    for (let file = 1 + Math.max(0, ...present); ; file++) {
      try {
        const entries = openSync(path.join(this.directory, entriesFile(file)), "wx+");
        this.handles.set(file, entries);
        const index = openSync(path.join(this.directory, indexFile(file)), "wx");
        return { file, entries, index, offset: 0 };
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
    if (this.appended !== undefined) closeSync(this.appended.index);
    this.appended = undefined;
    for (const handle of this.handles.values()) closeSync(handle);
    this.handles.clear();
  }
}

type IndexRecord = Omit<Place, "file"> & { readonly number: number };

function packed({ number, offset, bytes, checksum }: IndexRecord): Uint8Array {
  const record = Buffer.alloc(RECORD_BYTES);
  record.writeDoubleLE(offset, 0);
  record.writeUInt32LE(number, 8);
  record.writeUInt32LE(bytes, 12);
  record.writeUInt32LE(checksum, 16);
  return record;
}

const unpacked = (record: Buffer): IndexRecord => ({
  offset: record.readDoubleLE(0),
  number: record.readUInt32LE(8),
  bytes: record.readUInt32LE(12),
  checksum: record.readUInt32LE(16),
});
