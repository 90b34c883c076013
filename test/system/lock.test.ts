import { mkdirSync, readFileSync, statSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it, vi } from "vitest";
import { LOCK_FILE, lockDirectory, waitForDirectory } from "../../src/system/lock.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();

/** A directory whose lock is held as this process would hold it, but for some changes. */
function lockedBy(name: string, changes: Readonly<Record<string, unknown>>): string {
  const directory = path.join(root, name);
  mkdirSync(directory);
  const release = lockDirectory(directory);
  const own = JSON.parse(readFileSync(path.join(directory, LOCK_FILE), "utf8")) as Record<string, unknown>;
  release();
  writeFileSync(path.join(directory, LOCK_FILE), JSON.stringify({ ...own, ...changes }));
  return directory;
}

describe("a directory's lock", () => {
  it("is taken over from a process that is gone, but not from one that may run", () => {
    const gone = lockedBy("gone", { pid: 2 ** 22 + 1 });
    const release = lockDirectory(gone);
    expect(() => lockDirectory(gone)).toThrow(/in use by another run/);
    release();
    lockDirectory(gone)();
    expect(() => lockDirectory(lockedBy("elsewhere", { host: "another" }))).toThrow(/process \d+ on another/);
  });

  it("is waited for until it is released, or its holder is silent, or one need not wait any more", async () => {
    const directory = lockedBy("waited for", { pid: 2 ** 22 + 1 });
    const release = lockDirectory(directory);
    const order: string[] = [];
    const waiting = waitForDirectory(directory).then((releaseNext) => {
      order.push("locked");
      releaseNext();
    });
    const abort = new AbortController();
    const stopped = waitForDirectory(directory, abort.signal);
    abort.abort(new Error("enough"));
    await expect(stopped).rejects.toThrow("enough");
    order.push("released");
    release();
    await waiting;
    expect(order).toEqual(["released", "locked"]);
    const silent = lockedBy("silent", { host: "another" });
    utimesSync(path.join(silent, LOCK_FILE), new Date(0), new Date(0));
    (await waitForDirectory(silent))();
  });

  it("is taken over from an earlier attempt of the same job of Slurm, on whatever machine it was", () => {
    process.env.SLURM_JOB_ID = "7";
    process.env.SLURM_RESTART_COUNT = "1";
    const attempt = (name: string, job: string, restarts: number) =>
      lockedBy(name, { host: "another", slurm: { job, restarts } });
    lockDirectory(attempt("first attempt", "7", 0))();
    for (const [name, job, restarts] of [
      ["this attempt", "7", 1],
      ["another job", "8", 0],
    ] as const)
      expect(() => lockDirectory(attempt(name, job, restarts))).toThrow(/process \d+ on another/);
    delete process.env.SLURM_JOB_ID;
    delete process.env.SLURM_RESTART_COUNT;
  });

  it.runIf(process.platform === "linux")(
    "is taken over after a machine has been rebooted, not from one of its name",
    () => {
      lockDirectory(lockedBy("rebooted", { boot: "before" }))();
      const directory = lockedBy("machine", { machine: "a", boot: "before" });
      expect(() => lockDirectory(directory)).toThrow(/in use by another run/);
    },
  );

  it.runIf(process.platform === "linux")(
    "is taken over from a container of the same name when it has not been touched for minutes",
    () => {
      for (const [name, changes] of [
        ["restarted", { processes: "pid:[1]" }],
        ["elsewhere, without a name of its own", { machine: undefined, boot: "another" }],
      ] as const) {
        const directory = lockedBy(name, changes);
        const file = path.join(directory, LOCK_FILE);
        expect(() => lockDirectory(directory)).toThrow(/if that process no longer runs there, delete .*run\.lock/);
        const before = new Date(Date.now() - 180_000);
        utimesSync(file, before, before);
        lockDirectory(directory)();
      }
      const silent = lockedBy("of an older version", { processes: "pid:[1]", beats: undefined });
      utimesSync(path.join(silent, LOCK_FILE), 1, 1);
      expect(() => lockDirectory(silent)).toThrow(/in use by another run/);
    },
  );

  it("is touched as long as it is held", () => {
    vi.useFakeTimers();
    const directory = path.join(root, "beating");
    mkdirSync(directory);
    const release = lockDirectory(directory);
    const file = path.join(directory, LOCK_FILE);
    utimesSync(file, 1, 1);
    vi.advanceTimersByTime(60_000);
    expect(statSync(file).mtimeMs).toBeGreaterThan(1e6);
    release();
    expect(vi.getTimerCount()).toBe(0);
    vi.useRealTimers();
  });

  it.skipIf(process.platform === "win32")("that cannot be read is an error", () => {
    const directory = path.join(root, "dangling");
    mkdirSync(directory);
    symlinkSync(path.join(root, "nowhere"), path.join(directory, LOCK_FILE));
    expect(() => lockDirectory(directory)).toThrow(/does not name its holder/);
  });
});
