import { existsSync, readFileSync } from "node:fs";
import { freemem, totalmem } from "node:os";
import path from "node:path";

/** Measures this process's peak resident memory while something runs. */
export class PeakMemory {
  private peak = process.memoryUsage.rss();
  private readonly before = process.resourceUsage().maxRSS;
  private readonly timer = setInterval(() => this.sample(), 50).unref();

  private sample(): void {
    this.peak = Math.max(this.peak, process.memoryUsage.rss());
  }

  /** Stops measuring. @returns {@link soFar} */
  stop(): number {
    clearInterval(this.timer);
    return this.soFar();
  }

  /** The highest resident set since construction, in bytes: sampled every 50 ms, and exact when it is the highest since the process started. */
  soFar(): number {
    this.sample();
    const lifetime = process.resourceUsage().maxRSS;
    return lifetime > this.before ? Math.max(this.peak, lifetime * 1024) : this.peak;
  }
}

/** Memory that this process can still take, in bytes: what the machine has free, or less where its container has a limit. */
export function freeMemory(): number {
  const limit = memoryLimit();
  if (limit >= totalmem()) return freemem();
  const taken = takenInGroup(GROUPS);
  return taken === undefined ? process.availableMemory() : Math.max(0, Math.min(freemem(), limit - taken));
}

/** Where Linux shows control groups. */
const GROUPS = "/sys/fs/cgroup";

/**
 * What a container's processes take but for files in the cache, which make room when memory is needed.
 * @param groups the folder of control groups (version 2)
 * @returns bytes; undefined where the system does not say
 */
export function takenInGroup(groups: string): number | undefined {
  try {
    const [, own = "/"] = /^0::(.*)$/m.exec(readFileSync("/proc/self/cgroup", "utf8")) ?? [];
    const folders = [path.join(groups, own), groups];
    const folder = folders.find((candidate) => existsSync(path.join(candidate, "memory.current")));
    if (folder === undefined) return undefined;
    const current = Number(readFileSync(path.join(folder, "memory.current"), "utf8"));
    const stat = readFileSync(path.join(folder, "memory.stat"), "utf8");
    const files = [...stat.matchAll(/^(?:in)?active_file (\d+)$/gm)];
    const cached = files.reduce((sum, [, bytes]) => sum + Number(bytes), 0);
    return Number.isFinite(current) ? Math.max(0, current - cached) : undefined;
  } catch {
    return undefined;
  }
}

/** Memory that this process may take at most, in bytes: the machine's, or less where its container has a limit. */
export const memoryLimit = (): number => Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
