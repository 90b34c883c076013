import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import { downloadFileToCacheDir, type ListFileEntry, listFiles, parseSafetensorsMetadata } from "@huggingface/hub";
import picomatch from "picomatch";
import { CoppiceError, InterruptedError, UsageError } from "../system/errors.js";
import { hashFile, writeFileAtomic } from "../system/files.js";
import { waitForDirectory } from "../system/lock.js";
import { logOf } from "../system/log.js";
import { didYouMeanPath } from "../system/suggest.js";
import { joinAdapters, splitAdapters } from "./adapters.js";
import { NAMED_TEMPLATES } from "./chat-templates.js";
import { floatTypeOf } from "./safetensors.js";
import type { TensorInfo } from "./tensor-source.js";

const log = logOf("hub");

/** How to reach a hub. Defaults come from the environment, under the names that huggingface_hub uses. */
export interface HubOptions {
  /** Branch, tag or commit; `main` by default. */
  readonly revision?: string | undefined;
  /** Access token for private or gated repositories (HF_TOKEN, or the file that `hf auth login` writes). */
  readonly token?: string | undefined;
  /** HF_HUB_CACHE, or HF_HOME/hub, or ~/.cache/huggingface/hub: shared with the Python library. */
  readonly cacheDir?: string | undefined;
  /** Use only what is cached (HF_HUB_OFFLINE=1). */
  readonly offline?: boolean | undefined;
  /** HF_ENDPOINT, or https://huggingface.co. */
  readonly endpoint?: string | undefined;
  /** Stops downloads. */
  readonly signal?: AbortSignal | undefined;
  /** Called as bytes arrive. */
  readonly onProgress?: ((progress: DownloadProgress) => void) | undefined;
}

export interface DownloadProgress {
  readonly file: string;
  readonly doneBytes: number;
  readonly totalBytes: number;
}

/** The kind of a repository of the hub. */
export type RepoType = "model" | "dataset";

const home = (): string => process.env.HF_HOME ?? path.join(homedir(), ".cache", "huggingface");

function resolveOptions(options: HubOptions) {
  const tokenFile = path.join(home(), "token");
  const stored = existsSync(tokenFile) ? readFileSync(tokenFile, "utf8").trim() : undefined;
  const token = options.token ?? process.env.HF_TOKEN ?? stored;
  return {
    revision: options.revision ?? "main",
    token: token === "" ? undefined : token,
    cacheDir: options.cacheDir ?? process.env.HF_HUB_CACHE ?? path.join(home(), "hub"),
    offline: options.offline ?? ["1", "true", "yes", "on"].includes((process.env.HF_HUB_OFFLINE ?? "").toLowerCase()),
    endpoint: (options.endpoint ?? process.env.HF_ENDPOINT ?? "https://huggingface.co").replace(/\/+$/, ""),
  };
}

/** Whether a text has the form of a repository's name, `organization/name`. */
export const isRepoName = (text: string): boolean =>
  /^[\w.-]+\/[\w.-]+$/.test(text) && !/(^|\/)\.{1,2}($|\/)/.test(text);

/** Whether a text has the form of a branch, tag or commit. It is used as a file's name. */
const isRevision = (text: string): boolean => /^[\w./-]+$/.test(text) && !/(^|\/)\.{0,2}(\/|$)/.test(text);

/** Whether a text has the form of a model's id, `organization/name` or `organization/name@revision`. */
export function isHubId(text: string): boolean {
  const [repo = "", ...revisions] = text.split("@");
  return isRepoName(repo) && revisions.length <= 1 && revisions.every(isRevision);
}

/** What was meant may be something else. */
class NotOnHub extends CoppiceError {}

/** The commit that a revision currently names. */
async function resolveCommit(
  type: RepoType,
  repo: string,
  options: ReturnType<typeof resolveOptions>,
): Promise<string> {
  if (/^[0-9a-f]{40}$/.test(options.revision)) return options.revision;
  const url = `${options.endpoint}/api/${type}s/${repo}/revision/${encodeURIComponent(options.revision)}`;
  const response = await fetch(
    url,
    options.token === undefined ? {} : { headers: { authorization: `Bearer ${options.token}` } },
  );
  if (response.status === 401 || response.status === 403)
    throw response.status === 401 && options.token === undefined
      ? new NotOnHub(
          `${options.endpoint} shows no ${type} ${repo}: there is none, or it is private or gated and HF_TOKEN must be set to a token that may read it`,
        )
      : new CoppiceError(
          `${repo} is private or gated: set HF_TOKEN to a token that may read it (${response.status} from ${options.endpoint})`,
        );
  if (response.status === 404)
    throw new NotOnHub(`${options.endpoint} has no ${type} ${repo} at revision ${options.revision}`);
  if (!response.ok) throw new CoppiceError(`${url} answered ${response.status}`);
  const body: unknown = await response.json();
  const sha = typeof body === "object" && body !== null && "sha" in body ? body.sha : undefined;
  if (typeof sha !== "string" || !/^[0-9a-f]{40}$/.test(sha))
    throw new CoppiceError(`${url} answered without a commit`);
  return sha;
}

/** Files of a repository. */
export interface WantedFiles {
  /** Globs, one of which a file's path matches. */
  readonly patterns: readonly string[];
  /** Whether a repository without weights in safetensors is refused. */
  readonly needsWeights?: boolean;
  /** Whether these are only a part of what others want: they are not moved from a snapshot that is whole. */
  readonly isPart?: boolean;
}

/**
 * Downloads files of a repository into the shared cache.
 * @returns the snapshot's directory and the files in it, relative
 * @throws CoppiceError saying what to do when the hub or the repository cannot be reached
 */
export async function downloadRepo(
  type: RepoType,
  repo: string,
  wanted: WantedFiles,
  { onProgress, signal, ...settings }: HubOptions = {},
): Promise<{ readonly directory: string; readonly commit: string }> {
  if (!isRepoName(repo)) throw new UsageError(`${repo} is not a repository name (organization/name)`);
  const options = resolveOptions(settings);
  if (!isRevision(options.revision)) throw new UsageError(`${options.revision} is not a branch, tag or commit`);
  const storage = path.join(options.cacheDir, `${type}s--${repo.replaceAll("/", "--")}`);
  const reference = path.join(storage, "refs", options.revision);
  log.debug("repository asked for", { repo, type, revision: options.revision, offline: options.offline, storage });
  if (options.offline) return cachedSnapshot(repo, storage, reference, options.revision, wanted);
  let unlock = () => {};
  try {
    const commit = await resolveCommit(type, repo, options);
    const access = {
      repo: { type, name: repo },
      revision: commit,
      hubUrl: options.endpoint,
      ...(signal && { fetch: stoppable(signal) }),
      ...credentials(options.token),
    };
    const matches = picomatch([...wanted.patterns]);
    const files: ListFileEntry[] = [];
    const others: string[] = [];
    for await (const entry of listFiles({ ...access, recursive: true }))
      if (entry.type === "file" && matches(entry.path)) files.push(entry);
      else others.push(entry.path);
    if (wanted.needsWeights === true && !files.some(({ path: name }) => name.endsWith(".safetensors")))
      throw new CoppiceError(`${repo} has no weights in safetensors${otherWeights(repo, others)}`);
    if (files.length === 0) throw new CoppiceError(`${repo} has no file that matches ${wanted.patterns.join(", ")}`);
    mkdirSync(options.cacheDir, { recursive: true });
    unlock = await lockDownload(path.join(options.cacheDir, ".locks", path.basename(storage)), signal);
    const totalBytes = files.reduce((sum, file) => sum + file.size, 0);
    let doneBytes = 0;
    for (const file of files) {
      const watch = watchDownload(path.join(storage, "blobs"), file, (bytes) =>
        onProgress?.({ file: file.path, doneBytes: doneBytes + bytes, totalBytes }),
      );
      const blob = path.join(storage, "blobs", file.lfs?.oid ?? "");
      const isNew = file.lfs !== undefined && !existsSync(blob);
      try {
        await downloadFileToCacheDir({ ...access, path: file.path, cacheDir: options.cacheDir });
      } finally {
        clearInterval(watch);
      }
      if (isNew && file.lfs !== undefined) await checkDownloaded(blob, file.path, file.lfs.oid);
      doneBytes += file.size;
      onProgress?.({ file: file.path, doneBytes, totalBytes });
    }
    if (wanted.isPart !== true || !existsSync(reference)) writeFileAtomic(reference, commit);
    log.debug("repository ready", { repo, commit, files: files.length, bytes: totalBytes });
    return { directory: path.join(storage, "snapshots", commit), commit };
  } catch (error) {
    if (signal?.aborted) throw new InterruptedError(`the download of ${repo} was stopped`);
    if (error instanceof CoppiceError) throw error;
    const cause =
      error instanceof Error
        ? `${error.message}${error.cause instanceof Error ? `: ${error.cause.message}` : ""}`
        : error;
    throw new CoppiceError(
      `${repo} could not be downloaded from ${options.endpoint} (${cause}); --offline uses what is cached`,
    );
  } finally {
    unlock();
  }
}

/** Has one process at a time download a repository: two would write into the same files. @returns a function that lets the next */
async function lockDownload(directory: string, signal: AbortSignal | undefined): Promise<() => void> {
  try {
    mkdirSync(directory, { recursive: true });
    return await waitForDirectory(directory, signal);
  } catch (error) {
    const { code = "" } = error as NodeJS.ErrnoException;
    if (!["EACCES", "EPERM", "EROFS"].includes(code)) throw error;
    return () => {}; // a cache that may only be read has all there is to have
  }
}

const stoppable =
  (signal: AbortSignal): typeof fetch =>
  (input, init) => {
    signal.throwIfAborted();
    return fetch(input, { ...init, signal });
  };

/** What to do with a repository of which only other files are weights. */
function otherWeights(repo: string, files: readonly string[]): string {
  const gguf = files.find((name) => name.endsWith(".gguf"));
  if (gguf !== undefined) return `; it has GGUF files: name one of them, as ${repo}/${gguf}`;
  if (files.some((name) => name.startsWith("consolidated"))) return ", but only in Mistral's own layout (consolidated)";
  const pickled = files.find((name) => /(^|\/)(pytorch_|adapter_)?model[\w.-]*\.(bin|pth?)$/.test(name));
  return pickled === undefined
    ? ""
    : `, but in ${pickled}: load it with transformers and save it with \`save_pretrained\``;
}

/**
 * Checks what has arrived: two processes that load one file into one cache write over each other.
 * @throws CoppiceError when it is not what the hub has; the file is deleted then
 */
async function checkDownloaded(blob: string, name: string, sha256: string): Promise<void> {
  if (!existsSync(blob) || (await hashFile(blob)) === sha256) return;
  rmSync(blob, { force: true });
  throw new CoppiceError(
    `${name} has not arrived as the hub has it, perhaps because another process loaded it at the same time: it is deleted, run the command again`,
  );
}

/** The hub library's option for a token; it takes no undefined one. */
const credentials = (token: string | undefined) => (token === undefined ? {} : { accessToken: token });

/** Reports how much of a file has arrived, from the size of the partial file. */
function watchDownload(blobs: string, file: ListFileEntry, report: (bytes: number) => void): NodeJS.Timeout {
  const partial = path.join(blobs, `${file.lfs?.oid ?? file.xetHash ?? file.oid}.incomplete`);
  return setInterval(() => {
    if (existsSync(partial)) report(statSync(partial).size);
  }, 500).unref();
}

function cachedSnapshot(
  repo: string,
  storage: string,
  reference: string,
  revision: string,
  { needsWeights = false }: WantedFiles,
) {
  const commit = existsSync(reference) ? readFileSync(reference, "utf8").trim() : revision;
  const directory = path.join(storage, "snapshots", commit);
  if (!/^[0-9a-f]{40}$/.test(commit) || !existsSync(directory))
    throw new CoppiceError(
      `${repo} at ${revision} is not in the cache (${storage}); download it once without --offline`,
    );
  if (needsWeights && !readdirSync(directory).some((name) => name.endsWith(".safetensors")))
    throw new CoppiceError(
      `only the configuration of ${repo} at ${revision} is in the cache (${storage}); download it once without --offline`,
    );
  return { directory, commit };
}

/** What tells a model's sizes. */
const CONFIG_FILES: WantedFiles = { patterns: ["config.json"], isPart: true };

/**
 * What is downloaded of a model repository: configuration, tokenizer, safetensors weights, license, and the card that names it. Mistral's
 * repositories have the weights a second time, in a layout of their own.
 */
const MODEL_FILES: WantedFiles = {
  patterns: [
    "*.json",
    "!(consolidated*).safetensors",
    "tokenizer.model",
    "merges.txt",
    "*.jinja",
    `${NAMED_TEMPLATES}/*.jinja`,
    "LICENSE*",
    "NOTICE*",
    "README.md",
  ],
  needsWeights: true,
};

/** Precedes a hub id, to say that it is not a path on this machine. */
export const HUB_PREFIX = "hf://";

/**
 * Finds a model: a local directory or .gguf file, or a hub id (`org/name`, `org/name@revision`, `org/name/file.gguf`, with or
 * without `hf://`), which is downloaded if need be; `+lora:ADAPTER` after it names adapters to merge.
 * @returns a directory in Hugging Face's layout, or a .gguf file
 */
export async function resolveModel(reference: string, options: HubOptions = {}): Promise<string> {
  const { base, adapters } = splitAdapters(reference);
  const { revision: _, ...anyRevision } = options; // the revision is the model's
  const found = [];
  for (const { name, scale } of adapters)
    found.push({ name: await resolve(name, MODEL_FILES, anyRevision, "LoRA adapter"), scale });
  return joinAdapters({ base: await resolve(base, MODEL_FILES, options), adapters: found });
}

/** Like {@link resolveModel}, but of a repository only the configuration is downloaded, if it has one. */
export function resolveConfig(reference: string, options: HubOptions = {}): Promise<string> {
  return resolve(splitAdapters(reference).base, CONFIG_FILES, options);
}

/**
 * The tensors of a repository's safetensors files, from their headers alone.
 * @returns undefined for what is no hub id, is cached only, has no such files, or others than plain floats
 */
export async function remoteTensors(
  reference: string,
  options: HubOptions = {},
): Promise<ReadonlyMap<string, TensorInfo> | undefined> {
  const id = reference.startsWith(HUB_PREFIX) ? reference.slice(HUB_PREFIX.length) : reference;
  const [name = "", revision = options.revision] = id.split("@");
  const { endpoint, token, offline, revision: wanted } = resolveOptions({ ...options, revision });
  if (offline || id.endsWith(".gguf") || !isHubId(id) || (id === reference && existsSync(id))) return undefined;
  try {
    const repo = { type: "model", name } as const;
    const found = await parseSafetensorsMetadata({ repo, hubUrl: endpoint, revision: wanted, ...credentials(token) });
    const headers = found.sharded ? Object.values(found.headers) : [found.header];
    const tensors = new Map<string, TensorInfo>();
    for (const header of headers)
      for (const [tensor, { dtype, shape }] of Object.entries(header)) {
        if (tensor === "__metadata__") continue;
        const type = floatTypeOf(dtype);
        if (type === undefined || !Array.isArray(shape)) return undefined; // quantized: what that means is known to the whole only
        tensors.set(tensor, { dtype: type, shape });
      }
    return tensors;
  } catch (error) {
    log.debug("headers not read", { repo: name, error: String(error) });
    return undefined; // what is wrong is said when the model is downloaded
  }
}

/** @param what the reference names, for messages */
async function resolve(
  reference: string,
  wanted: WantedFiles,
  options: HubOptions,
  what: "model" | "LoRA adapter" = "model",
): Promise<string> {
  const isHubReference = reference.startsWith(HUB_PREFIX);
  const model = isHubReference ? reference.slice(HUB_PREFIX.length) : reference;
  if (!isHubReference && existsSync(model)) {
    if (!statSync(model).isDirectory() && !model.endsWith(".gguf"))
      throw new UsageError(`${model} is a file; a MODEL is a directory, a .gguf file or a hub id`);
    return model;
  }
  const [, from, file] = /^([^/]+\/[^/]+)\/(.+\.gguf)$/.exec(model) ?? [];
  if (from !== undefined && file !== undefined && isRepoName(from)) {
    const { directory } = await downloadRepo(
      "model",
      from,
      { patterns: [file.replace(/-\d{5}-of-/, "-*-of-")] },
      options,
    );
    return path.join(directory, file);
  }
  const [repo = "", revision] = model.split("@");
  if (!isRepoName(repo))
    throw new UsageError(
      `there is no ${what} ${model}, and it is not a hub id (organization/name).${didYouMeanPath(model)}`,
    );
  const revised = revision === undefined ? options : { ...options, revision };
  try {
    return (await downloadRepo("model", repo, wanted, revised)).directory;
  } catch (error) {
    if (isHubReference || !(error instanceof NotOnHub)) throw error;
    throw new CoppiceError(`${error.message}. On this machine there is no ${model}, either.${didYouMeanPath(model)}`);
  }
}
