import { promisify } from "node:util";
import { brotliDecompress, gunzip, inflate, inflateRaw } from "node:zlib";
import { ZSTDDecoder } from "zstddec";
import { ApiError } from "./errors.js";

/** Decompresses bytes. @throws when there are more than `limit` (`ERR_BUFFER_TOO_LARGE`), or the bytes are invalid */
type Decompress = (bytes: Uint8Array, limit: number) => Promise<Uint8Array>;

const [fromGzip, fromDeflate, fromRawDeflate, fromBrotli] = [gunzip, inflate, inflateRaw, brotliDecompress].map(
  (decompress): Decompress => {
    const run = promisify(decompress) as (bytes: Uint8Array, options: object) => Promise<Uint8Array>;
    return (bytes, limit) => run(bytes, { maxOutputLength: limit });
  },
) as [Decompress, Decompress, Decompress, Decompress];

const DECOMPRESS: Readonly<Record<string, Decompress>> = {
  identity: async (bytes) => bytes,
  gzip: fromGzip,
  "x-gzip": fromGzip,
  // RFC 9110 means zlib's format; some clients send the bare deflate stream
  deflate: (bytes, limit) => (((bytes[0] ?? 0) & 0x0f) === 8 ? fromDeflate : fromRawDeflate)(bytes, limit),
  br: fromBrotli,
  zstd: fromZstd,
};

/** The decoder never frees its memory. */
const MAX_ZSTD_BYTES = 64 << 20;
const zstd = new ZSTDDecoder();

async function fromZstd(bytes: Uint8Array, bodyLimit: number): Promise<Uint8Array> {
  const limit = Math.min(bodyLimit, MAX_ZSTD_BYTES);
  const declared = zstdContentSize(bytes);
  if (declared === 0) return new Uint8Array();
  if (declared !== undefined && declared > limit) throw tooLarge();
  await zstd.init();
  const decoded = zstd.decode(bytes, declared ?? limit);
  if (decoded.length > 0) return decoded;
  throw declared === undefined ? tooLarge() : new Error("corrupt data");
}

/** The size that the first frame declares, undefined where it does not (RFC 8878, section 3.1.1.1). */
function zstdContentSize(bytes: Uint8Array): number | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(0, true) !== 0xfd2fb528) throw new Error("not a Zstandard frame");
  const descriptor = view.getUint8(4);
  const [sizeFlag, single, dictionary] = [descriptor >> 6, (descriptor >> 5) & 1, descriptor & 3];
  const at = 6 - single + (dictionary === 3 ? 4 : dictionary);
  switch (sizeFlag) {
    case 0:
      return single === 1 ? view.getUint8(at) : undefined;
    case 1:
      return view.getUint16(at, true) + 256;
    case 2:
      return view.getUint32(at, true);
    default:
      return Number(view.getBigUint64(at, true));
  }
}

const tooLarge = (): Error => Object.assign(new Error("too large"), { code: "ERR_BUFFER_TOO_LARGE" });

export interface BodyHeaders {
  /** Content-Encoding. */
  readonly encoding: string | undefined;
  /** Content-Length. */
  readonly length: string | undefined;
}

/**
 * Reads and decompresses a request's body.
 * @param limit bytes that it may have, before and after
 * @throws ApiError 400 for a body that cannot be decompressed, 408 for one that does not arrive completely, 413 for one that is too large,
 *   415 for an unknown encoding
 */
export async function readBody(
  body: ReadableStream<Uint8Array> | null,
  { encoding, length }: BodyHeaders,
  limit: number,
): Promise<Uint8Array> {
  if (Number(length ?? 0) > limit) throw tooManyBytes(limit); // before it arrives
  const codings = (encoding ?? "")
    .toLowerCase()
    .split(",")
    .map((coding) => coding.trim())
    .filter((coding) => coding !== "");
  const unknown = codings.find((coding) => !Object.hasOwn(DECOMPRESS, coding));
  if (unknown !== undefined || codings.length > 2)
    throw new ApiError(
      415,
      `the content encoding ${encoding} is not supported: use one or two of ${Object.keys(DECOMPRESS).join(", ")}`,
      {
        code: "unsupported_encoding",
      },
    );
  let bytes = await readAll(body, limit);
  for (const coding of codings.reverse()) {
    try {
      bytes = (await DECOMPRESS[coding]?.(bytes, limit)) ?? bytes;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") throw tooManyBytes(limit);
      throw new ApiError(400, `the body is not encoded as ${coding}`, { code: "invalid_encoding" });
    }
  }
  return bytes;
}

const tooManyBytes = (limit: number): ApiError => new ApiError(413, `the body has more than ${limit} bytes`);

async function readAll(body: ReadableStream<Uint8Array> | null, limit: number): Promise<Uint8Array> {
  if (body === null) return new Uint8Array();
  const [parts, reader]: [Uint8Array[], ReturnType<typeof body.getReader>] = [[], body.getReader()];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw new ApiError(408, "the body did not arrive completely");
    });
    if (done) return Buffer.concat(parts);
    size += value.length;
    if (size > limit) throw tooManyBytes(limit);
    parts.push(value);
  }
}
