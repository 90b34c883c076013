import { randomBytes } from "node:crypto";
import { linkSync, readFileSync, readlinkSync, renameSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { CoppiceError } from "./errors.js";
import { temporaryBeside } from "./files.js";
import { toTheSecond } from "./format.js";

/** The file that says which process writes in a directory. */
export const LOCK_FILE = "run.lock";

/** Who holds a lock. */
interface Holder {
  readonly pid: number;
  readonly host: string;
  /** The namespace within which process ids are comparable; on Linux only. */
  readonly processes?: string | undefined;
  /** Of the machine, where its system has one. */
  readonly machine?: string | undefined;
  /** Changes whenever the machine boots; on Linux only. */
  readonly boot?: string | undefined;
  /** When the process started, in clock ticks, as its id may be reused; on Linux only. */
  readonly began?: string | undefined;
  /** When it took the lock. */
  readonly since: string;
  /** Whether it touches the lock from time to time as long as it runs. */
  readonly beats?: boolean | undefined;
  /** The job of Slurm, and how often it was started again: of its attempts only one runs at a time. */
  readonly slurm?: { readonly job: string; readonly restarts: number } | undefined;
  readonly token: string;
}

/** The contents of this process's locks, by file. */
const held = new Map<string, string>();

/** How often a holder touches its locks, and after what time without that it is taken for dead where nothing else can be known of it. */
const [BEAT_MS, DEAD_AFTER_MS] = [15_000, 120_000];
process.on("exit", releaseAll);

/** Releases the locks of this process: before it ends without an exit event. */
export function releaseAll(): void {
  for (const [file, content] of held) release(file, content);
}

/**
 * Locks a directory for this process. A lock left behind by a process that was killed, or by a machine that went down, is taken
 * over; where that cannot be known, because a container of the same name took its place, when it has not been touched for two minutes. On
 * another machine it counts as held, unless an earlier attempt of the same job of Slurm left it.
 * @returns a function that releases the lock
 * @throws CoppiceError naming its holder
 */
export function lockDirectory(directory: string): () => void {
  const file = path.join(path.resolve(directory), LOCK_FILE);
  const content = JSON.stringify(thisProcess());
  for (let attempt = 0; !create(file, content); attempt++) {
    const found = read(file);
    if (found === undefined && attempt <= 10) continue; // released just now
    const holder = found === undefined ? undefined : parse(found);
    if (found === undefined || attempt > 10 || held.has(file) || holder === undefined || !isGone(holder, file))
      throw lockedError(directory, file, holder);
    removeStale(file, found);
  }
  held.set(file, content);
  const touch = () => tryRead(() => utimesSync(file, new Date(), new Date()));
  const heart = setInterval(touch, BEAT_MS).unref();
  return () => {
    clearInterval(heart);
    release(file, content);
  };
}

/** How often a lock is looked at that another process holds. */
const WAIT_MS = 500;

/**
 * Locks a directory as {@link lockDirectory} does, once whoever holds it has released it, or has not touched it for two minutes.
 * @returns a function that releases the lock
 * @throws the signal's reason
 */
export async function waitForDirectory(directory: string, signal?: AbortSignal): Promise<() => void> {
  const file = path.join(path.resolve(directory), LOCK_FILE);
  for (;;) {
    signal?.throwIfAborted();
    try {
      return lockDirectory(directory);
    } catch (error) {
      if (!(error instanceof CoppiceError)) throw error;
    }
    const found = read(file);
    const holder = found === undefined ? undefined : parse(found);
    if (found !== undefined && holder !== undefined && isSilent(holder, file)) removeStale(file, found);
    await wait(WAIT_MS);
  }
}

function thisProcess(): Holder {
  return {
    pid: process.pid,
    host: hostname(),
    processes: tryRead(() => readlinkSync("/proc/self/ns/pid")),
    machine: tryRead(() => readFileSync("/etc/machine-id", "utf8").trim() || undefined),
    boot: tryRead(() => readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim()),
    began: startTimeOf(process.pid),
    since: new Date().toISOString(),
    beats: true,
    slurm: slurmAttempt(),
    token: randomBytes(8).toString("hex"),
  };
}

function slurmAttempt(): Holder["slurm"] {
  const { SLURM_JOB_ID: job, SLURM_RESTART_COUNT: restarts = "0" } = process.env;
  return job ? { job, restarts: Number(restarts) } : undefined;
}

/** Field 22 of /proc/PID/stat. The second field, a name in parentheses, may contain spaces. */
const startTimeOf = (pid: number): string | undefined =>
  tryRead(() => readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ")[19]);

function tryRead<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** Creates a lock file with its content. @returns false when there is one already */
function create(file: string, content: string): boolean {
  const temporary = temporaryBeside(file);
  writeFileSync(temporary, content);
  try {
    linkSync(temporary, file);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") return false;
    return createWithoutLink(file, content); // some file systems have no hard links
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

function isGone(holder: Holder, file: string): boolean {
  const { pid, host, machine, processes, boot, began, slurm } = holder;
  const own = thisProcess();
  if (slurm !== undefined && slurm.job === own.slurm?.job && slurm.restarts < own.slurm.restarts) return true;
  if (host !== own.host) return false;
  if (machine !== undefined && own.machine !== undefined && machine !== own.machine) return false; // of the same name
  const isSame = machine !== undefined && own.machine !== undefined;
  if (boot !== own.boot && isSame) return true; // the machine has been rebooted
  // another container of that name, or another machine whose containers have no names of their own
  if (boot !== own.boot || processes !== own.processes) return isSilent(holder, file);
  return !isAlive(pid) || startTimeOf(pid) !== began;
}

/** Whether a holder has ceased to touch its lock. */
const isSilent = ({ beats }: Holder, file: string): boolean =>
  beats === true && Date.now() - (tryRead(() => statSync(file).mtimeMs) ?? Date.now()) > DEAD_AFTER_MS;

/** Whether a process of this machine runs. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM"; // it is another user's
  }
}

/** Removes a stale lock, unless another process has replaced it meanwhile. */
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

function lockedError(directory: string, file: string, holder: Holder | undefined): CoppiceError {
  if (holder === undefined)
    return new CoppiceError(
      `${directory} is locked by ${file}, which does not name its holder: delete it if no run is active`,
    );
  const { pid, host, since, processes, boot } = holder;
  const own = thisProcess();
  const isKnown = host === own.host && processes === own.processes && boot === own.boot;
  const elsewhere = isKnown ? "" : `; if that process no longer runs there, delete ${file}`;
  return new CoppiceError(
    `${directory} is in use by another run: process ${pid} on ${host}, since ${toTheSecond(since)}; wait until it ends, or choose another --out${elsewhere}`,
  );
}
