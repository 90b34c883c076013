import { accessSync, constants, realpathSync, type Stats, statSync } from "node:fs";
import path from "node:path";
import { UsageError } from "./errors.js";

/** Something that a job reads. */
export interface Input {
  /** What people call it, for example `the teacher`. */
  readonly what: string;
  readonly path: string;
}

/** A path with its symbolic links resolved, also where its end is not there yet. */
export function realPath(given: string): string {
  const absolute = path.resolve(given);
  try {
    return realpathSync.native(absolute);
  } catch {
    const parent = path.dirname(absolute);
    return parent === absolute ? absolute : path.join(realPath(parent), path.basename(absolute));
  }
}

/** Whether a path lies below a directory. Both must be real. */
export function liesInside(inner: string, directory: string): boolean {
  const relative = path.relative(directory, inner);
  return relative !== "" && relative !== ".." && !relative.startsWith(`..${path.sep}`) && !path.isAbsolute(relative);
}

/** What a path leads to; undefined where it leads nowhere. */
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
 * Makes sure that a path can be made, before the work that ends in writing it.
 * @throws UsageError when it would lie below a file, or where this user may not write
 */
export function checkWritable(given: string, option = "--out"): void {
  let above = path.dirname(path.resolve(given));
  let stat = statOf(above);
  while (stat === undefined) {
    above = path.dirname(above);
    stat = statOf(above);
  }
  if (!stat.isDirectory())
    throw new UsageError(`${given} cannot be written: ${above} is a file; choose another ${option}`);
  try {
    accessSync(above, constants.W_OK | constants.X_OK);
  } catch {
    throw new UsageError(`${given} cannot be written: you may not write in ${above}; choose another ${option}`);
  }
}

/**
 * Makes sure that what a job writes keeps clear of what it reads: a mistake here costs people their models and data.
 * @throws UsageError when the output is an input, contains one or lies inside one, symbolic links resolved
 */
export function checkApart(output: string, inputs: readonly Input[], option = "--out"): void {
  if (output.trim() === "") throw new UsageError(`${option} is empty: name where the result goes`);
  const out = realPath(output);
  for (const { what, path: given } of inputs) {
    const input = realPath(given);
    const advice = `choose another ${option}`;
    if (out === input) throw new UsageError(`${output} is ${what} itself: ${advice}`);
    if (liesInside(input, out)) throw new UsageError(`${output} contains ${what} (${given}): ${advice}`);
    if (liesInside(out, input)) throw new UsageError(`${output} lies inside ${what} (${given}): ${advice}`);
  }
}
