import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { LOCK_FILE, lockDirectory } from "../../src/system/lock.js";
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

  it.runIf(process.platform === "linux")(
    "is taken over after a machine has been rebooted, not from one of its name",
    () => {
      lockDirectory(lockedBy("rebooted", { boot: "before" }))();
      const directory = lockedBy("machine", { machine: "a", boot: "before" });
      const hasMachine = (
        JSON.parse(readFileSync(path.join(lockedBy("own", {}), LOCK_FILE), "utf8")) as { machine?: string }
      ).machine;
      if (hasMachine === undefined) lockDirectory(directory)();
      else expect(() => lockDirectory(directory)).toThrow(/in use by another run/);
    },
  );

  it.skipIf(process.platform === "win32")("that cannot be read is an error", () => {
    const directory = path.join(root, "dangling");
    mkdirSync(directory);
    symlinkSync(path.join(root, "nowhere"), path.join(directory, LOCK_FILE));
    expect(() => lockDirectory(directory)).toThrow(/does not name its holder/);
  });
});
