import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { CoppiceError, FormatError, UsageError } from "./errors.js";
import { writeJson } from "./files.js";
import { LOCK_FILE, lockDirectory } from "./lock.js";
import { checkWritable, liesInside, realPath, statOf } from "./places.js";

/** The file that describes a run. */
export const RUN_FILE = "run.json";
/** Files that an otherwise empty directory may hold. */
const IGNORED_FILES = new Set([".DS_Store", "Thumbs.db", "desktop.ini", "lost+found", LOCK_FILE]);

const isOwnName = (name: string): boolean =>
  name !== "" &&
  !path.isAbsolute(name) &&
  !name.split(/[/\\]/).some((part) => part === ".." || part === "." || part === "");

const recordSchema = z.object({
  coppice: z.literal("run"),
  configuration: z.record(z.string(), z.unknown()).optional(),
  /** Every file that the run wrote, relative to the directory. */
  files: z.array(z.string().refine(isOwnName)),
  finished: z.boolean(),
  result: z.unknown().optional(),
  /** Files that a finished run has yet to delete. */
  leftovers: z.array(z.string().refine(isOwnName)).optional(),
  /** How the run was started; nothing depends on it. */
  origin: z.unknown().optional(),
});
export type RunRecord = z.infer<typeof recordSchema>;

const EMPTY: RunRecord = { coppice: "run", files: [], finished: false };

/**
 * A run's directory and the files in it that the run wrote: only these are ever replaced or deleted. One process at a time holds
 * the directory.
 */
export class RunFiles {
  private record: RunRecord;
  private readonly unlock: () => void;
  /** The topmost directory that was created for this run. */
  private readonly created: string | undefined;

  /**
   * Opens a directory that does not exist yet, is empty, or belongs to an earlier run.
   * @throws UsageError when it holds anything else, CoppiceError when another process holds it
   */
  constructor(readonly directory: string) {
    if (statOf(directory) === undefined) checkWritable(directory);
    checkDirectory(directory);
    try {
      this.created = mkdirSync(directory, { recursive: true });
      this.unlock = lockDirectory(directory);
    } catch (error) {
      if (error instanceof CoppiceError) throw error;
      throw new UsageError(`${directory} cannot be written: ${error instanceof Error ? error.message : error}`);
    }
    try {
      this.record = checkDirectory(directory) ?? EMPTY;
    } catch (error) {
      this.unlock();
      throw error;
    }
  }

  private at(name: string): string {
    return path.join(this.directory, ...name.split("/"));
  }

  private write(change: Partial<RunRecord>): void {
    this.record = { ...this.record, ...change };
    writeJson(this.at(RUN_FILE), this.record);
  }

  /**
   * Registers files of the run, before they are written.
   * @param names relative to the directory, with `/`
   * @throws CoppiceError when a file exists that is not the run's
   */
  own(...names: readonly string[]): void {
    const fresh = names.filter((name) => !this.record.files.includes(name));
    for (const name of fresh)
      if (exists(this.at(name)))
        throw new CoppiceError(
          `${this.at(name)} was not written by this run and would be lost: move it elsewhere and run the same command again to continue`,
        );
    if (fresh.length > 0) this.write({ files: [...this.record.files, ...fresh] });
  }

  /** Deletes those of the files that the run wrote. */
  remove(names: readonly string[]): void {
    const own = names.filter((name) => this.record.files.includes(name));
    for (const name of own) this.delete(name);
    if (own.length > 0) this.write({ files: this.record.files.filter((name) => !own.includes(name)) });
  }

  /** The run's files below a folder. */
  below(folder: string): string[] {
    return this.record.files.filter((name) => name.startsWith(`${folder}/`));
  }

  /** Deletes a file, any partial copy that a killed process left, and then the folders that are empty without it. */
  private delete(name: string): void {
    const root = realPath(this.directory);
    const parts = name.split("/");
    for (let depth = parts.length; depth > 0; depth--) {
      const at = this.at(parts.slice(0, depth).join("/"));
      const parent = realPath(path.dirname(at));
      if (parent !== root && !liesInside(parent, root)) continue; // a link leads out of the directory
      if (depth === parts.length && exists(at) && !lstatSync(at).isDirectory()) rmSync(at);
      if (depth < parts.length) removeIfEmpty(at);
      for (const name of existsSync(parent) ? readdirSync(parent) : [])
        if (name.startsWith(`${path.basename(at)}.partial-`)) rmSync(path.join(parent, name), { recursive: true });
    }
  }

  get configuration(): Readonly<Record<string, unknown>> | undefined {
    return this.record.configuration;
  }

  /**
   * Records the run's configuration, or compares it with the recorded one.
   * @param changeable settings that the run's results do not depend on, such as `settings.saveEverySteps`: they may change
   * @throws UsageError naming the differences when the directory holds another run, or a finished one whose files are gone
   */
  claim(configuration: Readonly<Record<string, unknown>>, origin?: unknown, changeable: readonly string[] = []): void {
    this.removeLeftovers();
    const plain = JSON.parse(JSON.stringify(configuration)) as Record<string, unknown>;
    if (this.record.configuration === undefined || this.isBlank) {
      for (const name of this.record.files) this.delete(name); // what a killed process has begun to write
      this.write({ configuration: plain, origin, files: [] });
      return;
    }
    const { command } = this.record.configuration;
    if (command !== plain.command)
      throw new UsageError(
        `${this.directory} holds a run of another command (${command}): choose another --out, or --restart to discard it`,
      );
    const changes = differences(this.record.configuration, plain).filter(
      (change) => !changeable.some((name) => change.startsWith(`${name} `)),
    );
    if (changes.length > 0)
      throw new UsageError(
        `${this.directory} holds a run with other settings (${changes.join("; ")}): choose another --out, or --restart to discard it`,
      );
    const missing = this.record.finished ? this.record.files.filter((name) => !existsSync(this.at(name))) : [];
    if (missing.length > 0)
      throw new UsageError(
        `${this.directory} holds a finished run, but ${missing.slice(0, 3).join(", ")} ${missing.length > 1 ? "are" : "is"} gone: --restart runs it again`,
      );
    if (!this.record.finished) this.write({ configuration: plain });
  }

  /** Whether the run ended before it had done anything: settings that were refused may be changed. */
  private get isBlank(): boolean {
    const { finished, files } = this.record;
    return !finished && files.every((name) => !exists(this.at(name)));
  }

  /** Whether the run has finished. */
  get finished(): boolean {
    return this.record.finished;
  }

  /** The result passed to {@link finish}. */
  get result(): unknown {
    return this.record.result;
  }

  /**
   * Records that the run has finished, with its result.
   * @param workFolder is deleted then: a run that is killed meanwhile has finished all the same
   */
  finish(result?: unknown, workFolder?: string): void {
    if (this.record.finished) return;
    this.write({ finished: true, result, leftovers: workFolder === undefined ? undefined : this.below(workFolder) });
    this.removeLeftovers();
  }

  private removeLeftovers(): void {
    if (this.record.leftovers === undefined) return;
    this.remove(this.record.leftovers);
    this.write({ leftovers: undefined });
  }

  /** Deletes everything that the run wrote, and nothing else. */
  discard(): void {
    for (const name of this.record.files) this.delete(name);
    rmSync(this.at(RUN_FILE), { force: true });
    this.record = EMPTY;
  }

  /** Releases the directory. Directories that were created for the run and are still empty are removed. */
  close(): void {
    this.unlock();
    if (this.created === undefined) return;
    for (let at = path.resolve(this.directory); at.startsWith(path.resolve(this.created)); at = path.dirname(at))
      if (!removeIfEmpty(at)) return;
  }
}

/**
 * Reads what a run has recorded, without taking its directory.
 * @throws UsageError when the directory is no run's, FormatError when its record is damaged
 */
export function readRun(directory: string): RunRecord {
  const stat = statOf(directory);
  if (stat === undefined) throw new UsageError(`there is no directory ${directory}`);
  if (!stat.isDirectory()) throw new UsageError(`${directory} is a file: name the directory of a run (its --out)`);
  const file = path.join(directory, RUN_FILE);
  if (!existsSync(file))
    throw new UsageError(`${directory} is not a run of coppice: it has no ${RUN_FILE}. Name the --out of a run`);
  const record = readRecord(file);
  if (record === undefined) throw new FormatError(`${file} is damaged, or was not written by coppice`);
  return record;
}

/** The record of the run in a directory; undefined when it is empty. @throws UsageError when it is neither a run's nor empty */
function checkDirectory(directory: string): RunRecord | undefined {
  const stat = statOf(directory);
  if (stat === undefined) return undefined;
  if (!stat.isDirectory()) throw new UsageError(`${directory} is a file: --out must name a directory`);
  const record = readRecord(path.join(directory, RUN_FILE));
  if (record !== undefined) return record;
  if (existsSync(path.join(directory, RUN_FILE)))
    throw new UsageError(
      `${directory} is not a run of coppice, or its ${RUN_FILE} is damaged: choose another --out; nothing was changed`,
    );
  const found = readdirSync(directory).filter(
    (name) =>
      !IGNORED_FILES.has(name) && !name.startsWith(`${LOCK_FILE}.partial-`) && !name.startsWith(`${RUN_FILE}.partial-`),
  );
  if (found.length === 0) return undefined;
  const names = found.slice(0, 3).join(", ");
  const others = found.length > 3 ? `, and ${found.length - 3} more` : "";
  throw new UsageError(
    `${directory} is not empty and not a run of coppice (it has ${names}${others}): choose another --out; nothing was changed`,
  );
}

function readRecord(file: string): RunRecord | undefined {
  try {
    return recordSchema.parse(JSON.parse(readFileSync(file, "utf8")));
  } catch {
    return undefined;
  }
}

const exists = (file: string): boolean => lstatSync(file, { throwIfNoEntry: false }) !== undefined;

function removeIfEmpty(directory: string): boolean {
  try {
    rmdirSync(directory);
    return true;
  } catch {
    return false; // it has something in it, or is gone
  }
}

/** The setting that holds inputs: compared by their content, of which only hashes are stored. */
const INPUTS = "inputs";

/** The differences between two configurations, a line for each setting. @param prefix precedes the names of settings */
export function differences(
  before: Readonly<Record<string, unknown>>,
  now: Readonly<Record<string, unknown>>,
  prefix = "",
): string[] {
  return [...new Set([...Object.keys(before), ...Object.keys(now)])].flatMap((name) => {
    const [a, b] = [before[name], now[name]];
    if (JSON.stringify(a) === JSON.stringify(b)) return [];
    if (isRecord(a) && isRecord(b)) return differences(a, b, `${prefix}${name}.`);
    if (prefix === `${INPUTS}.`) return [`${name}: not the same content as before`];
    if (isRecord(a ?? {}) && isRecord(b ?? {}))
      return differences(
        (a ?? {}) as Record<string, unknown>,
        (b ?? {}) as Record<string, unknown>,
        `${prefix}${name}.`,
      );
    return [`${prefix}${name} ${shown(a)} -> ${shown(b)}`];
  });
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const shown = (value: unknown): string =>
  value === undefined ? "not given" : typeof value === "string" ? value : JSON.stringify(value);
