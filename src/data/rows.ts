import { open } from "node:fs/promises";
import path from "node:path";
import { JSONParser } from "@streamparser/json";
import { type CsvError, parse as csvParser } from "csv-parse";
import {
  type AsyncBuffer,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
} from "hyparquet";
import { compressors } from "hyparquet-compressors";
import { CoppiceError, FormatError } from "../system/errors.js";
import { type Content, decoded, encodingOf, isParquet, openContent } from "./content.js";
import { conversationColumn, conversationOf } from "./conversation.js";
import { columnOf } from "./field.js";

/** A row of a table, and its place, for messages. */
export interface Row {
  readonly record: unknown;
  readonly where: string;
}

/** An open data file: the rows of a table, or plain text. */
export type Opened =
  | { readonly kind: "rows"; readonly rows: AsyncIterable<Row>; close(): void }
  | { readonly kind: "text"; readonly text: AsyncIterable<string>; close(): void };

export interface PassWeightsOptions {
  /** The only field needed, or the path to it; all fields by default. */
  readonly field?: string | undefined;
  /** Called with a note for the user. */
  readonly onNote?: ((note: string) => void) | undefined;
}

/** A file's extension, without that of its compression. */
export const endingOf = (file: string): string =>
  path.extname(file.toLowerCase().replace(/\.(?:gz|gzip|zst|zstd)$/, ""));

const JSON_LINES = [".jsonl", ".ndjson"];
const CSV = [".csv", ".tsv", ".tab"];
const PARQUET = ".parquet";

/** Extensions of files that hold rows. */
export const ROW_ENDINGS: readonly string[] = [...JSON_LINES, ".json", ...CSV, PARQUET];

/** Adds the file's name to an error, unless it has a message for the user. */
export const readError = (file: string, error: unknown): CoppiceError =>
  error instanceof CoppiceError
    ? error
    : new FormatError(`${file} cannot be read: ${error instanceof Error ? error.message : error}`);

/**
 * Opens a data file. Its content determines how it is read: as Parquet, JSON lines, a JSON array or object, CSV or TSV with a
 * header, or plain text; in UTF-8 or UTF-16; compressed with gzip or Zstandard or not. The name matters only where the content is
 * ambiguous, as with CSV.
 * @throws FormatError saying what the file is, if it is none of these
 */
export async function openData(file: string, options: PassWeightsOptions = {}): Promise<Opened> {
  let content: Content;
  try {
    content = await openContent(file);
  } catch (error) {
    throw readError(file, error);
  }
  const { head, close } = content;
  try {
    if (isParquet(head)) {
      close();
      if (content.compressed) throw new FormatError(`${file}: a Parquet file is compressed inside, not as a whole`);
      return { kind: "rows", rows: readParquet(file, options.field), close };
    }
    const encoding = await encodingOf(file, head);
    if (endingOf(file) === PARQUET) throw new FormatError(`${file} is not a Parquet file`);
    const text = decoded(file, content, encoding, (characters) =>
      options.onNote?.(`${file}: ${characters} characters are not valid text and became "\ufffd"`),
    );
    const beginning = new TextDecoder(encoding).decode(head, { stream: true });
    const rows = rowsOf(file, beginning, text, options.field);
    return rows === undefined ? { kind: "text", text, close } : { kind: "rows", rows, close };
  } catch (error) {
    close();
    throw readError(file, error);
  }
}

/**
 * Streams the rows of a file.
 * @param field the only one needed, or the path to it; all by default
 * @throws FormatError naming the file and the line that cannot be read, or saying that the file is plain text
 */
export async function* readRows(file: string, field?: string): AsyncGenerator<Row> {
  const opened = await openData(file, { field });
  try {
    if (opened.kind === "text")
      throw new FormatError(`${file} is plain text: rows are needed, as JSON lines, a JSON array, CSV or Parquet`);
    yield* opened.rows;
  } finally {
    opened.close();
  }
}

/** The rows of a text, by how it begins; undefined for plain text. */
function rowsOf(
  file: string,
  beginning: string,
  text: AsyncIterable<string>,
  field: string | undefined,
): AsyncIterable<Row> | undefined {
  const ending = endingOf(file);
  const isJson = JSON_LINES.includes(ending) || ending === ".json";
  const start = beginning.trimStart();
  if (/^\[\s*(?:\{\s*["}]|"(?:[^"\\]|\\.)*(?:$|"\s*(?:,|\]\s*$)))/.test(start) || (isJson && start.startsWith("[")))
    return readArray(file, text);
  if (JSON_LINES.includes(ending) || areJsonLines(start)) return readJsonLines(file, text);
  if (/^\{\s*["}]/.test(start) || isJson) return readObjects(file, text, field);
  if (CSV.includes(ending)) return readTable(file, text, delimiterOf(start, ending), field);
  const delimiter = delimiterOf(start, ending);
  return field !== undefined && isTable(start, delimiter, field) ? readTable(file, text, delimiter, field) : undefined;
}

/** Whether each of the first two lines is a JSON object of its own. */
function areJsonLines(start: string): boolean {
  const lines = start.split("\n").filter((line) => line.trim() !== "");
  if (lines.length < 2 || !lines[1]?.trimStart().startsWith("{")) return false;
  try {
    const first: unknown = JSON.parse(lines[0] ?? "");
    return typeof first === "object" && first !== null;
  } catch {
    return false;
  }
}

/** Lines of text, without line ends. @throws FormatError for one that is too long to be held */
async function* linesOf(file: string, text: AsyncIterable<string>): AsyncGenerator<string> {
  let parts: string[] = []; // of a line that has not ended
  let length = 0;
  for await (const chunk of text) {
    const lines = chunk.split("\n");
    const first = lines.shift() ?? "";
    parts.push(first);
    length += first.length;
    if (length > MOST_ITEM_CHARACTERS)
      throw new FormatError(`${file} has a line of more than ${MOST_ITEM_CHARACTERS} characters: it is not JSON lines`);
    for (const next of lines) {
      yield parts.join("");
      parts = [next];
      length = next.length;
    }
  }
  yield parts.join("");
}

async function* readJsonLines(file: string, text: AsyncIterable<string>): AsyncGenerator<Row> {
  let number = 0;
  try {
    for await (const line of linesOf(file, text)) {
      number++;
      if (line.trim() !== "") yield { record: JSON.parse(line), where: `${file}:${number}` };
    }
  } catch (error) {
    if (error instanceof SyntaxError) throw new FormatError(`${file}:${number} is not valid JSON (${error.message})`);
    throw readError(file, error);
  }
}

/** Limit of a JSON file's items, which are held in memory. */
const MOST_ITEM_CHARACTERS = 256 << 20;

/** The values of a JSON text that `paths` select, each as soon as it is complete. */
async function* jsonValues(
  file: string,
  text: AsyncIterable<string>,
  options: { readonly paths: string[]; readonly separator?: string },
): AsyncGenerator<unknown> {
  const parser = new JSONParser({ ...options, keepStack: false });
  let values: unknown[] = [];
  let pending = 0; // characters since the last value
  parser.onValue = ({ value }) => void values.push(value);
  try {
    for await (const chunk of text) {
      parser.write(chunk);
      pending = values.length > 0 ? 0 : pending + chunk.length;
      if (pending > MOST_ITEM_CHARACTERS)
        throw new FormatError(
          `${file} has a JSON value of more than ${MOST_ITEM_CHARACTERS} characters: save it as JSON lines`,
        );
      yield* values;
      values = [];
    }
    if (!parser.isEnded) parser.end();
    yield* values;
  } catch (error) {
    if (error instanceof CoppiceError) throw error;
    throw new FormatError(`${file} is not valid JSON (${error instanceof Error ? error.message : error})`);
  }
}

async function* readArray(file: string, text: AsyncIterable<string>): AsyncGenerator<Row> {
  let number = 0;
  for await (const record of jsonValues(file, text, { paths: ["$.*"] }))
    yield { record, where: `${file} item ${number++}` };
}

/** Consecutive objects, each on one line or several; a single one may hold a whole table. */
async function* readObjects(file: string, text: AsyncIterable<string>, field?: string): AsyncGenerator<Row> {
  let number = 0;
  let first: unknown;
  for await (const record of jsonValues(file, text, { paths: ["$"], separator: "" })) {
    if (number === 0) first = record;
    if (number === 1) yield { record: first, where: `${file} item 0` };
    if (number > 0) yield { record, where: `${file} item ${number}` };
    number++;
  }
  if (number === 1)
    for (const [i, record] of tableIn(first, field).entries()) yield { record, where: `${file} item ${i}` };
}

/** The rows of an object: those of a table by columns, its only list of records, or the object itself. */
function tableIn(object: unknown, field: string | undefined): readonly unknown[] {
  if (typeof object !== "object" || object === null || Array.isArray(object)) return [object];
  const members = object as Record<string, unknown>;
  const column = field === undefined ? undefined : members[field];
  if (field !== undefined && conversationOf(object, field) !== undefined) return [object];
  // as pandas writes a table by default: {"text": {"0": "...", "1": "..."}}
  if (field !== undefined && typeof column === "object" && column !== null)
    return Object.values(column).map((value) => ({ [field]: value }));
  if (field !== undefined && columnOf(field, Object.keys(members)) !== undefined) return [object];
  const lists = Object.values(members).filter(isListOfRecords);
  return lists.length === 1 ? (lists[0] ?? []) : [object];
}

const isListOfRecords = (value: unknown): value is unknown[] =>
  Array.isArray(value) && value.length > 0 && value.every((item) => typeof item === "object" && item !== null);

const DELIMITERS = [",", "\t", ";", "|"];

/** The first line of a table, without the contents of quotes. */
const headerOf = (start: string): string => start.replace(/"(?:[^"]|"")*"/g, '""').split(/\r?\n|\r/, 1)[0] ?? "";

/** The delimiter of a table: the one that its header has most of. */
function delimiterOf(start: string, ending: string): string {
  const header = headerOf(start);
  const count = (delimiter: string): number => header.split(delimiter).length - 1;
  const fallback = ending === ".csv" || ending === "" ? "," : "\t";
  return DELIMITERS.reduce((best, delimiter) => (count(delimiter) > count(best) ? delimiter : best), fallback);
}

/** Whether text is a table though its file is not named CSV: its first line has names only, among them the field's. */
function isTable(start: string, delimiter: string, field: string): boolean {
  const names = (/^[^\r\n]*/.exec(start)?.[0] ?? "").split(delimiter).map((name) => name.replace(/^"(.*)"$/, "$1"));
  return names.length > 1 && names.includes(field) && names.every((name) => /^\w[\w .-]{0,63}$/.test(name));
}

/** Limit of a CSV row, which is held in memory. */
const MOST_RECORD_BYTES = 256 << 20;

async function* readTable(
  file: string,
  text: AsyncIterable<string>,
  delimiter: string,
  field: string | undefined,
): AsyncGenerator<Row> {
  const parser = csvParser({
    delimiter,
    bom: true,
    info: true,
    skip_empty_lines: true,
    max_record_size: MOST_RECORD_BYTES,
    columns: (header: string[]) => checkedHeader(file, header, field),
  });
  const feed = async () => {
    for await (const chunk of text)
      if (!parser.write(chunk))
        await new Promise<void>((resolve) => parser.once("drain", resolve).once("close", resolve));
    parser.end();
  };
  const fed = feed().catch((error: unknown) => void parser.destroy(error as Error));
  try {
    for await (const { record, info } of parser as AsyncIterable<{ record: unknown; info: { lines: number } }>)
      yield { record, where: `${file}:${info.lines}` };
    await fed;
  } catch (error) {
    if (error instanceof CoppiceError) throw error;
    const { lines } = error as CsvError & { lines?: number };
    throw new FormatError(
      `${lines === undefined ? file : `${file}:${lines}`} is not valid CSV (${error instanceof Error ? error.message : error})`,
    );
  } finally {
    parser.destroy();
  }
}

function checkedHeader(file: string, header: readonly string[], field: string | undefined): string[] {
  const names = header.map((name) => name.trim());
  const duplicate = names.find((name, i) => names.indexOf(name) < i && (field === undefined || name === field));
  if (duplicate !== undefined) throw new FormatError(`${file} has two columns called "${duplicate}"`);
  if (field !== undefined && !names.includes(field))
    throw new FormatError(
      `${file} has no column "${field}" (it has: ${names.slice(0, 20).join(", ").slice(0, 500)}); name the column with --field`,
    );
  return names;
}

/** Rows of a Parquet file to read at a time, and into how many parts a group of rows is divided at most: each part may read all of it. */
const [PARQUET_ROWS, PARTS_OF_GROUP] = [1024, 16];

/** Ranges of rows to read at a time. @throws FormatError where the groups have fewer or more rows than the file claims */
function rowRangesOf(file: string, { num_rows, row_groups }: FileMetaData): { rowStart: number; rowEnd: number }[] {
  const ranges: { rowStart: number; rowEnd: number }[] = [];
  let end = 0;
  for (const group of row_groups) {
    const [start, count] = [end, Number(group.num_rows)];
    end += count;
    if (!(count >= 0) || end > Number(num_rows)) break;
    const step = Math.max(PARQUET_ROWS, Math.ceil(count / PARTS_OF_GROUP));
    for (let row = start; row < end; row += step) ranges.push({ rowStart: row, rowEnd: Math.min(row + step, end) });
  }
  if (end !== Number(num_rows)) throw new FormatError(`${file} claims ${num_rows} rows, and its parts have ${end}`);
  return ranges;
}

/** Node reads no more at once. */
const MOST_READ = 2 ** 30;

async function* readParquet(file: string, field?: string): AsyncGenerator<Row> {
  const handle = await open(file);
  try {
    const { size } = await handle.stat();
    const buffer: AsyncBuffer = {
      byteLength: size,
      slice: async (start, end = size) => {
        const bytes = new Uint8Array(Math.max(0, end - start));
        for (let at = 0; at < bytes.length; ) {
          const { bytesRead } = await handle.read(bytes, at, Math.min(MOST_READ, bytes.length - at), start + at);
          if (bytesRead === 0) throw new FormatError(`${file} ended while it was read`);
          at += bytesRead;
        }
        return bytes.buffer;
      },
    };
    const metadata = await parquetMetadataAsync(buffer);
    const present = parquetSchema(metadata).children.map(({ element }) => element.name);
    const column = field === undefined ? undefined : (columnOf(field, present) ?? conversationColumn(field, present));
    if (field !== undefined && column === undefined)
      throw new FormatError(
        `${file} has no column "${field}" (it has: ${present.join(", ")}); name the column with --field`,
      );
    for (const { rowStart, rowEnd } of rowRangesOf(file, metadata)) {
      const rows = await parquetReadObjects({
        file: buffer,
        metadata,
        rowStart,
        rowEnd,
        compressors,
        columns: column === undefined ? present : [column],
      });
      for (const [i, record] of rows.entries()) yield { record, where: `${file} row ${rowStart + i}` };
    }
  } catch (error) {
    throw readError(file, error);
  } finally {
    await handle.close();
  }
}
