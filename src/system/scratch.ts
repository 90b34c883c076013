import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import path from "node:path";
import { cacheDirectory } from "./files.js";
import { isAlive } from "./lock.js";

/**
 * A new directory for large files of this process: beside the cache, because the system's directory for temporary files is in memory on
 * some systems; there only where the cache cannot be written.
 */
export function scratchDirectory(name: string): string {
  const make = (parent: string): string => {
    mkdirSync(parent, { recursive: true });
    removeAbandoned(parent);
    return mkdtempSync(path.join(parent, `coppice-${name}-${hostname()}-${process.pid}-`));
  };
  try {
    return make(path.join(cacheDirectory(), "scratch"));
  } catch {
    return make(tmpdir());
  }
}

/** Scratch of processes of this machine that are gone is removed after a day. */
const ABANDONED_MILLISECONDS = 24 * 3600 * 1000;

function removeAbandoned(parent: string): void {
  for (const name of readdirSync(parent)) {
    const [, host, pid] = /^coppice-[a-z]+-(.*)-(\d+)-[^-]+$/.exec(name) ?? [];
    if (host === hostname()) removeIfAbandoned(path.join(parent, name), Number(pid));
  }
}

/** Removes what processes that were killed while they wrote `file` have left beside it (see `temporaryBeside`), after a day. */
export function removeAbandonedCopies(file: string): void {
  const directory = path.dirname(path.resolve(file));
  if (!existsSync(directory)) return;
  const beginning = `${path.basename(file)}.partial-`;
  for (const name of readdirSync(directory)) {
    const [, pid] = name.startsWith(beginning) ? (/^(\d+)-[0-9a-f]{8}$/.exec(name.slice(beginning.length)) ?? []) : [];
    if (pid !== undefined) removeIfAbandoned(path.join(directory, name), Number(pid));
  }
}

function removeIfAbandoned(entry: string, pid: number): void {
  if (isAlive(pid)) return;
  try {
    if (Date.now() - statSync(entry).mtimeMs > ABANDONED_MILLISECONDS) rmSync(entry, { recursive: true, force: true });
  } catch {} // another process was faster
}
