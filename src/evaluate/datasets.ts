import { existsSync, readdirSync, statSync } from "node:fs";
import path from "node:path";
import { glob } from "tinyglobby";
import { downloadRepo, type HubOptions } from "../checkpoint/index.js";
import { endingOf, ROW_ENDINGS, readRows } from "../data/index.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { hashBytes, hashFile } from "../system/files.js";
import type { DatasetReference } from "./task.js";

/** A split of a dataset, loaded. */
export interface LoadedSplit {
  readonly rows: readonly DatasetRow[];
  /** Where they come from: splits of the same files are the same. */
  readonly files: readonly string[];
  /** The hub's commit, or a hash of the local files: equal versions mean equal rows. */
  readonly version: string;
}

/** A row of a dataset. */
export interface DatasetRow {
  readonly record: unknown;
  /** File and line, for error messages. */
  readonly where: string;
}

export interface DatasetOptions {
  /** A directory of DATASET/CONFIG/SPLIT.jsonl (or .parquet, .jsonl.gz), searched before the hub. */
  readonly directory?: string | undefined;
  readonly hub?: HubOptions | undefined;
}

/** Benchmarks are small: a larger file is not one. */
const MOST_ROWS = 5e6;
/** Where the hub keeps a Parquet copy of every dataset, as CONFIG/SPLIT/*.parquet, whatever its original format. */
const PARQUET_REVISION = "refs/convert/parquet";
const DEFAULT_CONFIG = "default";

/** Loads splits of datasets, each once. */
export class Datasets {
  private readonly loaded = new Map<string, Promise<LoadedSplit>>();

  constructor(private readonly options: DatasetOptions = {}) {}

  /** @throws CoppiceError when the split is not found, FormatError when a file cannot be read */
  split(dataset: DatasetReference, split: string): Promise<LoadedSplit> {
    const key = JSON.stringify([dataset.repo, dataset.config, split]);
    const known = this.loaded.get(key) ?? this.load(dataset, split);
    this.loaded.set(key, known);
    known.catch(() => this.loaded.delete(key));
    return known;
  }

  private async load(dataset: DatasetReference, split: string): Promise<LoadedSplit> {
    const local = this.localFiles(dataset, split);
    if (local.length > 0) {
      const hashes = await Promise.all(local.map(hashFile));
      return {
        rows: await rowsOf(local),
        files: local,
        version: `sha256:${hashes.length === 1 ? hashes[0] : hashBytes(hashes.join("+"))}`,
      };
    }
    const { files, commit } = await this.hubFiles(dataset, split);
    return { rows: await rowsOf(files), files, version: commit };
  }

  private localFiles({ repo, config = DEFAULT_CONFIG }: DatasetReference, split: string): string[] {
    if (isFile(repo)) return [path.resolve(repo)];
    for (const root of this.options.directory === undefined
      ? [repo]
      : [path.join(this.options.directory, repo), repo]) {
      const folder = path.join(root, config);
      if (!existsSync(folder) || !statSync(folder).isDirectory()) continue;
      const alike = readdirSync(folder)
        .filter((name) => ROW_ENDINGS.includes(endingOf(name)) && name.split(/[.-]/, 1)[0] === split)
        .sort();
      const found = alike.filter((name) => isPartOf(split, name));
      const other = alike.find((name) => !isPartOf(split, name));
      if (other !== undefined)
        throw new FormatError(
          `${path.join(folder, other)} may be a part of the split ${split} or not: name the parts of a split ${split}-00000-of-00002.jsonl and so on, and move other files away`,
        );
      checkOneKind(folder, found);
      if (found.length > 0) return found.map((name) => path.join(folder, name));
    }
    return [];
  }

  /** Files of the hub's Parquet copy, or of the dataset itself where there is no copy. */
  private async hubFiles(dataset: DatasetReference, split: string) {
    try {
      return await this.parquetFiles(dataset, split).catch(async (error) => {
        const own = await this.ownFiles(dataset, split).catch(() => undefined);
        if (own === undefined) throw error;
        return own;
      });
    } catch (error) {
      const { repo, config = DEFAULT_CONFIG } = dataset;
      const { directory } = this.options;
      const where = path.join(directory ?? "DIRECTORY", repo, config, `${split}.jsonl`);
      throw new CoppiceError(
        `the benchmark data ${repo} (${config}, ${split}) is not available: ${error instanceof Error ? error.message : error}; put it in ${where}${directory === undefined ? " and pass --data DIRECTORY" : ""}`,
      );
    }
  }

  private async parquetFiles({ repo, config }: DatasetReference, split: string) {
    const pattern = `${config ?? "*"}/${split}/*.parquet`;
    const { files, commit } = await this.download(repo, [pattern], { revision: PARQUET_REVISION });
    const configOf = (file: string) => path.basename(path.dirname(path.dirname(file)));
    const configs = [...new Set(files.map(configOf))];
    const chosen = configs.includes(DEFAULT_CONFIG) ? DEFAULT_CONFIG : configs[0];
    if (configs.length > 1 && chosen !== DEFAULT_CONFIG)
      throw new CoppiceError(`it has several configurations: ${configs.join(", ")}`);
    return { files: files.filter((file) => configOf(file) === chosen), commit };
  }

  private async ownFiles({ repo, config }: DatasetReference, split: string) {
    const names = `${split}{,[-.]*}.{${OWN_ENDINGS.join(",")}}`;
    const folders = config === undefined ? ["", "data/", `${DEFAULT_CONFIG}/`] : [`${config}/`, `data/${config}/`];
    const patterns = folders.map((folder) => folder + names);
    const { directory, files, commit } = await this.download(repo, patterns, {});
    // the same rows may be there as several kinds of file
    const inFolder = folders.map((folder) =>
      files.filter((file) => path.dirname(file) === path.resolve(directory, folder)),
    );
    const found = (inFolder.find((own) => own.length > 0) ?? files).filter((file) =>
      isPartOf(split, path.basename(file)),
    );
    if (found.length === 0) throw new CoppiceError(`it has no file ${patterns[0]}`);
    const ending = OWN_ENDINGS.find((one) => found.some((file) => file.endsWith(`.${one}`)));
    return { files: found.filter((file) => file.endsWith(`.${ending}`)), commit };
  }

  /** @throws CoppiceError when nothing matches */
  private async download(repo: string, patterns: readonly string[], options: HubOptions) {
    const { directory, commit } = await downloadRepo(
      "dataset",
      repo,
      { patterns },
      { ...this.options.hub, ...options },
    );
    const files = (await glob([...patterns], { cwd: directory, absolute: true })).sort();
    if (files.length === 0) throw new CoppiceError(`it has no file ${patterns[0]}`);
    return { directory, files, commit };
  }
}

/** Kinds of files of a dataset without a Parquet copy, best first. */
const OWN_ENDINGS = ["parquet", "jsonl", "jsonl.gz", "json", "csv", "tsv"];

/** Whether a file is a split, or a numbered part of it. */
const isPartOf = (split: string, name: string): boolean =>
  name.startsWith(split) &&
  ROW_ENDINGS.includes(endingOf(name)) &&
  /^(?:-\d+(?:-of-\d+)?(?:-[0-9a-f]{8,})?)?\.[a-z]+(?:\.(?:gz|zst))?$/.test(name.slice(split.length));

/** @throws FormatError when files of several kinds hold a split, which would then count several times */
function checkOneKind(place: string, names: readonly string[]): void {
  const kinds = new Set(names.map((name) => endingOf(name) + path.extname(name))); // compressed ones are another kind
  if (kinds.size > 1)
    throw new FormatError(
      `${place} has ${names.join(" and ")}: keep one kind of file, or the same rows would count twice`,
    );
}

const isFile = (name: string): boolean => existsSync(name) && statSync(name).isFile();

async function rowsOf(files: readonly string[]): Promise<DatasetRow[]> {
  const rows: DatasetRow[] = [];
  for (const file of files)
    for await (const { record, where } of readRows(file)) {
      if (rows.push({ record: plain(record), where }) > MOST_ROWS)
        throw new FormatError(`${file}: more than ${MOST_ROWS} rows, too many for a benchmark`);
    }
  return rows;
}

/** Turns Parquet's BigInts into numbers: neither JSON nor arithmetic accepts them. */
function plain(value: unknown): unknown {
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null || value instanceof Date) return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, plain(inner)]));
}
