import { createHash } from "node:crypto";
import {
  createReadStream,
  createWriteStream,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
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
import { moveIntoPlace, temporaryBeside } from "../system/files.js";
import { LOCK_FILE } from "../system/lock.js";
import { RUN_FILE } from "../system/run-files.js";

/** What was stored. */
export interface StoredFile {
  readonly bytes: number;
  readonly sha256: string;
}

/**
 * Where files are kept: a directory that all processes see, or an S3-compatible store. Keys are made by us, of ids and names that were
 * checked; none is taken from a request.
 */
export interface Storage {
  /** Below it is all that is on this machine. */
  readonly root: string;
  /** Stores what a stream brings, whole or not at all. */
  put(key: string, content: Readable): Promise<StoredFile>;
  /** @param range first and last byte */
  read(key: string, range?: { readonly start: number; readonly end: number }): Promise<Readable>;
  /** Deletes all whose keys begin so. */
  remove(prefix: string): Promise<void>;
  /** A path on this machine with the files below a key: the store's own, or a copy that is made once. */
  local(key: string): Promise<string>;
  /**
   * A directory for a job's work, with what earlier attempts saved. Each attempt has its own: a worker that was taken for dead and
   * wakes up finds its directory gone, and what it still saves is looked at by nobody.
   */
  workspace(key: string, attempt: number): Promise<Workspace>;
}

export interface Workspace {
  readonly path: string;
  /** Keeps what changed since the last time. */
  save(): Promise<void>;
  /** Deletes it everywhere. */
  discard(): Promise<void>;
}

/** @param location a directory, or `s3://bucket/prefix` @param cache where copies of S3's files go */
export async function openStorage(location: string, cache: string): Promise<Storage> {
  const s3 = /^s3:\/\/([\w.-]+)(?:\/(.*))?$/.exec(location);
  if (s3 === null) return new DiskStorage(path.resolve(location));
  const [, bucket = "", prefix = ""] = s3;
  return S3Storage.open(bucket, prefix.replace(/\/+$/, ""), cache);
}

const checkKey = (key: string): string => {
  if (!/^[\w][\w./-]*$/.test(key) || key.split("/").some((part) => part === "" || part.startsWith(".")))
    throw new CoppiceError(`"${key}" is no key of the store`);
  return key;
};

/** Counts and hashes what passes. */
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

/** Writes a file of what passes, whole or not at all. */
async function writeWhole(file: string, content: Readable, through: Transform): Promise<void> {
  mkdirSync(path.dirname(file), { recursive: true });
  const temporary = temporaryBeside(file);
  const fd = openSync(temporary, "wx"); // a stream opens its file later: after it was removed, where its source had failed at once
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
    await writeWhole(this.at(key), content, through);
    return result();
  }

  async read(key: string, range?: { readonly start: number; readonly end: number }): Promise<Readable> {
    return createReadStream(this.at(key), range);
  }

  async remove(prefix: string): Promise<void> {
    await rm(this.at(prefix), { recursive: true, force: true });
  }

  async local(key: string): Promise<string> {
    const file = this.at(key);
    if (!existsSync(file)) throw new CoppiceError(`the store has no ${key}`);
    return file;
  }

  async workspace(key: string, attempt: number): Promise<Workspace> {
    const all = this.at(key);
    const directory = path.join(all, attemptName(attempt));
    mkdirSync(all, { recursive: true });
    const [latest, ...older] = attemptsUpTo(attempt, readdirSync(all));
    for (const name of older) rmSync(path.join(all, name), { recursive: true, force: true });
    if (latest === undefined) mkdirSync(directory);
    else renameSync(path.join(all, latest), directory);
    rmSync(path.join(directory, LOCK_FILE), { force: true }); // of an attempt that is over, maybe on another machine
    return { path: directory, save: async () => {}, discard: () => this.remove(key) };
  }
}

const attemptName = (attempt: number): string => `attempt-${attempt}`;
/** Names of an attempt and those before it, the latest first. What a later one has is not touched by who wakes up late. */
const attemptsUpTo = (attempt: number, names: readonly string[]): string[] =>
  Array.from({ length: attempt }, (_, i) => attemptName(attempt - i)).filter((name) => names.includes(name));
/** Says that an attempt's files are all there, those of the attempts before as well. */
const COMPLETE = "complete";

class S3Storage implements Storage {
  private constructor(
    private readonly client: S3Client,
    private readonly bucket: string,
    private readonly prefix: string,
    readonly root: string,
  ) {}

  /** Region, keys and endpoint are found as by Amazon's own tools: AWS_REGION, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3, ... */
  static async open(bucket: string, prefix: string, cache: string): Promise<S3Storage> {
    const endpoint = process.env.AWS_ENDPOINT_URL_S3 ?? process.env.AWS_ENDPOINT_URL;
    const client = new S3Client({
      region: process.env.AWS_REGION ?? process.env.AWS_DEFAULT_REGION ?? "us-east-1",
      // other stores than Amazon's are addressed by path
      ...(endpoint !== undefined && { endpoint, forcePathStyle: true }),
      ...{ requestChecksumCalculation: "WHEN_REQUIRED", responseChecksumValidation: "WHEN_REQUIRED" },
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

  async put(key: string, content: Readable): Promise<StoredFile> {
    const { through, result } = meter();
    const upload = new Upload({
      client: this.client,
      params: { Bucket: this.bucket, Key: this.at(key), Body: through },
    });
    await Promise.all([pipeline(content, through), upload.done()]);
    return result();
  }

  async read(key: string, range?: { readonly start: number; readonly end: number }): Promise<Readable> {
    const { Body } = await this.client.send(
      new GetObjectCommand({
        ...{ Bucket: this.bucket, Key: this.at(key) },
        ...(range && { Range: `bytes=${range.start}-${range.end}` }),
      }),
    );
    if (!(Body instanceof Readable)) throw new CoppiceError(`the store has no ${key}`);
    return Body;
  }

  private async list(prefix: string): Promise<{ key: string; bytes: number }[]> {
    const found: { key: string; bytes: number }[] = [];
    let token: string | undefined;
    do {
      const page = await this.client.send(
        new ListObjectsV2Command({ Bucket: this.bucket, Prefix: prefix, ...(token && { ContinuationToken: token }) }),
      );
      for (const { Key = "", Size = 0 } of page.Contents ?? [])
        if (Key === prefix || Key.startsWith(`${prefix}/`)) found.push({ key: Key, bytes: Size });
      token = page.NextContinuationToken;
    } while (token !== undefined);
    return found;
  }

  private async removeKeys(keys: readonly string[]): Promise<void> {
    for (let at = 0; at < keys.length; at += 1000)
      await this.client.send(
        new DeleteObjectsCommand({
          ...{
            Bucket: this.bucket,
            Delete: { Objects: keys.slice(at, at + 1000).map((Key) => ({ Key })), Quiet: true },
          },
        }),
      );
  }

  async remove(prefix: string): Promise<void> {
    await this.removeKeys((await this.list(this.at(prefix))).map(({ key }) => key));
  }

  private async fetchTo(key: string, file: string): Promise<void> {
    const own = this.prefix === "" ? key : key.slice(this.prefix.length + 1);
    await writeWhole(file, await this.read(own), new PassThrough());
  }

  /** Files do not change once they are stored: a copy of the right length is good. */
  async local(key: string): Promise<string> {
    const base = this.at(key);
    const files = await this.list(base);
    if (files.length === 0) throw new CoppiceError(`the store has no ${key}`);
    const target = path.join(this.root, ...key.split("/"));
    for (const { key: one, bytes } of files) {
      const file = path.join(target, ...one.slice(base.length).split("/"));
      if (!existsSync(file) || statSync(file).size !== bytes) await this.fetchTo(one, file);
    }
    return target;
  }

  async workspace(key: string, attempt: number): Promise<Workspace> {
    const all = this.at(key);
    const own = `${key}/${attemptName(attempt)}`;
    const directory = path.join(this.root, "workspaces", ...own.split("/"));
    const copies = path.dirname(directory);
    for (const name of attemptsUpTo(attempt, existsSync(copies) ? readdirSync(copies) : []))
      rmSync(path.join(copies, name), { recursive: true, force: true }); // another worker may have gone on since
    mkdirSync(directory, { recursive: true });
    const stored = (await this.list(all)).map(({ key: one }) => one.slice(all.length + 1));
    const whole = stored.filter((name) => name.endsWith(`/${COMPLETE}`)).map((name) => path.posix.dirname(name));
    const [latest] = attemptsUpTo(attempt, whole);
    for (const name of stored)
      if (latest !== undefined && name.startsWith(`${latest}/`) && name !== `${latest}/${COMPLETE}`)
        await this.fetchTo(`${all}/${name}`, path.join(directory, ...name.split("/").slice(1)));
    const saved = new Map<string, string>();
    let complete = false;
    const save = async () => {
      const names = filesBelow(directory);
      // a checkpoint before what says that it is there, and last the list of all that the run wrote
      const rank = (name: string) => (name.includes("/") ? 0 : name === RUN_FILE ? 2 : 1);
      const ordered = names.sort((a, b) => rank(a) - rank(b));
      for (const name of ordered) {
        const file = path.join(directory, ...name.split("/"));
        const { size, mtimeMs } = statSync(file, { throwIfNoEntry: false }) ?? {};
        if (size === undefined || saved.get(name) === `${size} ${mtimeMs}`) continue;
        await this.put(`${own}/${name}`, createReadStream(file));
        saved.set(name, `${size} ${mtimeMs}`);
      }
      const gone = [...saved.keys()].filter((name) => !names.includes(name));
      await this.removeKeys(gone.map((name) => `${this.at(own)}/${name}`));
      for (const name of gone) saved.delete(name);
      if (complete) return;
      await this.put(`${own}/${COMPLETE}`, Readable.from([Buffer.from("\n")]));
      complete = true;
      const earlier = attemptsUpTo(
        attempt - 1,
        stored.map((name) => name.split("/")[0] ?? ""),
      );
      const before = stored.filter((name) => earlier.includes(name.split("/")[0] ?? ""));
      await this.removeKeys(before.map((name) => `${all}/${name}`));
    };
    const discard = async () => {
      rmSync(copies, { recursive: true, force: true });
      await this.remove(key);
    };
    return { path: directory, save, discard };
  }
}

/** Names of a directory's files, those of its folders too, without what is being written and who writes. */
const filesBelow = (directory: string): string[] =>
  readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !entry.name.includes(".partial-") && entry.name !== LOCK_FILE)
    .map((entry) => path.relative(directory, path.join(entry.parentPath, entry.name)).split(path.sep).join("/"));
