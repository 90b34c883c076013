import { promisify } from "node:util";
import { brotliDecompress, gunzip, inflate, inflateRaw } from "node:zlib";
import { ZSTDDecoder } from "zstddec";
import { ApiError } from "./errors.js";

/** Bytes as they were before they were packed. @throws when they are more than so many (`ERR_BUFFER_TOO_LARGE`), or not packed so */
type Unpack = (bytes: Uint8Array, most: number) => Promise<Uint8Array>;

const [gunzipped, inflated, inflatedRaw, brotlied] = [gunzip, inflate, inflateRaw, brotliDecompress].map(
  (unpack): Unpack => {
    const run = promisify(unpack) as (bytes: Uint8Array, options: object) => Promise<Uint8Array>;
    return (bytes, most) => run(bytes, { maxOutputLength: most });
  },
) as [Unpack, Unpack, Unpack, Unpack];

const UNPACK: Readonly<Record<string, Unpack>> = {
  identity: async (bytes) => bytes,
  gzip: gunzipped,
  "x-gzip": gunzipped,
  // RFC 9110 means zlib's form; some send what is in it bare
  deflate: (bytes, most) => (((bytes[0] ?? 0) & 0x0f) === 8 ? inflated : inflatedRaw)(bytes, most),
  br: brotlied,
  zstd: unzstd,
};

/** Memory of the decoder is not given back. */
const MOST_ZSTD_BYTES = 64 << 20;
const zstd = new ZSTDDecoder();

async function unzstd(bytes: Uint8Array, limit: number): Promise<Uint8Array> {
  const most = Math.min(limit, MOST_ZSTD_BYTES);
  const declared = zstdContentSize(bytes);
  if (declared === 0) return new Uint8Array();
  if (declared !== undefined && declared > most) throw tooLarge();
  await zstd.init();
  const unpacked = zstd.decode(bytes, declared ?? most);
  if (unpacked.length > 0) return unpacked;
  throw declared === undefined ? tooLarge() : new Error("corrupt data");
}

/** The size that the first frame declares, undefined where it does not (RFC 8878, section 3.1.1.1). */
function zstdContentSize(bytes: Uint8Array): number | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(0, true) !== 0xfd2fb528) throw new Error("no frame");
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
 * The bytes of a request's body, unpacked.
 * @param most bytes that it may have, packed and unpacked
 * @throws ApiError 400 for what is not packed as it says, 408 when it does not come whole, 413 for too much, 415 for a packing unknown here
 */
export async function readBody(
  body: ReadableStream<Uint8Array> | null,
  { encoding, length }: BodyHeaders,
  most: number,
): Promise<Uint8Array> {
  if (Number(length ?? 0) > most) throw refusedFor(most); // before it comes
  const codings = (encoding ?? "")
    .toLowerCase()
    .split(",")
    .map((one) => one.trim())
    .filter((one) => one !== "");
  const unknown = codings.find((one) => !Object.hasOwn(UNPACK, one));
  if (unknown !== undefined || codings.length > 2)
    throw new ApiError(415, `a body cannot come packed as ${encoding}: ${Object.keys(UNPACK).join(", ")}`, {
      code: "unsupported_encoding",
    });
  let bytes = await wholeOf(body, most);
  for (const coding of codings.reverse()) {
    try {
      bytes = (await UNPACK[coding]?.(bytes, most)) ?? bytes;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") throw refusedFor(most);
      throw new ApiError(400, `the body is not packed as ${coding}`, { code: "invalid_encoding" });
    }
  }
  return bytes;
}

const refusedFor = (most: number): ApiError => new ApiError(413, `the body has more than ${most} bytes`);

async function wholeOf(body: ReadableStream<Uint8Array> | null, most: number): Promise<Uint8Array> {
  if (body === null) return new Uint8Array();
  const [parts, reader]: [Uint8Array[], ReturnType<typeof body.getReader>] = [[], body.getReader()];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw new ApiError(408, "the body did not come whole");
    });
    if (done) return Buffer.concat(parts);
    size += value.length;
    if (size > most) throw refusedFor(most);
    parts.push(value);
  }
}
