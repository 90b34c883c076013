import { createReadStream } from "node:fs";
import { pipeline, Readable } from "node:stream";
import { createGunzip } from "node:zlib";
import { fileTypeFromBuffer } from "file-type";
import { Decompress } from "fzstd";
import { FormatError } from "../system/errors.js";

/** How text is encoded, as `TextDecoder` names it. */
type Encoding = "utf-8" | "utf-16le" | "utf-16be";

/** An open data file. Its first bytes determine what it is, whatever its name. */
export interface Content {
  /** Its first bytes, decompressed: at most {@link HEAD_BYTES}. */
  readonly head: Uint8Array;
  /** Whether the bytes on disk are compressed. */
  readonly compressed: boolean;
  /** Its bytes, decompressed. They can be read once. */
  readonly bytes: AsyncIterable<Uint8Array>;
  close(): void;
}

/** Enough to determine what a file is, and to see more than its first line. */
const HEAD_BYTES = 1 << 16;

/** How often a file may be compressed. */
const MOST_LAYERS = 3;

const startsWith = (bytes: Uint8Array, magic: string | readonly number[], at = 0): boolean =>
  [...magic].every((item, i) => bytes[at + i] === (typeof item === "string" ? item.charCodeAt(0) : item));

/** Opens a file, decompressing it if it is compressed with gzip or Zstandard. */
export async function openContent(file: string): Promise<Content> {
  const raw = createReadStream(file, { highWaterMark: 1 << 18 });
  const close = () => void raw.destroy();
  try {
    let content = await peek(raw);
    let layers = 0;
    for (let unpack = unpackerOf(file, content.head); unpack !== undefined; unpack = unpackerOf(file, content.head)) {
      if (++layers > MOST_LAYERS) throw new FormatError(`${file} is compressed more than ${MOST_LAYERS} times`);
      content = await peek(unpack(content.bytes));
    }
    return { ...content, compressed: layers > 0, close };
  } catch (error) {
    close();
    throw error;
  }
}

/** Reads the beginning of a stream of bytes, and returns it with the whole stream. */
async function peek(source: AsyncIterable<Uint8Array>): Promise<Pick<Content, "head" | "bytes">> {
  const iterator = source[Symbol.asyncIterator]();
  const chunks: Uint8Array[] = [];
  let length = 0;
  while (length < HEAD_BYTES) {
    const { value, done } = await iterator.next();
    if (done) break;
    chunks.push(value);
    length += value.length;
  }
  const read = Buffer.concat(chunks);
  async function* bytes(): AsyncGenerator<Uint8Array> {
    if (read.length > 0) yield read;
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) yield next.value;
  }
  return { head: read.subarray(0, HEAD_BYTES), bytes: bytes() };
}

type Unpack = (bytes: AsyncIterable<Uint8Array>) => AsyncIterable<Uint8Array>;

function unpackerOf(file: string, head: Uint8Array): Unpack | undefined {
  if (startsWith(head, [0x1f, 0x8b, 8])) return gunzip;
  if (startsWith(head, [0x28, 0xb5, 0x2f, 0xfd])) {
    checkWindow(file, head);
    return unzstd;
  }
  return undefined;
}

const gunzip: Unpack = (bytes) => pipeline(Readable.from(bytes), createGunzip(), () => {});

/** The limit of the `zstd` program without further options. */
const MOST_WINDOW_BYTES = 128 << 20;

/** Rejects a Zstandard frame that needs a large buffer (RFC 8878, section 3.1.1.1). */
function checkWindow(file: string, head: Uint8Array): void {
  const [, , , , descriptor, windowByte] = head;
  if (descriptor === undefined || windowByte === undefined) return; // the decompressor reports the truncated frame
  const singleSegment = (descriptor & 0x20) !== 0;
  if (singleSegment) return; // the window is the content, which the frame's writer also held in memory
  const [exponent, mantissa] = [windowByte >> 3, windowByte & 7];
  const window = 2 ** (10 + exponent) * (1 + mantissa / 8);
  if (window > MOST_WINDOW_BYTES)
    throw new FormatError(
      `${file} needs a window of ${window / 2 ** 20} MiB to be decompressed, more than ${MOST_WINDOW_BYTES / 2 ** 20}: compress it without --long or --ultra`,
    );
}

async function* unzstd(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let unpacked: Uint8Array[] = [];
  const decompress = new Decompress((chunk) => unpacked.push(chunk));
  for await (const chunk of bytes) {
    decompress.push(chunk);
    yield* unpacked;
    unpacked = [];
  }
  decompress.push(new Uint8Array(0), true); // throws if the last frame is truncated
  yield* unpacked;
}

export const isParquet = (head: Uint8Array): boolean => startsWith(head, "PAR1");

/** Files that are mistaken for data and are missing from common lists of magic numbers. */
const BINARIES: readonly { readonly matches: (head: Uint8Array) => boolean; readonly name: string }[] = [
  { matches: (head) => startsWith(head, "GGUF"), name: "a GGUF model" },
  {
    matches: (head) => startsWith(head, [0x7b, 0x22], 8) && head[7] === 0 && head[6] === 0,
    name: "a safetensors model",
  },
  { matches: (head) => startsWith(head, [0x93, ..."NUMPY"] as number[]), name: "a NumPy array" },
  { matches: (head) => head[0] === 0x80 && (head[1] ?? 9) <= 5, name: "a Python pickle" },
  { matches: (head) => startsWith(head, "\x89HDF"), name: "an HDF5 file" },
  { matches: (head) => startsWith(head, [255, 255, 255, 255]), name: "an Arrow stream: save it as Parquet" },
  { matches: (head) => startsWith(head, "ARROW1"), name: "an Arrow file: save it as Parquet" },
  { matches: (head) => startsWith(head, "ORC"), name: "an ORC file: save it as Parquet" },
];

/** What to do with some of the types that the library names. */
const ADVICE: Readonly<Record<string, string>> = {
  zip: "unpack it",
  tar: "unpack it",
  "7z": "unpack it",
  rar: "unpack it",
  xz: "unpack it, or compress it with gzip or zstd",
  bz2: "unpack it, or compress it with gzip or zstd",
  lz4: "unpack it, or compress it with gzip or zstd",
  docx: "save it as plain text",
  pptx: "save it as plain text",
  xlsx: "save it as CSV",
  odt: "save it as plain text",
  ods: "save it as CSV",
  epub: "save it as plain text",
  pdf: "extract its text",
  rtf: "save it as plain text",
  doc: "save it as plain text",
  cfb: "save it as plain text or CSV",
  avro: "save it as Parquet",
};

/** Types whose bytes are text, but markup for another program. */
const MARKED_UP = ["pdf", "rtf"];

/**
 * Detects how the text of a file is encoded.
 * @throws FormatError saying what the file is, when it is not text
 */
export async function encodingOf(file: string, head: Uint8Array): Promise<Encoding> {
  if (startsWith(head, [0xff, 0xfe, 0, 0]) || startsWith(head, [0, 0, 0xfe, 0xff]))
    throw new FormatError(`${file} is text in UTF-32: save it as UTF-8`);
  if (startsWith(head, [0xff, 0xfe])) return "utf-16le";
  if (startsWith(head, [0xfe, 0xff])) return "utf-16be";
  const known = BINARIES.find(({ matches }) => matches(head));
  if (known !== undefined) throw new FormatError(`${file} is ${known.name}, not text`);
  const type = await fileTypeFromBuffer(head).catch(() => undefined);
  const isBinary = head.includes(0) || damage(head) > MOST_DAMAGE;
  if (type !== undefined && (isBinary || MARKED_UP.includes(type.ext))) {
    const advice = ADVICE[type.ext];
    throw new FormatError(`${file} is not text but ${type.ext} (${type.mime})${advice ? `: ${advice}` : ""}`);
  }
  if (!isBinary) return "utf-8";
  const wide = wideEncoding(head);
  if (wide !== undefined) return wide;
  if (head.includes(0)) throw new FormatError(`${file} is not text: it has bytes of value 0`);
  throw new FormatError(
    `${file} is not text in UTF-8; if it is in another encoding, convert it, for example with iconv -f WINDOWS-1252 -t UTF-8`,
  );
}

/** Share of invalid characters above which a file is not considered UTF-8. */
const MOST_DAMAGE = 0.001;

/** Share of the characters that decode to replacement characters. */
function damage(head: Uint8Array): number {
  const text = new TextDecoder("utf-8").decode(head, { stream: true }); // the last character may be cut
  return replacements(text) / Math.max(1, text.length);
}

const replacements = (text: string): number => text.split("\ufffd").length - 1;

/** UTF-16 without a byte order mark: most high bytes of western text are 0, and few low bytes are. */
function wideEncoding(head: Uint8Array): Encoding | undefined {
  const pairs = Math.floor(head.length / 2);
  let [even, odd] = [0, 0];
  for (let i = 0; i < 2 * pairs; i += 2) {
    if (head[i] === 0) even++;
    if (head[i + 1] === 0) odd++;
  }
  if (odd > 0.3 * pairs && even < 0.02 * pairs) return "utf-16le";
  if (even > 0.3 * pairs && odd < 0.02 * pairs) return "utf-16be";
  return undefined;
}

/**
 * Decodes a file's bytes as text, without its byte order mark.
 * @param onDamaged called with the number of invalid characters, if there are any
 * @throws FormatError at a character of value 0
 */
export async function* decoded(
  file: string,
  { bytes }: Content,
  encoding: Encoding,
  onDamaged: (characters: number) => void = () => {},
): AsyncGenerator<string> {
  const decoder = new TextDecoder(encoding);
  let damaged = 0;
  let characters = 0;
  const checked = (text: string): string => {
    const zero = text.indexOf("\0");
    if (zero >= 0)
      throw new FormatError(`${file} has a character of value 0 at character ${characters + zero}: it is damaged`);
    characters += text.length;
    damaged += replacements(text);
    return text;
  };
  for await (const chunk of bytes) {
    const text = checked(decoder.decode(chunk, { stream: true }));
    if (text !== "") yield text;
  }
  const rest = checked(decoder.decode());
  if (rest !== "") yield rest;
  if (damaged > 0) onDamaged(damaged);
}
