import { accessSync, constants, realpathSync, type Stats, statSync } from "node:fs";
import path from "node:path";
import { UsageError } from "./errors.js";

/** A file or directory that a job reads. */
export interface Input {
  /** Its name in messages, for example `the teacher`. */
  readonly what: string;
  readonly path: string;
}

/** A path with its symbolic links resolved; its last parts need not exist. */
export function realPath(file: string): string {
  const absolute = path.resolve(file);
  try {
    return realpathSync.native(absolute);
  } catch {
    const parent = path.dirname(absolute);
    return parent === absolute ? absolute : path.join(realPath(parent), path.basename(absolute));
  }
}

/** Whether a path lies below a directory. Both must come from {@link realPath}. */
export function liesInside(inner: string, directory: string): boolean {
  const relative = path.relative(directory, inner);
  return relative !== "" && relative !== ".." && !relative.startsWith(`..${path.sep}`) && !path.isAbsolute(relative);
}

/** The status of a file or directory; undefined when there is none. */
export function statOf(file: string): Stats | undefined {
  try {
    return statSync(file);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw error;
  }
}

/**
 * Checks that a file or directory can be created, before the work that ends in writing it.
 * @throws UsageError when it would lie below a file, or where this user may not write
 */
export function checkWritable(file: string, option = "--out"): void {
  let parent = path.dirname(path.resolve(file));
  let stat = statOf(parent);
  while (stat === undefined) {
    if (parent === path.dirname(parent))
      throw new UsageError(`${file} cannot be written: there is no ${parent}; choose another ${option}`);
    parent = path.dirname(parent);
    stat = statOf(parent);
  }
  if (!stat.isDirectory())
    throw new UsageError(`${file} cannot be written: ${parent} is a file; choose another ${option}`);
  try {
    accessSync(parent, constants.W_OK | constants.X_OK);
  } catch {
    throw new UsageError(`${file} cannot be written: you may not write in ${parent}; choose another ${option}`);
  }
}

/**
 * Checks that a job's output is apart from its inputs: a mistake here would cost people their models and data.
 * @throws UsageError when the output is an input, contains one or lies inside one, symbolic links resolved
 */
export function checkApart(output: string, inputs: readonly Input[], option = "--out"): void {
  if (output.trim() === "") throw new UsageError(`${option} is empty: name where the result goes`);
  const out = realPath(output);
  for (const { what, path: file } of inputs) {
    const input = realPath(file);
    const advice = `choose another ${option}`;
    if (out === input) throw new UsageError(`${output} is ${what} itself: ${advice}`);
    if (liesInside(input, out)) throw new UsageError(`${output} contains ${what} (${file}): ${advice}`);
    if (liesInside(out, input)) throw new UsageError(`${output} lies inside ${what} (${file}): ${advice}`);
  }
}
