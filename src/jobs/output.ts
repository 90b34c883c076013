import { existsSync, lstatSync, readdirSync } from "node:fs";
import path from "node:path";
import { isGguf } from "../checkpoint/index.js";
import { RunDirectory } from "../distill/index.js";
import { UsageError } from "../system/errors.js";
import { logOf } from "../system/log.js";
import { packageVersion } from "../system/package-version.js";
import { checkApart, checkWritable, type Input, liesInside, realPath, statOf } from "../system/places.js";
import { similar } from "../system/suggest.js";
import type { Origin } from "./invocation.js";
import type { JobOptions } from "./job.js";

const log = logOf("jobs");

/** Settings of a training that only its memory, and what is kept of it, depend on: a run may go on with others. */
const CHANGEABLE_SETTINGS = ["settings.recompute", "settings.saveEverySteps", "settings.validateEverySteps"];

/** Makes a named file one of the run's own if it is to be created in the run's directory. @returns the file */
export function ownIfInside(run: RunDirectory, file: string): string {
  const [inner, directory] = [realPath(file), realPath(run.path)];
  if (liesInside(inner, directory) && !existsSync(file))
    run.own(path.relative(directory, inner).split(path.sep).join("/"));
  return file;
}

/** A job that writes a directory of its own. */
export interface RunJob extends JobOptions {
  readonly out: string;
  /** Discard what an earlier run has written in `out`. */
  readonly restart?: boolean | undefined;
}

/** Directories with such names would be mistaken for files. */
const FILE_ENDING = /\.(gguf|safetensors|bin|pth?|onnx|zip|json)$/i;

/**
 * Runs a job in a directory of its own, apart from its inputs and locked against other runs.
 * @throws UsageError when the directory is an input, contains one, lies inside one, or holds anything but such a run
 */
export async function inRun<T>(
  job: RunJob,
  inputs: readonly Input[],
  work: (run: RunDirectory) => Promise<T>,
): Promise<T> {
  if (FILE_ENDING.test(job.out))
    throw new UsageError(
      `${job.out} is the name of a file, but this command writes a directory: name one (\`coppice export --out NAME.gguf\` makes a file)`,
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
 * Claims a run's directory for a configuration, which must hold all that the run's results depend on.
 * @throws UsageError naming the differences to the run that is already there
 */
export function claim(run: RunDirectory, job: RunJob, configuration: Readonly<Record<string, unknown>>): void {
  claimAnew(run, job, configuration);
  if (run.finished) job.onNote?.(`${job.out}: this run is finished already; --restart runs it again`);
}

/** The same for a job that looks at its inputs again when it has finished. */
export function claimAnew(run: RunDirectory, job: RunJob, configuration: Readonly<Record<string, unknown>>): void {
  if (job.restart === true) run.discard();
  const { invocation } = job;
  const startedAt = new Date().toISOString();
  run.claim(configuration, { version: packageVersion(), startedAt, invocation } satisfies Origin, CHANGEABLE_SETTINGS);
  log.debug("run claimed", { directory: run.path, finished: run.finished });
}

/**
 * Makes sure that a file that is read if it exists, and written otherwise, can be.
 * @throws UsageError when it is a directory, or cannot be written
 */
export function checkCacheFile(file: string, option: string): void {
  if (statOf(file)?.isDirectory()) throw new UsageError(`${file} is a directory: ${option} names a file`);
  if (statOf(file) === undefined) checkWritable(file, option);
}

export interface OverwriteOptions {
  /** Replace existing files. */
  readonly overwrite?: boolean | undefined;
}

/**
 * Makes sure that a GGUF file can be written.
 * @throws UsageError when it cannot, or when it or a part that it could be split into exists already
 */
export function checkNewFile(file: string, { overwrite = false }: OverwriteOptions, option = "--out"): void {
  checkWritable(file, option);
  if (statOf(file)?.isDirectory()) throw new UsageError(`${file} is a directory: ${option} names a file here`);
  if (overwrite) return;
  const folder = path.dirname(path.resolve(file));
  const stem = path.basename(file).replace(/\.gguf$/, "");
  const parts = !isGguf(file) || !existsSync(folder) ? [] : readdirSync(folder).filter((name) => isPart(name, stem));
  const isThere = lstatSync(file, { throwIfNoEntry: false }) !== undefined; // also a link to nowhere
  const existing = isThere ? path.basename(file) : parts[0];
  if (existing !== undefined)
    throw new UsageError(
      `${path.join(path.dirname(file), existing)} is there already: choose another ${option}, or --overwrite to replace it`,
    );
}

/**
 * Where no directory is there yet, a name like `model.ggf` is a file's.
 * @throws UsageError with what was meant
 */
export function checkDirectoryName(out: string): void {
  const extension = path.extname(out);
  if (extension === "" || existsSync(out) || similar(extension, [".gguf"]).length === 0) return;
  const meant = `${out.slice(0, -extension.length)}.gguf`;
  throw new UsageError(
    `${out} would be a directory. Did you mean ${meant}? To write into a directory of that name, make it first.`,
  );
}

/** Whether a name is that of a part of a split GGUF file. */
const isPart = (name: string, stem: string): boolean =>
  name.startsWith(`${stem}-`) && /^-\d{5}-of-\d{5}\.gguf$/.test(name.slice(stem.length));
