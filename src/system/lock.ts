import { randomBytes } from "node:crypto";
import { linkSync, readFileSync, readlinkSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import path from "node:path";
import { CoppiceError } from "./errors.js";
import { temporaryBeside } from "./files.js";

/** The file in a directory that says which process writes there. */
export const LOCK_FILE = "run.lock";

/** Who holds a lock. */
interface Holder {
  readonly pid: number;
  readonly host: string;
  /** Process numbers mean the same processes only within one of these; on Linux alone. */
  readonly processes?: string | undefined;
  /** Changes when the machine starts; on Linux alone. */
  readonly boot?: string | undefined;
  /** When the process began, in the kernel's ticks: its number may be another's by now; on Linux alone. */
  readonly began?: string | undefined;
  /** When it took the lock. */
  readonly since: string;
  readonly token: string;
}

/** Locks of this process, by file, with their content. */
const held = new Map<string, string>();

process.on("exit", () => {
  for (const [file, content] of held) release(file, content);
});

/**
 * Takes a directory for this process alone. A lock that a process left behind, because it was killed or the machine went down, is
 * taken over; where that cannot be told, on another machine or in another container, it counts as held.
 * @returns gives it back
 * @throws CoppiceError saying who holds it
 */
export function lockDirectory(directory: string): () => void {
  const file = path.join(path.resolve(directory), LOCK_FILE);
  const content = JSON.stringify(thisProcess());
  for (let attempt = 0; !create(file, content); attempt++) {
    const found = read(file);
    if (found === undefined) continue; // given back in this moment
    const holder = parse(found);
    if (attempt > 10 || held.has(file) || holder === undefined || !isGone(holder))
      throw heldBy(directory, file, holder);
    removeStale(file, found);
  }
  held.set(file, content);
  return () => release(file, content);
}

function thisProcess(): Holder {
  return {
    pid: process.pid,
    host: hostname(),
    processes: tryRead(() => readlinkSync("/proc/self/ns/pid")),
    boot: tryRead(() => readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()),
    began: beginningOf(process.pid),
    since: new Date().toISOString(),
    token: randomBytes(8).toString("hex"),
  };
}

/** Field 22 of /proc/PID/stat; the second, a name in parentheses, may hold spaces. */
const beginningOf = (pid: number): string | undefined =>
  tryRead(() => readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ")[19]);

function tryRead<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** Puts a lock file there with its content, unless there is one. */
function create(file: string, content: string): boolean {
  const temporary = temporaryBeside(file);
  writeFileSync(temporary, content);
  try {
    linkSync(temporary, file);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") return false;
    return createWithoutLink(file, content); // some file systems have no links
  } finally {
    rmSync(temporary, { force: true });
  }
}

function createWithoutLink(file: string, content: string): boolean {
  try {
    writeFileSync(file, content, { flag: "wx" });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

const read = (file: string): string | undefined => tryRead(() => readFileSync(file, "utf8"));

function parse(content: string): Holder | undefined {
  const value = tryRead(() => JSON.parse(content) as Partial<Holder> | null);
  return typeof value?.pid === "number" && typeof value.host === "string" ? (value as Holder) : undefined;
}

function isGone({ pid, host, processes, boot, began }: Holder): boolean {
  const own = thisProcess();
  if (host !== own.host) return false;
  if (boot !== own.boot) return true; // the machine was started again
  if (processes !== own.processes) return false;
  return !isAlive(pid) || beginningOf(pid) !== began;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM"; // another user's
  }
}

/** Removes a lock that was found stale, unless another process has replaced it in the meantime. */
function removeStale(file: string, found: string): void {
  const aside = temporaryBeside(file);
  try {
    renameSync(file, aside);
  } catch {
    return; // another process was faster
  }
  if (read(aside) !== found) create(file, read(aside) ?? "");
  rmSync(aside, { force: true });
}

function release(file: string, content: string): void {
  held.delete(file);
  if (read(file) === content) rmSync(file, { force: true });
}

function heldBy(directory: string, file: string, holder: Holder | undefined): CoppiceError {
  if (holder === undefined)
    return new CoppiceError(
      `${directory} is locked by ${file}, which does not say by whom: delete it if no run is going on`,
    );
  const { pid, host, since } = holder;
  const elsewhere = host === hostname() ? "" : `; if no such process runs there any more, delete ${file}`;
  return new CoppiceError(
    `${directory} is in use by another run: process ${pid} on ${host}, since ${since}; wait for its end, or choose another --out${elsewhere}`,
  );
}
