import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, utimesSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import path from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { removeAbandonedCopies, scratchDirectory } from "../../src/system/scratch.js";
import { temporaryDirectory } from "../temporary.js";

afterEach(() => vi.unstubAllEnvs());

/** The number of a process that has ended. */
const ended = spawnSync(process.execPath, ["-e", ""]).pid;

describe("a directory for scratch files", () => {
  it("lies beside the cache, and is another one each time", () => {
    const cache = temporaryDirectory();
    vi.stubEnv("COPPICE_CACHE", cache);
    const [first, second] = [scratchDirectory("states"), scratchDirectory("states")];
    expect(path.dirname(first)).toBe(path.join(cache, "scratch"));
    expect(second).not.toBe(first);
    expect([first, second].every(existsSync)).toBe(true);
  });

  it("is the system's where the cache cannot be written", () => {
    const file = path.join(temporaryDirectory(), "file");
    writeFileSync(file, "");
    vi.stubEnv("COPPICE_CACHE", file);
    vi.stubEnv("TMPDIR", temporaryDirectory());
    expect(existsSync(scratchDirectory("states"))).toBe(true);
  });

  it("clears away what processes of this machine left a day ago, and nothing else", () => {
    const cache = temporaryDirectory();
    vi.stubEnv("COPPICE_CACHE", cache);
    const left = (host: string, pid: number, hours: number): string => {
      const directory = path.join(cache, "scratch", `coppice-refit-${host}-${pid}-x${hours}`);
      mkdirSync(directory, { recursive: true });
      const then = Date.now() / 1000 - 3600 * hours;
      utimesSync(directory, then, then);
      return directory;
    };
    const kept = [
      left(hostname(), ended, 23),
      left(hostname(), process.pid, 25),
      left("elsewhere", ended, 25),
      path.join(cache, "scratch", "mine"),
    ];
    mkdirSync(kept.at(-1)!);
    const abandoned = left(hostname(), ended, 25);
    scratchDirectory("states");
    expect(existsSync(abandoned)).toBe(false);
    expect(kept.map((directory) => existsSync(directory))).toEqual([true, true, true, true]);
  });
});

describe("copies that killed processes left beside a file", () => {
  it("are cleared away after a day, and nothing else", () => {
    const directory = temporaryDirectory();
    const left = (name: string, hours: number): string => {
      const file = path.join(directory, name);
      mkdirSync(file);
      writeFileSync(path.join(file, "model.gguf"), "");
      const then = Date.now() / 1000 - 3600 * hours;
      utimesSync(file, then, then);
      return file;
    };
    const abandoned = left(`model.gguf.partial-${ended}-0123abcd`, 25);
    const kept = [
      left(`model.gguf.partial-${ended}-0123abce`, 23),
      left(`model.gguf.partial-${process.pid}-0123abcd`, 25),
      left(`other.gguf.partial-${ended}-0123abcd`, 25),
      left(`model.gguf.partial-${ended}-mine`, 25),
      left("model.gguf", 25),
    ];
    removeAbandonedCopies(path.join(directory, "model.gguf"));
    expect(existsSync(abandoned)).toBe(false);
    expect(kept.map((file) => existsSync(file))).toEqual(kept.map(() => true));
    removeAbandonedCopies(path.join(directory, "none", "model.gguf"));
  });
});
