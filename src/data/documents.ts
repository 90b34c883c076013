import { createReadStream, existsSync, statSync } from "node:fs";
import { open } from "node:fs/promises";
import path from "node:path";
import { createInterface } from "node:readline";
import { createGunzip } from "node:zlib";
import { type AsyncBuffer, parquetMetadataAsync, parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";
import { glob } from "tinyglobby";
import { downloadRepo, type HubOptions } from "../checkpoint/hub.js";
import { CoppiceError, FormatError, UsageError } from "../system/errors.js";

/** A piece of text. Several pieces in a row may belong to one document. */
export interface Document {
  readonly text: string;
  /** Whether it goes on where the piece before it ended, without a boundary. */
  readonly continues: boolean;
}

export interface DocumentOptions {
  /** The field of JSONL records and the column of Parquet files that holds the text. */
  readonly field: string;
  /** What separates documents in plain text. Text without it is one document. */
  readonly separator: string;
}

export const DOCUMENT_DEFAULTS: DocumentOptions = { field: "text", separator: "<|endoftext|>" };

type Reader = (file: string, options: DocumentOptions) => AsyncIterable<Document>;

/** How each kind of file is read, by its ending (after `.gz` is taken off). */
const READERS: readonly { readonly endings: readonly string[]; readonly read: Reader }[] = [
  { endings: [".jsonl", ".ndjson"], read: readJsonLines },
  { endings: [".parquet"], read: readParquet },
  { endings: [".txt", ".md", ".text", ".rst", ".tex", ".html", ".csv"], read: readText },
];

const endingOf = (file: string): string => path.extname(file.toLowerCase().replace(/\.gz$/, ""));

const readerOf = (file: string): Reader =>
  READERS.find(({ endings }) => endings.includes(endingOf(file)))?.read ?? readText;

/** Streams the documents of a file. @throws FormatError naming the file and line that cannot be read */
export function readDocuments(file: string, options: DocumentOptions): AsyncIterable<Document> {
  return readerOf(file)(file, options);
}

const HUB_PREFIX = "hf://datasets/";

/**
 * Finds the files that data arguments mean: a file, a directory (every readable file below it), a glob, or
 * `hf://datasets/org/name[@revision][/glob]`.
 * @throws UsageError when an argument matches nothing
 */
export async function findDataFiles(inputs: readonly string[], hub: HubOptions = {}): Promise<string[]> {
  const found: string[] = [];
  for (const input of inputs) {
    const files = await filesOf(input, hub);
    if (files.length === 0) throw new UsageError(`no data found at ${input}`);
    found.push(...files);
  }
  return found;
}

async function filesOf(input: string, hub: HubOptions): Promise<string[]> {
  if (input.startsWith(HUB_PREFIX)) return hubFiles(input.slice(HUB_PREFIX.length), hub);
  if (existsSync(input)) return statSync(input).isDirectory() ? filesBelow(input) : [path.resolve(input)];
  return (await glob(input, { absolute: true, expandDirectories: false })).sort();
}

async function filesBelow(directory: string): Promise<string[]> {
  const endings = READERS.flatMap((reader) => reader.endings);
  const all = await glob("**/*", { cwd: directory, absolute: true });
  return all.filter((file) => endings.includes(endingOf(file))).sort();
}

async function hubFiles(reference: string, hub: HubOptions): Promise<string[]> {
  const match = /^([\w.-]+\/[\w.-]+?)(?:@([\w.-]+))?(?:\/(.+))?$/.exec(reference);
  if (match === null) throw new UsageError(`${HUB_PREFIX}${reference} is no data set (${HUB_PREFIX}organisation/name)`);
  const [, repo = "", revision, pattern] = match;
  const patterns =
    pattern === undefined ? ["**/*.parquet", "**/*.jsonl", "**/*.jsonl.gz", "**/*.txt", "**/*.txt.gz"] : [pattern];
  const options = revision === undefined ? hub : { ...hub, revision };
  const { directory } = await downloadRepo("dataset", repo, patterns, options);
  return (await glob(patterns, { cwd: directory, absolute: true })).sort();
}

/** The file as UTF-8 text in chunks, unpacked if it is gzip. Invalid UTF-8 becomes replacement characters. */
function textStream(file: string): NodeJS.ReadableStream {
  const raw = createReadStream(file, { highWaterMark: 1 << 18 });
  if (!file.toLowerCase().endsWith(".gz")) return raw.setEncoding("utf8");
  const unpacked = createGunzip();
  raw.on("error", (error) => unpacked.destroy(error));
  return raw.pipe(unpacked).setEncoding("utf8");
}

const readError = (file: string, error: unknown): CoppiceError =>
  error instanceof CoppiceError
    ? error
    : new FormatError(`${file} cannot be read: ${error instanceof Error ? error.message : error}`);

/** Pieces of a document without separators are about this long. */
const PIECE_CHARACTERS = 4096;

/** A document without a separator is handed on in pieces cut at line ends, so that no file need fit in memory. */
async function* readText(file: string, { separator }: DocumentOptions): AsyncGenerator<Document> {
  let rest = "";
  let inside = false; // whether the last piece belongs to a document that is still open
  const piece = (text: string): Document => ({ text, continues: inside });
  try {
    for await (const chunk of textStream(file)) {
      rest += chunk;
      for (let end = rest.indexOf(separator); end >= 0; end = rest.indexOf(separator)) {
        const text = rest.slice(0, end);
        if (text.trim() !== "") yield piece(inside ? text.trimEnd() : text.trim());
        inside = false;
        rest = rest.slice(end + separator.length);
      }
      while (rest.length > 2 * PIECE_CHARACTERS) {
        const line = rest.indexOf("\n", PIECE_CHARACTERS);
        const cut = line < 0 || line > rest.length - separator.length ? -1 : line + 1;
        if (cut < 0) break;
        yield piece(inside ? rest.slice(0, cut) : rest.slice(0, cut).trimStart());
        inside = true;
        rest = rest.slice(cut);
      }
    }
  } catch (error) {
    throw readError(file, error);
  }
  if (rest.trim() !== "") yield piece(inside ? rest.trimEnd() : rest.trim());
}

async function* readJsonLines(file: string, { field }: DocumentOptions): AsyncGenerator<Document> {
  let number = 0;
  try {
    for await (const line of createInterface({ input: textStream(file), crlfDelay: Number.POSITIVE_INFINITY })) {
      number++;
      if (line.trim() === "") continue;
      yield { text: textOf(JSON.parse(line), field, `${file}:${number}`), continues: false };
    }
  } catch (error) {
    if (error instanceof SyntaxError) throw new FormatError(`${file}:${number} is no valid JSON (${error.message})`);
    throw readError(file, error);
  }
}

function textOf(record: unknown, field: string, where: string): string {
  const value = typeof record === "object" && record !== null ? (record as Record<string, unknown>)[field] : undefined;
  if (typeof value === "string") return value;
  const fields = typeof record === "object" && record !== null ? Object.keys(record).join(", ") : typeof record;
  throw new FormatError(
    `${where} has no text in the field "${field}" (it has: ${fields}); name the field with --field`,
  );
}

/** Rows of a Parquet file are read so many at a time. */
const PARQUET_ROWS = 1024;

async function* readParquet(file: string, { field }: DocumentOptions): AsyncGenerator<Document> {
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
    const columns = metadata.schema.slice(1).map(({ name }) => name);
    if (!columns.includes(field))
      throw new FormatError(
        `${file} has no column "${field}" (it has: ${columns.join(", ")}); name the column with --field`,
      );
    for (let row = 0; row < Number(metadata.num_rows); row += PARQUET_ROWS) {
      const rowEnd = Math.min(row + PARQUET_ROWS, Number(metadata.num_rows));
      const rows = await parquetReadObjects({
        file: buffer,
        metadata,
        columns: [field],
        rowStart: row,
        rowEnd,
        compressors,
      });
      for (const [i, record] of rows.entries())
        yield { text: textOf(record, field, `${file} row ${row + i}`), continues: false };
    }
  } catch (error) {
    throw readError(file, error);
  } finally {
    await handle.close();
  }
}
