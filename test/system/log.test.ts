import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import path from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { isLogging, setLogLevels } from "../../src/system/log.js";
import { temporaryDirectory } from "../temporary.js";

const main = path.resolve(import.meta.dirname, "../../bin/coppice.cjs");
const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");

const inspect = (flags: readonly string[], variables: NodeJS.ProcessEnv) =>
  spawnSync(process.execPath, [main, "inspect", teacher, "--json", ...flags], {
    env: { ...process.env, ...variables },
    encoding: "utf8",
  });

interface Line {
  readonly time: string;
  readonly level: string;
  readonly component: string;
  readonly message: string;
}
const linesOf = (stderr: string): Line[] =>
  stderr
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Line);

describe("the log", () => {
  it("says nothing unasked", () => {
    expect(inspect([], {})).toMatchObject({ status: 0, stderr: "" });
  });

  it("is lines of JSON on standard error: files and their sizes, beginnings and ends", () => {
    const { stdout, stderr } = inspect(["--verbose"], {});
    expect(JSON.parse(stdout)).toMatchObject({ architecture: "llama" });
    const lines = linesOf(stderr);
    for (const line of lines) {
      expect(line).toMatchObject({ level: "debug", component: expect.any(String), message: expect.any(String) });
      expect(Number.isNaN(Date.parse(line.time))).toBe(false);
    }
    expect(lines[0]).toMatchObject({ component: "cli", message: "command begun", command: "inspect" });
    expect(lines).toContainEqual(
      expect.objectContaining({
        message: "file opened",
        file: path.join(teacher, "model.safetensors"),
        bytes: 1_710_280,
      }),
    );
    expect(lines.at(-1)).toMatchObject({ message: "command ended", peakMemoryBytes: expect.any(Number) });
  });

  it("tells the device and its kernels, and whether the cache was of use", () => {
    const directory = temporaryDirectory();
    const data = path.join(directory, "stories.txt");
    writeFileSync(data, "One evening a kite flew over the hill. ".repeat(40));
    const args = [main, "perplexity", teacher, "--data", data, "--device", "cpu", "--threads", "1", "--verbose"];
    const env = { ...process.env, COPPICE_CACHE: path.join(directory, "cache"), COPPICE_KERNELS: "none" };
    const logged = () => {
      const { stderr } = spawnSync(process.execPath, args, { env, encoding: "utf8" });
      return linesOf(
        stderr
          .split("\n")
          .filter((line) => line.startsWith("{"))
          .join("\n"),
      );
    };
    const [first, second] = [logged(), logged()];
    const device = { message: "device opened", component: "engine", kind: "cpu", threads: 1, kernels: "ggml" };
    expect(first).toContainEqual(expect.objectContaining(device));
    expect(first.map(({ message }) => message)).toContain("tokens not cached");
    expect(second.map(({ message }) => message)).toContain("tokens cached");
  });

  it("has levels for components", () => {
    const { stderr } = inspect([], { COPPICE_LOG: "silent,files=debug" });
    expect(new Set(linesOf(stderr).map(({ component }) => component))).toEqual(new Set(["files"]));
  });

  it("refuses a level that is none, and says what was meant", () => {
    const { status, stderr } = inspect([], { COPPICE_LOG: "dbug" });
    expect(status).toBe(2);
    expect(stderr).toMatch(/COPPICE_LOG is "dbug".*Did you mean debug\?/);
  });
});

describe("log levels", () => {
  afterEach(() => setLogLevels("silent"));

  it("are set in a program", () => {
    setLogLevels("engine=debug");
    expect(isLogging()).toBe(true);
    setLogLevels("silent");
    expect(isLogging()).toBe(false);
    expect(() => setLogLevels("info,loud")).toThrow(/a level is one of silent, error, warn, info, debug, trace/);
  });
});
