import { type Readable, Transform } from "node:stream";
import { ChatTemplate, DOCUMENT_DEFAULTS, readDocuments } from "../data/index.js";
import { ApiError } from "../serve/errors.js";
import { CoppiceError } from "../system/errors.js";
import type { FoundryServices } from "./api/route.js";
import type { Queryable } from "./database.js";
import type { StoredFile } from "./storage.js";
import { TooManyBytes } from "./store/library.js";

/** Formats of uploads, told apart by how they begin. */
export type UploadFormat = "text" | "gzip" | "parquet" | "safetensors" | "gguf" | "json";

/** How many bytes decide on the format. */
const SNIFFED_BYTES = 64;

/** @throws ApiError 400 when the first bytes are not of the format that the name promises, or are those of a pickle */
function checkBeginning(bytes: Buffer, format: UploadFormat, name: string): void {
  const refusal = (what: string) => new ApiError(400, `${name} ${what}`, { param: "name", code: "invalid_file" });
  const magic = bytes.subarray(0, 4).toString("latin1");
  const isPickle = bytes[0] === 0x80 && (bytes[1] ?? 0) <= 5;
  if (isPickle || magic === "PK\u0003\u0004")
    throw refusal("is a pickle or an archive, which can run code when it is read: send safetensors or GGUF");
  if (format === "gguf" && magic !== "GGUF") throw refusal("is not a GGUF file");
  if (format === "parquet" && magic !== "PAR1") throw refusal("is not a Parquet file");
  if (format === "gzip" && !(bytes[0] === 0x1f && bytes[1] === 0x8b)) throw refusal("is not compressed with gzip");
  if (format === "safetensors" && (bytes.length < 9 || bytes[8] !== 0x7b || bytes.readBigUInt64LE(0) > 100_000_000n))
    throw refusal("is not a safetensors file");
  if (format === "text" || format === "json") {
    if (bytes.includes(0)) throw refusal("is not text: it has bytes of value 0");
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(bytes, { stream: true }); // the last character may be cut off
    } catch {
      throw refusal("is not text in UTF-8");
    }
  }
}

export interface UploadOptions {
  readonly tenant: string;
  readonly key: string;
  /** The file's name, for messages. */
  readonly name: string;
  readonly format: UploadFormat;
  /** Starts to read the upload. */
  readonly content: () => Readable;
  /** The service's own limit applies as well. */
  readonly maxBytes?: number | undefined;
  /** Called when all of it has arrived, before it is stored. @throws ApiError when it is not wanted any more */
  readonly onArrived?: (() => Promise<void>) | undefined;
  /** The size of the file that it takes the place of. */
  readonly replacedBytes?: number | undefined;
  /** Called when it is stored. @throws ApiError when it is not usable */
  readonly onStored?: (() => Promise<void>) | undefined;
  /** Called when it was stored, in the place of another where there was one, and had to be deleted. */
  readonly onDeleted?: (() => Promise<void>) | undefined;
}

/**
 * Stores an upload, if it has the format that its name promises and is not too large.
 * @param add makes it known in a transaction; what does not become known is deleted
 * @throws ApiError 400 for another format, 403 beyond the tenant's quota, 408 when it breaks off, 413 beyond the limit of one upload
 */
export async function storeUpload<T>(
  services: FoundryServices,
  upload: UploadOptions,
  add: (stored: StoredFile, client: Queryable) => Promise<T>,
): Promise<T> {
  const { storage, tenants, library, maxUploadBytes } = services;
  const { tenant, key, name, content, replacedBytes = 0 } = upload;
  const { max_bytes: quotaBytes } = await tenants.quota(tenant);
  const freeBytes = async () =>
    quotaBytes === null ? Number.POSITIVE_INFINITY : quotaBytes - (await library.bytesOf(tenant)) + replacedBytes;
  const maxBytes = Math.min(upload.maxBytes ?? maxUploadBytes, maxUploadBytes);
  const checkQuota = (bytes: number, free: number) => {
    if (quotaBytes !== null && bytes > free) throw quotaError(new TooManyBytes(quotaBytes));
  };
  const freeAtStart = await freeBytes();
  const checked = checkingStream(upload, {
    checkSize: (bytes) => {
      if (bytes > maxBytes) throw new ApiError(413, `${name} has more than ${maxBytes} bytes`);
      checkQuota(bytes, freeAtStart);
    },
    onArrived: async (bytes) => {
      checkQuota(bytes, await freeBytes()); // other uploads have ended since
      await upload.onArrived?.();
    },
  });
  // only now: a stream that ends before anybody listens does not report it later
  const source = content();
  const fail = (error?: unknown) =>
    checked.destroy(error instanceof ApiError ? error : new ApiError(408, "the upload is incomplete"));
  source.on("error", fail);
  source.on("close", () => source.readableEnded || fail());
  const stored = await storage.put(key, source.pipe(checked));
  try {
    await upload.onStored?.();
    return await library.withinBytes(tenant, quotaBytes, (client) => add(stored, client));
  } catch (error) {
    await storage.remove(key);
    await upload.onDeleted?.();
    throw error instanceof TooManyBytes ? quotaError(error) : error;
  }
}

const quotaError = ({ message }: TooManyBytes): ApiError => new ApiError(403, message, { code: "quota_exceeded" });

/** Passes an upload through, and fails when it is empty, too large or of another format. */
function checkingStream(
  { name, format }: Pick<UploadOptions, "name" | "format">,
  { checkSize, onArrived }: { checkSize: (bytes: number) => void; onArrived: (bytes: number) => Promise<void> },
): Transform {
  let bytes = 0;
  /** The first bytes, until they have been checked. */
  let beginning: Buffer | undefined = Buffer.alloc(0);
  const check = (chunk: Buffer): void => {
    bytes += chunk.length;
    checkSize(bytes);
    if (beginning === undefined) return;
    beginning = Buffer.concat([beginning, chunk]);
    if (beginning.length < SNIFFED_BYTES) return;
    checkBeginning(beginning, format, name);
    beginning = undefined;
  };
  const checkEnd = (): void => {
    if (bytes === 0) throw new ApiError(400, `${name} is empty`, { param: "name", code: "invalid_file" });
    if (beginning !== undefined) checkBeginning(beginning, format, name);
  };
  return new Transform({
    transform: (chunk: Buffer, _, done) =>
      done(
        errorOf(() => check(chunk)),
        chunk,
      ),
    flush: (done) => {
      const error = errorOf(checkEnd);
      if (error !== null) done(error);
      else onArrived(bytes).then(() => done(), done);
    },
  });
}

function errorOf(check: () => void): Error | null {
  try {
    check();
    return null;
  } catch (error) {
    return error as Error;
  }
}

/** How many documents of a new data set are read to check it. */
const CHECKED_DOCUMENTS = 3;
const DATASET_FORMATS: Readonly<Record<string, UploadFormat>> = {
  ".txt": "text",
  ".jsonl": "text",
  ".json": "text",
  ".parquet": "parquet",
  ".txt.gz": "gzip",
  ".jsonl.gz": "gzip",
};

/** The extension of a data set's name, and the format it promises. @throws ApiError 400 for other extensions */
export function datasetFormat(name: string): { readonly extension: string; readonly format: UploadFormat } {
  const extension = /\.(?:txt|jsonl|json|parquet)(?:\.gz)?$/.exec(name.toLowerCase())?.[0] ?? "";
  const format = DATASET_FORMATS[extension];
  if (format === undefined)
    throw new ApiError(
      400,
      `a data set is a .txt, .jsonl, .json or .parquet file, or .txt.gz or .jsonl.gz, not "${name}"`,
      { param: "name" },
    );
  return { extension, format };
}

/** Stands for the templates of the models that conversations will be read with. */
const ANY_TEMPLATE = new ChatTemplate(
  "{% for message in messages %}{{ message.content }}{% endfor %}",
  { bos: "", eos: "" },
  "any model",
);

/** @throws ApiError 400 when the file has no documents or cannot be read */
export async function checkDocuments(file: string): Promise<void> {
  let count = 0;
  try {
    const documents = readDocuments(file, DOCUMENT_DEFAULTS, undefined, () => ANY_TEMPLATE);
    for await (const _ of documents) if (++count >= CHECKED_DOCUMENTS) break;
  } catch (error) {
    if (!(error instanceof CoppiceError)) throw new ApiError(400, "the data cannot be read", { code: "invalid_file" });
    throw new ApiError(400, error.message.replaceAll(file, "the data"), { code: "invalid_file" });
  }
  if (count === 0) throw new ApiError(400, "the data set has no documents", { code: "invalid_file" });
}
