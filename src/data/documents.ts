import { existsSync, statSync } from "node:fs";
import path from "node:path";
import { glob } from "tinyglobby";
import { downloadRepo, HUB_PREFIX, type HubOptions } from "../checkpoint/hub.js";
import { FormatError, UsageError } from "../system/errors.js";
import { endingOf, ROW_ENDINGS, readError, readRows, textStream } from "./rows.js";

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
  { endings: ROW_ENDINGS, read: readRecords },
  { endings: [".txt", ".md", ".text", ".rst", ".tex", ".html", ".csv"], read: readText },
];

const readerOf = (file: string): Reader =>
  READERS.find(({ endings }) => endings.includes(endingOf(file)))?.read ?? readText;

/** Streams the documents of a file. @throws FormatError naming the file and line that cannot be read */
export function readDocuments(file: string, options: DocumentOptions): AsyncIterable<Document> {
  return readerOf(file)(file, options);
}

const HUB_DATASETS = `${HUB_PREFIX}datasets/`;

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
  if (input.startsWith(HUB_DATASETS)) return hubFiles(input.slice(HUB_DATASETS.length), hub);
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
  if (match === null)
    throw new UsageError(`${HUB_DATASETS}${reference} is no data set (${HUB_DATASETS}organisation/name)`);
  const [, repo = "", revision, pattern] = match;
  const patterns =
    pattern === undefined ? ["**/*.parquet", "**/*.jsonl", "**/*.jsonl.gz", "**/*.txt", "**/*.txt.gz"] : [pattern];
  const options = revision === undefined ? hub : { ...hub, revision };
  const { directory } = await downloadRepo("dataset", repo, patterns, options);
  return (await glob(patterns, { cwd: directory, absolute: true })).sort();
}

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

async function* readRecords(file: string, { field }: DocumentOptions): AsyncGenerator<Document> {
  for await (const { record, where } of readRows(file, [field]))
    yield { text: textOf(record, field, where), continues: false };
}

function textOf(record: unknown, field: string, where: string): string {
  const value = typeof record === "object" && record !== null ? (record as Record<string, unknown>)[field] : undefined;
  if (typeof value === "string") return value;
  const fields = typeof record === "object" && record !== null ? Object.keys(record).join(", ") : typeof record;
  throw new FormatError(
    `${where} has no text in the field "${field}" (it has: ${fields}); name the field with --field`,
  );
}
