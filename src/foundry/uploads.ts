import { type Readable, Transform } from "node:stream";
import { DOCUMENT_DEFAULTS, readDocuments } from "../data/index.js";
import { ApiError } from "../serve/errors.js";
import { CoppiceError } from "../system/errors.js";
import type { FoundryServices } from "./api/route.js";
import type { StoredFile } from "./storage.js";

/** What an upload may begin with. */
export type UploadForm = "text" | "gzip" | "parquet" | "safetensors" | "gguf" | "json";

const SNIFFED_BYTES = 64;

/** @throws ApiError 400 for what is not of the form that its name says; pickles among them */
function checkBeginning(bytes: Buffer, form: UploadForm, name: string): void {
  const refuse = (what: string) => new ApiError(400, `${name} ${what}`, { param: "name", code: "invalid_file" });
  const magic = bytes.subarray(0, 4).toString("latin1");
  const isPickle = bytes[0] === 0x80 && (bytes[1] ?? 0) <= 5;
  if (isPickle || magic === "PK\u0003\u0004")
    throw refuse("is a pickle or an archive, which could run code when it is read: send safetensors or GGUF");
  if (form === "gguf" && magic !== "GGUF") throw refuse("is no GGUF file");
  if (form === "parquet" && magic !== "PAR1") throw refuse("is no Parquet file");
  if (form === "gzip" && !(bytes[0] === 0x1f && bytes[1] === 0x8b)) throw refuse("is not compressed by gzip");
  if (form === "safetensors" && (bytes.length < 9 || bytes[8] !== 0x7b || bytes.readBigUInt64LE(0) > 100_000_000n))
    throw refuse("is no safetensors file");
  if (form === "text" || form === "json") {
    if (bytes.includes(0)) throw refuse("has bytes of value 0: it is no text");
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(bytes, { stream: true }); // the last letter may be cut
    } catch {
      throw refuse("is no text in UTF-8");
    }
  }
}

/**
 * Stores what a client sends, if it is of the form that its name says and not more than is allowed.
 * @throws ApiError 400, 403 for more than the tenant may keep, 413 for more than one upload may have
 */
export async function storeUpload(
  services: FoundryServices,
  {
    tenant,
    key,
    name,
    form,
    content,
    most = services.maxUploadBytes,
  }: {
    tenant: string;
    key: string;
    name: string;
    form: UploadForm;
    /** Begins to read what comes. */
    content: () => Readable;
    most?: number | undefined;
  },
): Promise<StoredFile> {
  const { storage, tenants, library } = services;
  const { max_bytes: quota } = await tenants.quota(tenant);
  const left = quota === null ? Number.POSITIVE_INFINITY : quota - (await library.bytesOf(tenant));
  let bytes = 0;
  let beginning: Buffer | undefined = Buffer.alloc(0);
  const checked = new Transform({
    transform(chunk: Buffer, _, done) {
      bytes += chunk.length;
      if (bytes > most) return done(new ApiError(413, `${name} has more than ${most} bytes`));
      if (bytes > left)
        return done(
          new ApiError(403, `${quota} bytes may be kept here: delete something first`, { code: "quota_exceeded" }),
        );
      if (beginning !== undefined) {
        beginning = Buffer.concat([beginning, chunk]);
        if (beginning.length >= SNIFFED_BYTES) {
          try {
            checkBeginning(beginning, form, name);
          } catch (error) {
            return done(error as Error);
          }
          beginning = undefined;
        }
      }
      done(null, chunk);
    },
    flush(done) {
      try {
        if (bytes === 0) throw new ApiError(400, `${name} is empty`, { param: "name", code: "invalid_file" });
        if (beginning !== undefined) checkBeginning(beginning, form, name);
        done();
      } catch (error) {
        done(error as Error);
      }
    },
  });
  // a stream that has ended before it is listened to says nothing more: it is opened only here
  const source = content();
  const broken = (error?: unknown) =>
    checked.destroy(error instanceof ApiError ? error : new ApiError(408, "the upload did not come whole"));
  source.on("error", broken);
  source.on("close", () => source.readableEnded || broken());
  return storage.put(key, source.pipe(checked));
}

/** Documents that are read of a new data set, to see whether it is one. */
const TRIED_DOCUMENTS = 3;
const DOCUMENT_ENDINGS: Readonly<Record<string, UploadForm>> = {
  ...{ ".txt": "text", ".jsonl": "text", ".json": "text", ".parquet": "parquet" },
  ...{ ".txt.gz": "gzip", ".jsonl.gz": "gzip" },
};

/** The ending of a data set's name, and what it must be. @throws ApiError 400 for others */
export function dataForm(name: string): { readonly ending: string; readonly form: UploadForm } {
  const ending = /\.(?:txt|jsonl|json|parquet)(?:\.gz)?$/.exec(name.toLowerCase())?.[0] ?? "";
  const form = DOCUMENT_ENDINGS[ending];
  if (form === undefined)
    throw new ApiError(400, `data are .txt, .jsonl, .json or .parquet, also .txt.gz and .jsonl.gz, not "${name}"`, {
      param: "name",
    });
  return { ending, form };
}

/** @throws ApiError 400 for what has no documents */
export async function checkDocuments(file: string): Promise<void> {
  let count = 0;
  try {
    for await (const _ of readDocuments(file, DOCUMENT_DEFAULTS)) if (++count >= TRIED_DOCUMENTS) break;
  } catch (error) {
    if (!(error instanceof CoppiceError)) throw new ApiError(400, "the data cannot be read", { code: "invalid_file" });
    throw new ApiError(400, error.message.replaceAll(file, "the data"), { code: "invalid_file" });
  }
  if (count === 0) throw new ApiError(400, "the data have no documents", { code: "invalid_file" });
}
