import { spawnSync } from "node:child_process";
import path from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { isLogging, setLogLevels } from "../../src/system/log.js";

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
