import { createReadStream } from "node:fs";
import { open } from "node:fs/promises";
import path from "node:path";
import { createInterface } from "node:readline";
import { createGunzip } from "node:zlib";
import { type AsyncBuffer, parquetMetadataAsync, parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";
import { CoppiceError, FormatError } from "../system/errors.js";

/** A row of a table, and where it is, for messages. */
export interface Row {
  readonly record: unknown;
  readonly where: string;
}

/** A file's ending, after `.gz` is taken off. */
export const endingOf = (file: string): string => path.extname(file.toLowerCase().replace(/\.gz$/, ""));

const JSON_LINES = [".jsonl", ".ndjson"];
const PARQUET = ".parquet";

/** Endings of the files that hold rows. */
export const ROW_ENDINGS: readonly string[] = [...JSON_LINES, PARQUET];

/**
 * Streams the rows of a JSONL file (also gzipped) or a Parquet file.
 * @param columns the only ones needed; all by default
 * @throws FormatError naming the file and the line that cannot be read
 */
export function readRows(file: string, columns?: readonly string[]): AsyncIterable<Row> {
  return endingOf(file) === PARQUET ? readParquet(file, columns) : readJsonLines(file);
}

/** The file as UTF-8 text in chunks, unpacked if it is gzip. Invalid UTF-8 becomes replacement characters. */
export function textStream(file: string): NodeJS.ReadableStream {
  const raw = createReadStream(file, { highWaterMark: 1 << 18 });
  if (!file.toLowerCase().endsWith(".gz")) return raw.setEncoding("utf8");
  const unpacked = createGunzip();
  raw.on("error", (error) => unpacked.destroy(error));
  return raw.pipe(unpacked).setEncoding("utf8");
}

/** An error that names the file. */
export const readError = (file: string, error: unknown): CoppiceError =>
  error instanceof CoppiceError
    ? error
    : new FormatError(`${file} cannot be read: ${error instanceof Error ? error.message : error}`);

async function* readJsonLines(file: string): AsyncGenerator<Row> {
  let number = 0;
  try {
    for await (const line of createInterface({ input: textStream(file), crlfDelay: Number.POSITIVE_INFINITY })) {
      number++;
      if (line.trim() !== "") yield { record: JSON.parse(line), where: `${file}:${number}` };
    }
  } catch (error) {
    if (error instanceof SyntaxError) throw new FormatError(`${file}:${number} is no valid JSON (${error.message})`);
    throw readError(file, error);
  }
}

/** Rows of a Parquet file are read so many at a time. */
const PARQUET_ROWS = 1024;

async function* readParquet(file: string, columns?: readonly string[]): AsyncGenerator<Row> {
  if (file.toLowerCase().endsWith(".gz"))
    throw new FormatError(`${file}: a Parquet file is compressed inside, not with gzip`);
  const handle = await open(file);
  try {
    const { size } = await handle.stat();
    const buffer: AsyncBuffer = {
      byteLength: size,
      slice: async (start, end = size) => {
        const bytes = new Uint8Array(Math.max(0, end - start));
        const { bytesRead } = await handle.read(bytes, 0, bytes.length, start);
        if (bytesRead !== bytes.length) throw new FormatError(`${file} ended while it was read`);
        return bytes.buffer;
      },
    };
    const metadata = await parquetMetadataAsync(buffer);
    const present = metadata.schema.slice(1).map(({ name }) => name);
    const missing = columns?.find((column) => !present.includes(column));
    if (missing !== undefined)
      throw new FormatError(
        `${file} has no column "${missing}" (it has: ${present.join(", ")}); name the column with --field`,
      );
    for (let row = 0; row < Number(metadata.num_rows); row += PARQUET_ROWS) {
      const rowEnd = Math.min(row + PARQUET_ROWS, Number(metadata.num_rows));
      const rows = await parquetReadObjects({
        ...{ file: buffer, metadata, rowStart: row, rowEnd, compressors },
        ...(columns && { columns: [...columns] }),
      });
      for (const [i, record] of rows.entries()) yield { record, where: `${file} row ${row + i}` };
    }
  } catch (error) {
    throw readError(file, error);
  } finally {
    await handle.close();
  }
}
