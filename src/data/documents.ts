import { existsSync, statSync } from "node:fs";
import path from "node:path";
import { glob } from "tinyglobby";
import { downloadRepo, HUB_PREFIX, type HubOptions } from "../checkpoint/hub.js";
import { FormatError, UsageError } from "../system/errors.js";
import { didYouMeanPath } from "../system/suggest.js";
import { type ChatTemplate, ConversationError } from "./chat-template.js";
import { conversationOf, TEXT_FIELD } from "./conversation.js";
import { fieldNames, textIn } from "./field.js";
import { endingOf, openData, ROW_ENDINGS, type Row, readError } from "./rows.js";

/** A document, or one of several consecutive parts of it. */
export interface Document {
  readonly text: string;
  /** Whether it continues the part before it. */
  readonly continues: boolean;
  /**
   * What was said, of a conversation: its text is in the form of the chat template, with the tokens that the model's texts begin and end
   * with.
   */
  readonly said?: string | undefined;
}

export interface DocumentOptions {
  /** The field of JSONL records and the column of Parquet files that holds the text, or a conversation. */
  readonly field: string;
  /** The separator of documents in plain text. Text without it is one document. */
  readonly separator: string;
}

export const DOCUMENT_DEFAULTS: DocumentOptions = { field: TEXT_FIELD, separator: "<|endoftext|>" };

/** Called with a note for the user, for example how many rows were left out. */
export type OnNote = (note: string) => void;

/** Extensions of the files of a directory that are read. */
const READ_ENDINGS: readonly string[] = [...ROW_ENDINGS, ".txt", ".md", ".text", ".rst", ".tex", ".html"];
/** Files that describe a data set. */
const DESCRIPTIONS = ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

/**
 * Streams the documents of a file; see {@link readRows} for the formats. Rows without text are left out and counted.
 * @param template what turns conversations into texts
 * @throws FormatError naming the file and line that cannot be read, or when no row has text
 */
export async function* readDocuments(
  file: string,
  options: DocumentOptions,
  onNote?: OnNote,
  template?: () => ChatTemplate | undefined,
): AsyncGenerator<Document> {
  const opened = await openData(file, { field: options.field, onNote });
  try {
    const documents =
      opened.kind === "rows"
        ? readRecords(file, opened.rows, options, onNote, template)
        : readText(file, opened.text, options);
    let isEmpty = true;
    for await (const document of documents) {
      isEmpty = false;
      yield document;
    }
    if (isEmpty) onNote?.(`${file}: there is no text in it`);
  } finally {
    opened.close();
  }
}

const HUB_DATASETS = `${HUB_PREFIX}datasets/`;

/**
 * Finds the files that data arguments refer to: a file, a directory (every readable file below it), a glob, or
 * `hf://datasets/org/name[@revision][/glob]`.
 * @throws UsageError when an argument matches nothing
 */
export async function findDataFiles(
  inputs: readonly string[],
  hub: HubOptions = {},
  onNote?: OnNote,
): Promise<string[]> {
  const found: string[] = [];
  for (const input of inputs) {
    const files = await filesOf(input, hub, onNote);
    if (files.length === 0) throw new UsageError(`no data found at ${input}${adviceFor(input)}`);
    found.push(...files);
  }
  return found;
}

/** What was meant by an argument that matches nothing. */
function adviceFor(input: string): string {
  if (existsSync(input))
    return `: none of its files has an ending that is read (${READ_ENDINGS.join(", ")}); a glob, '${path.join(input, "*")}', takes files of any name`;
  const isFile = READ_ENDINGS.includes(endingOf(input));
  if (!isFile && /^(hf:\/\/)?[\w.-]+\/[\w.-]+$/.test(input) && !existsSync(path.dirname(input)))
    return `: a data set of the hub is ${HUB_DATASETS}${input.replace(HUB_PREFIX, "")}`;
  const areSeveral = input.includes(",") && input.split(",").some((name) => existsSync(name));
  return areSeveral ? ": several are separated by spaces, not by commas" : `.${didYouMeanPath(input)}`;
}

async function filesOf(input: string, hub: HubOptions, onNote?: OnNote): Promise<string[]> {
  if (input.startsWith(HUB_DATASETS)) return hubFiles(input.slice(HUB_DATASETS.length), hub);
  const stat = existsSync(input) ? statSync(input) : undefined;
  if (stat?.isDirectory()) return filesBelow(input, onNote);
  if (stat?.isFile()) return [path.resolve(input)];
  if (stat !== undefined)
    throw new UsageError(`${input} is a pipe or a device, but data is read twice: write it to a file`);
  return (await glob(input, { absolute: true, expandDirectories: false })).sort();
}

async function filesBelow(directory: string, onNote?: OnNote): Promise<string[]> {
  const all = await glob("**/*", { cwd: directory, absolute: true });
  const others = all.filter((file) => !READ_ENDINGS.includes(endingOf(file)));
  if (others.length > 0 && others.length < all.length) {
    const endings = [...new Set(others.map((file) => path.extname(file) || path.basename(file)))].sort();
    onNote?.(
      `${directory}: ${others.length} of ${all.length} files are left out by their names (${endings.slice(0, 5).join(", ")}${endings.length > 5 ? ", ..." : ""}); a glob takes files of any name`,
    );
  }
  return all
    .filter((file) => READ_ENDINGS.includes(endingOf(file)) && !DESCRIPTIONS.includes(path.basename(file)))
    .sort();
}

async function hubFiles(reference: string, hub: HubOptions): Promise<string[]> {
  const match = /^([\w.-]+\/[\w.-]+?)(?:@([\w.-]+))?(?:\/(.+))?$/.exec(reference);
  if (match === null)
    throw new UsageError(`${HUB_DATASETS}${reference} is not a data set (${HUB_DATASETS}organization/name)`);
  const [, repo = "", revision, pattern] = match;
  const patterns = pattern === undefined ? ["**/*.{parquet,jsonl,ndjson,csv,tsv,txt}{,.gz,.zst}"] : [pattern];
  const options = revision === undefined ? hub : { ...hub, revision };
  const { directory } = await downloadRepo("dataset", repo, { patterns }, options);
  return (await glob(patterns, { cwd: directory, absolute: true })).sort();
}

/** The approximate length of the parts of a long document; but for blanks the first is not shorter. */
const PART_CHARACTERS = 4096;
/** Lines longer than this are divided, at a space if there is one. */
const LONGEST_LINE = 2 ** 20;

/** A long document is yielded in parts that end at line ends, so that no file need fit in memory. */
async function* readText(
  file: string,
  chunks: AsyncIterable<string>,
  { separator }: DocumentOptions,
): AsyncGenerator<Document> {
  let rest = "";
  let inside = false; // whether the last part belongs to a document that has not ended
  const part = (text: string): Document => ({ text, continues: inside });
  try {
    for await (const chunk of chunks) {
      rest += chunk;
      for (let end = rest.indexOf(separator); end >= 0; end = rest.indexOf(separator)) {
        const text = rest.slice(0, end);
        if (text.trim() !== "") yield part(inside ? text.trimEnd() : text.trim());
        inside = false;
        rest = rest.slice(end + separator.length);
      }
      for (let cut = cutOf(rest, separator); cut !== undefined; cut = cutOf(rest, separator)) {
        yield part(inside ? rest.slice(0, cut) : rest.slice(0, cut).trimStart());
        inside = true;
        rest = rest.slice(cut);
      }
    }
  } catch (error) {
    throw readError(file, error);
  }
  if (rest.trim() !== "") yield part(inside ? rest.trimEnd() : rest.trim());
}

/** The length of the first part of a text that is long; undefined where it is not, or its end must be known first. */
function cutOf(text: string, separator: string, partCharacters = PART_CHARACTERS): number | undefined {
  if (text.length <= 2 * partCharacters) return undefined;
  const line = text.indexOf("\n", partCharacters);
  const isComplete = line >= 0 && line <= text.length - separator.length;
  return isComplete ? line + 1 : cutOfLine(text, separator);
}

/** Where to cut a text without line ends that has become too long: before a space, else between two characters. */
function cutOfLine(text: string, separator: string): number | undefined {
  if (text.length <= LONGEST_LINE + separator.length) return undefined;
  const space = text.lastIndexOf(" ", LONGEST_LINE);
  if (space > 0) return space;
  const isHalf = /[\ud800-\udbff]/.test(text.charAt(LONGEST_LINE - 1)); // of a character of two code units
  return isHalf ? LONGEST_LINE - 1 : LONGEST_LINE;
}

/** Rows longer than twice this are divided as well. Most are not, and so are encoded without cuts. */
const ROW_PART_CHARACTERS = 2 ** 16;

/** The text of a row, in parts that end at line ends: encoding takes hundreds of bytes for a character of a part. */
function* partsOf(text: string, said?: string): Generator<Document> {
  let rest = text;
  let continues = false;
  for (let cut = cutOf(rest, "", ROW_PART_CHARACTERS); cut !== undefined; cut = cutOf(rest, "", ROW_PART_CHARACTERS)) {
    yield { text: rest.slice(0, cut), continues, said };
    continues = true;
    rest = rest.slice(cut);
  }
  if (!continues || rest !== "") yield { text: rest, continues, said };
}

/** After this many rows, all without the field, it is considered missing. */
const MOST_ROWS_WITHOUT_FIELD = 100_000;

async function* readRecords(
  file: string,
  rows: AsyncIterable<Row>,
  { field }: DocumentOptions,
  onNote?: OnNote,
  template: () => ChatTemplate | undefined = () => undefined,
): AsyncGenerator<Document> {
  let [count, missing, empty, refused] = [0, 0, 0, 0];
  let refusal = ""; // of the first conversation that the template does not take
  let example: Row | undefined; // a row without the field
  const noTextError = (): FormatError =>
    new FormatError(
      `${example?.where ?? file} has no text in the field "${field}" (it has: ${fieldNames(example?.record)}), nor has any of the ${count} rows so far; name the field with --field`,
    );
  for await (const row of rows) {
    count++;
    const conversation = conversationOf(row.record, field);
    if (conversation !== undefined) {
      const chat = template();
      if (chat === undefined)
        throw new FormatError(
          `${row.where} is a conversation, but the model has no chat template; --field messages.content, or what the field is called, takes its texts`,
        );
      try {
        const said = conversation.flatMap(({ role, content }) => (role === "system" ? [] : [content])).join("\n");
        yield* partsOf(chat.render(conversation, { begunAnswer: false }), said);
      } catch (error) {
        if (!(error instanceof ConversationError)) throw error;
        if (refused === 0) refusal = `${row.where}: ${error.message}`;
        refused++;
      }
      continue;
    }
    const text = textIn(row.record, field, row.where);
    if (text === undefined) {
      example ??= row;
      if (++missing >= MOST_ROWS_WITHOUT_FIELD && missing === count) throw noTextError();
    } else if (text.trim() === "") empty++;
    else yield* partsOf(text);
  }
  if (count > 0 && missing === count) throw noTextError();
  if (count > 0 && refused === count) throw new FormatError(`${refusal} (nor any other of ${count})`);
  if (refused > 0) onNote?.(`${file}: ${refused} of ${count} conversations were left out, the first at ${refusal}`);
  if (missing + empty > 0)
    onNote?.(
      `${file}: ${missing + empty} of ${count} rows were left out: ${missing} without the field "${field}" or with null, ${empty} with empty text`,
    );
}
