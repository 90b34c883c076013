import { mkdirSync, readdirSync } from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import type { Logger } from "pino";
import { UsageError } from "../system/errors.js";
import { serviceLogger } from "../system/log.js";
import { checkWritable, statOf } from "../system/places.js";
import { Database } from "./database.js";
import { DEFAULT_QUOTA, type FoundryOptions } from "./options.js";
import { Secrets } from "./secrets.js";
import { openStorage, type Storage } from "./storage.js";
import { Tenants } from "./store/tenants.js";

/** What the service, its workers and its commands open alike. */
export interface FoundryState {
  readonly db: Database;
  readonly storage: Storage;
  readonly tenants: Tenants;
  /** The data directory. */
  readonly directory: string;
  /** Directory for what tenants with keys download from the hub. */
  readonly hubCache: string;
}

/** The data directory by default. */
export const defaultDataDirectory = (): string =>
  path.join(process.env.XDG_DATA_HOME ?? path.join(homedir(), ".local", "share"), "coppice", "foundry");

export const newLogger = (level: FoundryOptions["logLevel"]): Logger => serviceLogger("foundry", level ?? "info");

/** Opens database, storage and secrets. @throws UsageError for a data directory that has other files */
export async function openState(options: FoundryOptions): Promise<FoundryState> {
  const directory = path.resolve(options.data ?? defaultDataDirectory());
  checkDataDirectory(directory);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const cache = path.join(directory, "cache");
  const storage = await openStorage(options.storage ?? path.join(directory, "files"), cache);
  const secrets = Secrets.open(directory);
  const url = options.databaseUrl;
  const db = url?.startsWith("socket:") ? await Database.connect(url) : await Database.open(url, directory);
  const tenants = new Tenants(db, secrets, { ...DEFAULT_QUOTA, ...options.quota });
  return { db, storage, tenants, directory, hubCache: path.join(cache, "hub") };
}

/** What a foundry keeps in its data directory. */
const FOUNDRY_FILES = ["database", "socket", "files", "cache", "secret"];

/** Keeps the database from being mixed with a user's own files. @throws UsageError unless the directory is empty or a foundry's */
function checkDataDirectory(directory: string): void {
  const stat = statOf(directory);
  if (stat === undefined) {
    checkWritable(directory, "--data");
    return;
  }
  if (!stat.isDirectory()) throw new UsageError(`${directory} is a file: --data needs a directory`);
  const names = readdirSync(directory).filter((name) => !name.startsWith("."));
  if (names.length > 0 && !names.some((name) => FOUNDRY_FILES.includes(name)))
    throw new UsageError(
      `${directory} is not empty and no foundry's (it has ${names.slice(0, 3).join(", ")}): choose another directory with --data`,
    );
}
