import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
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
    if (host !== hostname() || isAlive(Number(pid))) continue;
    const directory = path.join(parent, name);
    try {
      if (Date.now() - statSync(directory).mtimeMs > ABANDONED_MILLISECONDS)
        rmSync(directory, { recursive: true, force: true });
    } catch {} // another process was faster
  }
}
