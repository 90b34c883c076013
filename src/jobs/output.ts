import { existsSync, lstatSync, readdirSync, statSync } from "node:fs";
import path from "node:path";
import { adapterScales, HUB_PREFIX, isGguf, splitAdapters } from "../checkpoint/index.js";
import { findDataFiles } from "../data/index.js";
import { RunDirectory } from "../distill/index.js";
import type { Checkpoint } from "../models/index.js";
import { UsageError } from "../system/errors.js";
import { cacheDirectory, hashBytes, hashFile } from "../system/files.js";
import { contentIdentity } from "../system/identity.js";
import { logOf } from "../system/log.js";
import { packageVersion } from "../system/package-version.js";
import { checkApart, checkWritable, type Input, liesInside, realPath, statOf } from "../system/places.js";
import type { DataOptions, JobOptions } from "./environment.js";
import type { Origin } from "./invocation.js";

const log = logOf("jobs");

/** Files beside a model's weights that say what it is. */
export const DESCRIBING = [
  "config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "generation_config.json",
  "chat_template.jinja",
] as const;

/** A model's files, and where those that describe it lie; a GGUF file describes itself. */
type ModelFiles = Pick<Checkpoint, "files"> & { readonly directory?: string | undefined };

/** The files that a model is made of, as far as they are there. */
export const modelFiles = ({ files, directory }: ModelFiles): string[] =>
  [...files, ...(directory === undefined ? [] : DESCRIBING.map((name) => path.join(directory, name)))].filter((file) =>
    existsSync(file),
  );

/** A model that a job reads, as one of its inputs. */
export const modelInput = (what: string, model: ModelFiles & Pick<Checkpoint, "path">): Input[] =>
  [splitAdapters(model.path).base, ...modelFiles(model)].map((file) => ({ what, path: file }));

/** Data that a job reads: what was named, and every file that it means. Data on a hub lies nowhere near. */
export async function dataInputs({ data = [], validation = [] }: Partial<DataOptions>): Promise<Input[]> {
  const inputs: Input[] = [];
  for (const [what, given] of [
    ["the data", data],
    ["the validation data", validation],
  ] as const)
    for (const one of given.filter((name) => !name.startsWith(HUB_PREFIX))) {
      if (existsSync(one)) inputs.push({ what, path: one });
      for (const file of await findDataFiles([one])) inputs.push({ what, path: file });
    }
  return inputs;
}

/** A file or directory that a job reads, where it was named and is there. */
export const fileInput = (what: string, file: string | undefined): Input[] =>
  file !== undefined && existsSync(file) ? [{ what, path: file }] : [];

/** The same for what may also be among the run's own files. */
export const outside = (out: string, what: string, file: string | undefined): Input[] =>
  file !== undefined && liesInside(realPath(file), realPath(out)) ? [] : fileInput(what, file);

/** The path of a file that was named, which is one of the run's where it is to be made in the run's directory. */
export function ownInside(run: RunDirectory, file: string): string {
  const [inner, directory] = [realPath(file), realPath(run.path)];
  if (liesInside(inner, directory) && !existsSync(file))
    run.own(path.relative(directory, inner).split(path.sep).join("/"));
  return file;
}

/** What a file of scores contains. */
export const scoresIdentity = (file: string): Promise<string> => hashFile(file);

/** What a model contains, as a short text: equal texts mean equal models. */
export async function modelIdentity(
  checkpoint: Pick<Checkpoint, "files" | "directory"> & { readonly path?: string | undefined },
  cacheDir?: string,
): Promise<string> {
  const identities: [string, string][] = [];
  for (const file of modelFiles(checkpoint))
    identities.push([path.basename(file), await contentIdentity(file, cacheDirectory(cacheDir))]);
  const scales = adapterScales(checkpoint.path ?? "");
  return hashBytes(JSON.stringify([...identities.sort(), ...scales])).slice(0, 32);
}

/** What data contains, and how it is read. */
export async function dataIdentity(job: Partial<DataOptions>, inputs: readonly Input[]): Promise<string> {
  const { data, validation, field, separator } = job;
  const contents: string[] = [];
  for (const { path: file } of inputs)
    if (statSync(file).isFile()) contents.push(await contentIdentity(file, cacheDirectory(job.cacheDir)));
  const onHub = [data, validation].map((names) => names?.filter((name) => name.startsWith(HUB_PREFIX)));
  return hashBytes(JSON.stringify([contents, onHub, field, separator])).slice(0, 32);
}

/** What a job that has a directory of its own is given. */
export interface RunJob extends JobOptions {
  readonly out: string;
  /** Discard what an earlier run in `out` has written. */
  readonly restart?: boolean | undefined;
}

/** Directories of such names would be taken for the files that they are not. */
const FILE_ENDING = /\.(gguf|safetensors|bin|pth?|onnx|zip|json)$/i;

/**
 * Does a job in a directory of its own, which keeps clear of what it reads and which no other run has at the same time.
 * @throws UsageError when the directory is an input, contains one, lies in one, or holds anything but such a run
 */
export async function inRun<T>(
  job: RunJob,
  inputs: readonly Input[],
  work: (run: RunDirectory) => Promise<T>,
): Promise<T> {
  if (FILE_ENDING.test(job.out))
    throw new UsageError(
      `${job.out} is the name of a file, and this command writes a directory: name one (coppice export makes a .gguf file of it)`,
    );
  checkApart(job.out, inputs);
  const run = new RunDirectory(job.out);
  try {
    return await work(run);
  } finally {
    run.close();
  }
}

/**
 * Claims a run's directory for what its numbers depend on, when all of that is known to be in order.
 * @throws UsageError naming what differs from the run that is there
 */
export function claim(run: RunDirectory, job: RunJob, configuration: Readonly<Record<string, unknown>>): void {
  if (job.restart === true) run.discard();
  const { invocation } = job;
  const startedAt = new Date().toISOString();
  run.claim(configuration, { version: packageVersion(), startedAt, invocation } satisfies Origin);
  log.debug("run claimed", { directory: run.path, finished: run.finished });
  if (run.finished) job.onNote?.(`${job.out}: this run is finished already; --restart runs it again`);
}

/**
 * Makes sure that a file that is used or made can be either.
 * @throws UsageError when it is a directory, or can neither be read nor made
 */
export function checkKept(file: string, option: string): void {
  if (statOf(file)?.isDirectory()) throw new UsageError(`${file} is a directory: ${option} names a file`);
  if (statOf(file) === undefined) checkWritable(file, option);
}

/** How a file that is there already is dealt with. */
export interface OverwriteOptions {
  /** Replace files that are there already. */
  readonly overwrite?: boolean | undefined;
}

/**
 * Makes sure that a GGUF file can be written.
 * @throws UsageError when it, or a file of several that it would be split into, is there already or its place cannot be
 */
export function checkNewFile(file: string, { overwrite = false }: OverwriteOptions, option = "--out"): void {
  checkWritable(file, option);
  if (statOf(file)?.isDirectory()) throw new UsageError(`${file} is a directory: ${option} names a file here`);
  if (overwrite) return;
  const folder = path.dirname(path.resolve(file));
  const stem = path.basename(file).replace(/\.gguf$/, "");
  const parts = !isGguf(file) || !existsSync(folder) ? [] : readdirSync(folder).filter((name) => isPart(name, stem));
  const [found] = [...(isThere(file) ? [path.basename(file)] : []), ...parts];
  if (found !== undefined)
    throw new UsageError(
      `${path.join(path.dirname(file), found)} is there already: choose another ${option}, or --overwrite to replace it`,
    );
}

const isThere = (file: string): boolean => lstatSync(file, { throwIfNoEntry: false }) !== undefined;

/** Whether a name is that of a part of a GGUF file that was split. */
const isPart = (name: string, stem: string): boolean =>
  name.startsWith(`${stem}-`) && /^-\d{5}-of-\d{5}\.gguf$/.test(name.slice(stem.length));
