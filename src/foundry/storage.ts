import { createHash } from "node:crypto";
import {
  createReadStream,
  createWriteStream,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs";
import { rm } from "node:fs/promises";
import path from "node:path";
import { PassThrough, Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import {
  DeleteObjectsCommand,
  GetObjectCommand,
  HeadBucketCommand,
  ListObjectsV2Command,
  S3Client,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { CoppiceError, UsageError } from "../system/errors.js";
import { moveIntoPlace, temporaryBeside, writeFileAtomic } from "../system/files.js";
import { LOCK_FILE } from "../system/lock.js";
import { RUN_FILE } from "../system/run-files.js";

/** A stored file. */
export interface StoredFile {
  readonly bytes: number;
  readonly sha256: string;
}

/**
 * Keeps files in a directory that all processes share, or in an S3-compatible store. Keys consist of ids and of names that were
 * checked, never of unchecked text from a request.
 */
export interface Storage {
  /** The directory of all its files on this machine. */
  readonly root: string;
  /** Stores a stream, completely or not at all. @param bytes how many it has, where that is known */
  put(key: string, content: Readable, bytes?: number): Promise<StoredFile>;
  read(key: string, range?: ByteRange): Promise<Readable>;
  /** Deletes the file with this key, and all files below it. */
  remove(prefix: string): Promise<void>;
  /** Deletes all files below a key but those in one of its folders. */
  removeAllBut(prefix: string, folder: string): Promise<void>;
  /** A path on this machine with the file or files at a key: the store's own, or a copy. @throws CoppiceError where there is none */
  local(key: string): Promise<string>;
  /**
   * A directory for an attempt at a job, with what earlier attempts have saved. A worker that was taken for dead and wakes up no longer
   * has its directory, and what it saves then is ignored.
   */
  workspace(key: string, attempt: number): Promise<Workspace>;
}

/** The first and the last byte of a part of a file. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

export interface Workspace {
  readonly path: string;
  /** Stores what has changed since the last save. */
  save(): Promise<void>;
  /** Deletes it here and in the store. */
  discard(): Promise<void>;
}

/** @param location a directory, or `s3://bucket/prefix` @param cache directory for copies of files in S3 */
export async function openStorage(location: string, cache: string): Promise<Storage> {
  const s3 = /^s3:\/\/([\w.-]+)(?:\/(.*))?$/.exec(location);
  if (s3 === null) return new DiskStorage(path.resolve(location));
  const [, bucket = "", prefix = ""] = s3;
  return S3Storage.open(bucket, prefix.replace(/\/+$/, ""), cache);
}

const checkKey = (key: string): string => {
  if (!/^[\w][\w./-]*$/.test(key) || key.split("/").some((part) => part === "" || part.startsWith(".")))
    throw new CoppiceError(`"${key}" is not a valid key`);
  return key;
};

/** Counts and hashes the bytes that pass through it. */
function meter(): { readonly through: Transform; readonly result: () => StoredFile } {
  const hash = createHash("sha256");
  let bytes = 0;
  const through = new Transform({
    transform(chunk: Buffer, _, done) {
      bytes += chunk.length;
      hash.update(chunk);
      done(null, chunk);
    },
  });
  return { through, result: () => ({ bytes, sha256: hash.digest("hex") }) };
}

/** Writes a stream to a file, completely or not at all. */
async function writeAtomic(file: string, content: Readable, through: Transform): Promise<void> {
  mkdirSync(path.dirname(file), { recursive: true });
  const temporary = temporaryBeside(file);
  const fd = openSync(temporary, "wx"); // here, because a stream opens its file late: possibly after its source has failed and the file was removed
  try {
    await pipeline(content, through, createWriteStream(temporary, { fd, flush: true }));
    moveIntoPlace(temporary, file);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
}

class DiskStorage implements Storage {
  constructor(readonly root: string) {
    mkdirSync(root, { recursive: true, mode: 0o700 });
  }

  private at(key: string): string {
    return path.join(this.root, ...checkKey(key).split("/"));
  }

  async put(key: string, content: Readable): Promise<StoredFile> {
    const { through, result } = meter();
    await writeAtomic(this.at(key), content, through);
    return result();
  }

  async read(key: string, range?: ByteRange): Promise<Readable> {
    return createReadStream(this.at(key), range);
  }

  async remove(prefix: string): Promise<void> {
    await rm(this.at(prefix), { recursive: true, force: true });
  }

  async removeAllBut(prefix: string, folder: string): Promise<void> {
    const directory = this.at(prefix);
    const others = existsSync(directory) ? readdirSync(directory).filter((name) => name !== folder) : [];
    for (const name of others) await rm(path.join(directory, name), { recursive: true, force: true });
  }

  async local(key: string): Promise<string> {
    const file = this.at(key);
    if (!existsSync(file)) throw new CoppiceError(`the store has no ${key}`);
    return file;
  }

  async workspace(key: string, attempt: number): Promise<Workspace> {
    const attempts = this.at(key);
    const directory = path.join(attempts, attemptName(attempt));
    mkdirSync(attempts, { recursive: true });
    const [latest, ...older] = attemptsUpTo(attempt, readdirSync(attempts));
    for (const name of older) rmSync(path.join(attempts, name), { recursive: true, force: true });
    if (latest === undefined) mkdirSync(directory);
    else renameSync(path.join(attempts, latest), directory);
    rmSync(path.join(directory, LOCK_FILE), { force: true }); // of an earlier attempt, perhaps on another machine
    return { path: directory, save: async () => {}, discard: () => this.remove(key) };
  }
}

const attemptName = (attempt: number): string => `attempt-${attempt}`;
/** The names of an attempt and of earlier ones, latest first. Later attempts are left alone: a worker may wake up late. */
const attemptsUpTo = (attempt: number, names: readonly string[]): string[] =>
  Array.from({ length: attempt }, (_, i) => attemptName(attempt - i)).filter((name) => names.includes(name));
/** Marks an attempt of which all files are stored, including those of earlier attempts. */
const COMPLETE = "complete";

interface StoredObject {
  /** With the store's prefix. */
  readonly key: string;
  /** Changes with the content. */
  readonly etag: string;
}

/** Objects that one request can delete. */
const MAX_DELETED = 1000;
/** S3 takes so many parts of a file, of this size at least; those of streams of unknown length allow 312 GiB. */
const MOST_PARTS = 10_000;
const [LEAST_PART_BYTES, STREAM_PART_BYTES] = [5 << 20, 32 << 20];

class S3Storage implements Storage {
  private constructor(
    private readonly client: S3Client,
    private readonly bucket: string,
    private readonly prefix: string,
    readonly root: string,
  ) {}

  /** Region, keys and endpoint come from the variables of Amazon's own tools: AWS_REGION, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3, ... */
  static async open(bucket: string, prefix: string, cache: string): Promise<S3Storage> {
    const endpoint = process.env.AWS_ENDPOINT_URL_S3 ?? process.env.AWS_ENDPOINT_URL;
    // stores other than Amazon's have no subdomain per bucket
    const custom = endpoint === undefined ? {} : { endpoint, forcePathStyle: true };
    const client = new S3Client({
      region: process.env.AWS_REGION ?? process.env.AWS_DEFAULT_REGION ?? "us-east-1",
      ...custom,
      requestChecksumCalculation: "WHEN_REQUIRED",
      responseChecksumValidation: "WHEN_REQUIRED",
    });
    await client.send(new HeadBucketCommand({ Bucket: bucket })).catch((error: unknown) => {
      throw new UsageError(`the bucket ${bucket} cannot be used: ${error instanceof Error ? error.name : error}`);
    });
    mkdirSync(cache, { recursive: true, mode: 0o700 });
    return new S3Storage(client, bucket, prefix, cache);
  }

  private at(key: string): string {
    return this.prefix === "" ? checkKey(key) : `${this.prefix}/${checkKey(key)}`;
  }

  async put(key: string, content: Readable, bytes?: number): Promise<StoredFile> {
    const { through, result } = meter();
    const upload = new Upload({
      client: this.client,
      params: { Bucket: this.bucket, Key: this.at(key), Body: through },
      partSize: Math.max(LEAST_PART_BYTES, bytes === undefined ? STREAM_PART_BYTES : Math.ceil(bytes / MOST_PARTS)),
    });
    await Promise.all([pipeline(content, through), upload.done()]);
    return result();
  }

  async read(key: string, range?: ByteRange): Promise<Readable> {
    const { Body } = await this.client.send(
      new GetObjectCommand({
        Bucket: this.bucket,
        Key: this.at(key),
        Range: range && `bytes=${range.start}-${range.end}`,
      }),
    );
    if (!(Body instanceof Readable)) throw new CoppiceError(`the store has no ${key}`);
    return Body;
  }

  private async list(prefix: string): Promise<StoredObject[]> {
    const objects: StoredObject[] = [];
    let token: string | undefined;
    do {
      const page = await this.client.send(
        new ListObjectsV2Command({ Bucket: this.bucket, Prefix: prefix, ContinuationToken: token }),
      );
      for (const { Key = "", ETag = "", Size = 0 } of page.Contents ?? [])
        if (Key === prefix || Key.startsWith(`${prefix}/`)) objects.push({ key: Key, etag: `${Size} ${ETag}` });
      token = page.NextContinuationToken;
    } while (token !== undefined);
    return objects;
  }

  private async removeKeys(keys: readonly string[]): Promise<void> {
    for (let i = 0; i < keys.length; i += MAX_DELETED) {
      const objects = keys.slice(i, i + MAX_DELETED).map((Key) => ({ Key }));
      await this.client.send(
        new DeleteObjectsCommand({ Bucket: this.bucket, Delete: { Objects: objects, Quiet: true } }),
      );
    }
  }

  async remove(prefix: string): Promise<void> {
    await this.removeKeys((await this.list(this.at(prefix))).map(({ key }) => key));
    for (const folder of [this.root, path.join(this.root, "etags")])
      rmSync(path.join(folder, ...checkKey(prefix).split("/")), { recursive: true, force: true }); // this machine's copy
  }

  async removeAllBut(prefix: string, folder: string): Promise<void> {
    const kept = `${this.at(prefix)}/${folder}/`;
    const others = (await this.list(this.at(prefix))).filter(({ key }) => !key.startsWith(kept));
    await this.removeKeys(others.map(({ key }) => key));
  }

  /** Copies an object to a file. @param objectKey with the store's prefix */
  private async download(objectKey: string, file: string): Promise<void> {
    const key = this.prefix === "" ? objectKey : objectKey.slice(this.prefix.length + 1);
    await writeAtomic(file, await this.read(key), new PassThrough());
  }

  /** A copy is good as long as the object has the tag that it was copied with. */
  async local(key: string): Promise<string> {
    const base = this.at(key);
    const files = await this.list(base);
    if (files.length === 0) throw new CoppiceError(`the store has no ${key}`);
    const target = path.join(this.root, ...key.split("/"));
    for (const { key: objectKey, etag } of files) {
      const file = path.join(target, ...objectKey.slice(base.length).split("/"));
      const tag = path.join(this.root, "etags", path.relative(this.root, file));
      if (existsSync(file) && existsSync(tag) && readFileSync(tag, "utf8") === etag) continue;
      rmSync(tag, { force: true });
      await this.download(objectKey, file);
      writeFileAtomic(tag, etag);
    }
    return target;
  }

  async workspace(key: string, attempt: number): Promise<Workspace> {
    const base = this.at(key);
    const copies = path.join(this.root, "workspaces", ...key.split("/"));
    const directory = path.join(copies, attemptName(attempt));
    for (const name of attemptsUpTo(attempt, existsSync(copies) ? readdirSync(copies) : []))
      rmSync(path.join(copies, name), { recursive: true, force: true }); // another worker may have changed it since
    mkdirSync(directory, { recursive: true });
    const stored = (await this.list(base)).map((object) => object.key.slice(base.length + 1));
    const complete = stored.filter((name) => name.endsWith(`/${COMPLETE}`)).map((name) => path.posix.dirname(name));
    const [latest] = attemptsUpTo(attempt, complete);
    for (const name of stored)
      if (latest !== undefined && name.startsWith(`${latest}/`) && name !== `${latest}/${COMPLETE}`)
        await this.download(`${base}/${name}`, path.join(directory, ...name.split("/").slice(1)));
    const earlier = attemptsUpTo(attempt - 1, stored.map(attemptOf));
    const obsolete = stored.filter((name) => earlier.includes(attemptOf(name))).map((name) => `${base}/${name}`);
    return {
      path: directory,
      save: this.saver(directory, `${key}/${attemptName(attempt)}`, obsolete),
      discard: async () => {
        rmSync(copies, { recursive: true, force: true });
        await this.remove(key);
      },
    };
  }

  /**
   * A function that uploads what has changed in a directory since its last call.
   * @param obsolete objects to delete once all files have been uploaded
   */
  private saver(directory: string, key: string, obsolete: readonly string[]): () => Promise<void> {
    const saved = new Map<string, string>();
    let isComplete = false;
    // first the list of a run's files, which has them before they exist; a checkpoint before the file that announces it; and last the
    // list that says that the run has finished
    const rank = (name: string) => {
      if (path.basename(name) === RUN_FILE) return isFinished(path.join(directory, name)) ? 3 : 0;
      return name.includes("/") ? 1 : 2;
    };
    return async () => {
      const names = filesBelow(directory).sort((a, b) => rank(a) - rank(b));
      for (const name of names) {
        const file = path.join(directory, ...name.split("/"));
        const { size, mtimeMs } = statSync(file, { throwIfNoEntry: false }) ?? {};
        if (size === undefined || saved.get(name) === `${size} ${mtimeMs}`) continue;
        await this.put(`${key}/${name}`, createReadStream(file), size);
        saved.set(name, `${size} ${mtimeMs}`);
      }
      const deleted = [...saved.keys()].filter((name) => !names.includes(name));
      await this.removeKeys(deleted.map((name) => `${this.at(key)}/${name}`));
      for (const name of deleted) saved.delete(name);
      if (isComplete) return;
      await this.put(`${key}/${COMPLETE}`, Readable.from([Buffer.from("\n")]));
      isComplete = true;
      await this.removeKeys(obsolete);
    };
  }
}

/** Whether a run's list of files says that it has finished. */
function isFinished(runFile: string): boolean {
  try {
    return (JSON.parse(readFileSync(runFile, "utf8")) as { readonly finished?: unknown }).finished === true;
  } catch {
    return false;
  }
}

/** The attempt that a file of a job's workspaces belongs to. */
const attemptOf = (name: string): string => name.split("/")[0] ?? "";

/** Names of the files in a directory and its folders, without unfinished files and the lock. */
const filesBelow = (directory: string): string[] =>
  readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !entry.name.includes(".partial-") && entry.name !== LOCK_FILE)
    .map((entry) => path.relative(directory, path.join(entry.parentPath, entry.name)).split(path.sep).join("/"));
