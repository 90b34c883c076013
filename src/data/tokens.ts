import { existsSync, mkdirSync, readFileSync, rmSync, statSync } from "node:fs";
import path from "node:path";
import type { HubOptions } from "../checkpoint/hub.js";
import { CoppiceError, FormatError, UsageError } from "../system/errors.js";
import { cacheDirectory, hashBytes, moveIntoPlace, temporaryBeside, writeJson } from "../system/files.js";
import { contentIdentity } from "../system/identity.js";
import { logOf } from "../system/log.js";
import { type MappedFile, mapFile } from "../system/mapped-file.js";
import { removeAbandonedCopies } from "../system/scratch.js";
import type { ChatTemplate } from "./chat-template.js";
import { DocumentWriter, SHARD_TOKENS, ShardWriter, separatorOf } from "./document-writer.js";
import {
  DOCUMENT_DEFAULTS,
  type Document,
  type DocumentOptions,
  findDataFiles,
  type OnNote,
  readDocuments,
} from "./documents.js";
import { endingOf } from "./rows.js";
import type { Tokenizer } from "./tokenizer.js";

const log = logOf("data");

/** Increased when the same data would give other shards. */
const FORMAT = 7;

/** The content of a token stream. */
interface StreamContent {
  readonly shards: readonly MappedFile[];
  readonly bytesPerToken: 2 | 4;
  readonly length: number;
  readonly largestId: number;
  readonly id: string;
  /** Where in the shards the stream begins, in tokens. */
  readonly first: number;
  readonly beginToken: number | undefined;
}

/** A long sequence of token ids, in memory-mapped shards of 16 or 32 bits per token. */
export class TokenStream {
  readonly length: number;
  /** The largest id in it. */
  readonly largestId: number;
  /** Identifies the content: equal ids mean equal tokens. */
  readonly id: string;
  /** The token that replaces the first of every sequence of the stream. */
  readonly beginToken: number | undefined;

  private constructor(private readonly content: StreamContent) {
    this.length = content.length;
    this.largestId = content.largestId;
    this.id = content.id;
    this.beginToken = content.beginToken;
  }

  /** Opens the shards that `part` describes. @throws FormatError when they do not have its length */
  static open(directory: string, part: StreamFiles, bytesPerToken: 2 | 4, id: string): TokenStream {
    const shards = part.files.map((name) => mapFile(path.join(directory, name)));
    const stored = shards.reduce((sum, shard) => sum + shard.byteLength, 0) / bytesPerToken;
    if (stored !== part.length)
      throw new FormatError(`${directory}: ${stored} tokens are stored, ${part.length} were expected; delete it`);
    const { length, largestId } = part;
    return new TokenStream({ shards, bytesPerToken, length, largestId, id, first: 0, beginToken: undefined });
  }

  /** A stream held in memory. @param id identifies the content: equal ids mean equal tokens */
  static of(ids: ArrayLike<number>, id: string): TokenStream {
    const words = Uint32Array.from(ids);
    const shard: MappedFile = {
      path: id,
      byteLength: words.byteLength,
      bytes: (offset, length) => new Uint8Array(words.buffer, offset, length),
      release: () => {},
      close: () => {},
    };
    const { length } = words;
    const largestId = words.reduce((a, b) => Math.max(a, b), 0);
    return new TokenStream({
      shards: [shard],
      bytesPerToken: 4,
      length,
      largestId,
      id,
      first: 0,
      beginToken: undefined,
    });
  }

  /** The tokens [from, to) as a stream of their own. */
  part(from: number, to: number): TokenStream {
    if (from < 0 || from > to || to > this.length)
      throw new CoppiceError(`tokens ${from} to ${to} lie outside the ${this.length} there are`);
    const id = `${this.id} ${from}-${to}`;
    return new TokenStream({ ...this.content, id, length: to - from, first: this.content.first + from });
  }

  /** The same tokens, for sequences that each begin with `token`. */
  beginningWith(token: number): TokenStream {
    const id = `${this.id} begin ${token}`;
    const largestId = Math.max(this.largestId, token);
    return new TokenStream({ ...this.content, id, largestId, beginToken: token });
  }

  /** Copies `count` ids from position `start` into `target` at `offset`. */
  copy(start: number, count: number, target: Int32Array, offset: number): void {
    if (start < 0 || start + count > this.length)
      throw new CoppiceError(`tokens ${start} to ${start + count} lie outside the ${this.length} there are`);
    const { shards, bytesPerToken, first } = this.content;
    let done = 0;
    while (done < count) {
      const at = first + start + done;
      const shard = shards[Math.floor(at / SHARD_TOKENS)] as MappedFile;
      const within = at % SHARD_TOKENS;
      const take = Math.min(count - done, SHARD_TOKENS - within);
      const bytes = shard.bytes(within * bytesPerToken, take * bytesPerToken);
      const view =
        bytesPerToken === 2
          ? new Uint16Array(bytes.buffer, bytes.byteOffset, take)
          : new Uint32Array(bytes.buffer, bytes.byteOffset, take);
      target.set(view, offset + done);
      done += take;
    }
  }
}

export interface CorpusOptions extends Partial<DocumentOptions> {
  /** Share of the documents held out for validation, chosen by a hash of their text; 0 by default. */
  readonly heldOutShare?: number | undefined;
  /** COPPICE_CACHE, or ~/.cache/coppice. */
  readonly cacheDir?: string | undefined;
  readonly hub?: HubOptions | undefined;
  /** Called while new data is tokenized. */
  readonly onProgress?:
    | ((progress: { readonly tokens: number; readonly bytes: number; readonly totalBytes: number }) => void)
    | undefined;
  /** Stops while new data is tokenized. */
  readonly signal?: AbortSignal | undefined;
  /** Called with notes from reading the data, for example how many rows were left out. */
  readonly onNote?: OnNote | undefined;
}

/** A tokenized corpus. */
export interface Corpus {
  readonly train: TokenStream;
  /** The held-out documents; empty unless a share was requested. */
  readonly heldOut: TokenStream;
  readonly files: readonly string[];
  /** How many documents are conversations, in the form of the model's chat template. */
  readonly conversations: number;
}

/** One of the two streams of a corpus on disk. */
export interface StreamFiles {
  /** Names in the corpus's directory, in order. */
  readonly files: readonly string[];
  /** In tokens. */
  readonly length: number;
  readonly largestId: number;
}

/** The content of the shards' index file. */
interface Index {
  readonly bytesPerToken: 2 | 4;
  readonly train: StreamFiles;
  readonly heldOut: StreamFiles;
  readonly conversations: number;
  /** Notes from reading the data. */
  readonly notes: readonly string[];
}

/**
 * Tokenizes data once: the shards are cached under a key of the files' contents, the tokenizer and the options. A corpus may be larger
 * than memory.
 */
export async function openCorpus(
  inputs: readonly string[],
  tokenizer: Tokenizer,
  options: CorpusOptions = {},
): Promise<Corpus> {
  if (options.separator === "") throw new UsageError("the separator of documents cannot be empty");
  const reading: DocumentOptions = {
    field: options.field ?? DOCUMENT_DEFAULTS.field,
    separator: options.separator ?? DOCUMENT_DEFAULTS.separator,
  };
  const heldOutShare = options.heldOutShare ?? 0;
  const cache = cacheDirectory(options.cacheDir);
  const files = await findDataFiles(inputs, options.hub, options.onNote);
  const contents = [];
  for (const file of files) contents.push([await contentIdentity(file, cache), endingOf(file)]);
  const { hash, chatTemplateSource, bos, eos } = tokenizer;
  const template = [chatTemplateSource, bos?.text, eos?.text]; // templates write the two
  const identity = [FORMAT, hash, template, separatorOf(tokenizer), reading, heldOutShare, contents];
  const key = hashBytes(JSON.stringify(identity)).slice(0, 32);
  const directory = path.join(cache, "tokens", key);
  const isCached = existsSync(path.join(directory, "index.json"));
  log.debug(isCached ? "tokens cached" : "tokens not cached", { files, directory });
  if (!isCached) {
    const { onProgress, signal } = options;
    await tokenize(directory, { files, tokenizer, reading, heldOutShare, onProgress, signal });
  }
  const index = JSON.parse(readFileSync(path.join(directory, "index.json"), "utf8")) as Index;
  log.debug("tokens opened", { train: index.train.length, heldOut: index.heldOut.length });
  for (const note of index.notes) options.onNote?.(note);
  const stream = (part: "train" | "heldOut"): TokenStream =>
    TokenStream.open(directory, index[part], index.bytesPerToken, `${key}-${part}`);
  return { train: stream("train"), heldOut: stream("heldOut"), files, conversations: index.conversations };
}

/** Files of which about as many bytes have been read as their documents have. */
const UNCOMPRESSED = /\.(txt|md|json|jsonl|csv|tsv)$/i;

/** Texts are encoded in batches of about this many characters, or of this many texts. */
const BATCH_CHARACTERS = 1 << 20;
const BATCH_TEXTS = 8192;

interface TokenizeJob {
  readonly files: readonly string[];
  readonly tokenizer: Tokenizer;
  readonly reading: DocumentOptions;
  readonly heldOutShare: number;
  readonly onProgress: CorpusOptions["onProgress"];
  readonly signal: AbortSignal | undefined;
}

/** Writes the shards of a corpus to a directory, atomically. */
async function tokenize(
  directory: string,
  { files, tokenizer, reading, heldOutShare, onProgress, signal }: TokenizeJob,
): Promise<void> {
  removeAbandonedCopies(directory);
  const temporary = temporaryBeside(directory);
  mkdirSync(temporary, { recursive: true });
  const bytesPerToken = tokenizer.vocabSize <= 2 ** 16 ? 2 : 4;
  const train = new ShardWriter(temporary, "train", bytesPerToken);
  const heldOut = new ShardWriter(temporary, "held-out", bytesPerToken);
  const totalBytes = files.reduce((sum, file) => sum + statSync(file).size, 0);
  let [bytesBefore, bytesRead] = [0, 0];
  const notes: string[] = [];
  const template = once(() => tokenizer.chatTemplate());
  const mark = once(() => markOf(template));
  let conversations = 0;
  try {
    let batch: Document[] = [];
    let characters = 0;
    const isHeldOut = holdingOut(heldOutShare);
    const documents = new DocumentWriter(tokenizer, (document) => (isHeldOut(document) ? heldOut : train));
    const flush = async (): Promise<void> => {
      signal?.throwIfAborted();
      await documents.write(batch);
      batch = [];
      characters = 0;
      onProgress?.({ tokens: train.length + heldOut.length, bytes: bytesBefore + bytesRead, totalBytes });
    };
    for (const file of files) {
      const { size } = statSync(file);
      const isText = UNCOMPRESSED.test(file);
      for await (const document of readDocuments(file, reading, (note) => notes.push(note), template)) {
        batch.push(document);
        if (!document.continues && isConversation(document, mark)) conversations++;
        characters += document.text.length;
        if (isText) bytesRead = Math.min(size, bytesRead + Buffer.byteLength(document.text));
        if (characters >= BATCH_CHARACTERS || batch.length >= BATCH_TEXTS) await flush();
      }
      bytesBefore += size;
      bytesRead = 0;
    }
    await flush();
    documents.end();
    train.close();
    heldOut.close();
    const part = ({ files: names, length, largestId }: ShardWriter): StreamFiles => ({
      files: names,
      length,
      largestId,
    });
    writeJson(path.join(temporary, "index.json"), {
      bytesPerToken,
      train: part(train),
      heldOut: part(heldOut),
      conversations,
      notes: summary(notes),
    } satisfies Index);
    if (existsSync(directory)) rmSync(temporary, { recursive: true });
    else moveIntoPlace(temporary, directory);
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true });
    throw error;
  }
}

/** The value that a function gives, which is asked once. */
function once<T>(make: () => T): () => T {
  let made: { readonly value: T } | undefined;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}

/** What stands before answers in texts of a model's conversations. */
function markOf(template: () => ChatTemplate | undefined): string | undefined {
  try {
    return template()?.beforeAnswers;
  } catch {
    return undefined; // a template that cannot be read matters to conversations only
  }
}

/** Whether a document is one, or has the form of one already. */
function isConversation({ text, said }: Document, mark: () => string | undefined): boolean {
  if (said !== undefined) return true;
  const before = mark();
  return before !== undefined && text.includes(before);
}

/** Notes that are kept; more are only counted. */
const MOST_NOTES = 10;

const summary = (notes: readonly string[]): string[] =>
  notes.length <= MOST_NOTES
    ? [...notes]
    : [...notes.slice(0, MOST_NOTES), `and ${notes.length - MOST_NOTES} more notes of this kind about other files`];

/** So many characters of a document say whether it is held out: fewer than its first part has. */
const TELLING_CHARACTERS = 2048;

/**
 * Which documents are held out: chosen by their beginnings, so that copies of one never fall on both sides, and that parts of a long one
 * follow its first, wherever it is divided. Ask for them in order.
 */
function holdingOut(share: number): (document: Document) => boolean {
  let isHeldOut = false;
  return ({ text, continues, said = text }) => {
    if (!continues)
      isHeldOut = Number.parseInt(hashBytes(said.slice(0, TELLING_CHARACTERS)).slice(0, 8), 16) / 2 ** 32 < share;
    return isHeldOut;
  };
}
