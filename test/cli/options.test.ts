import path from "node:path";
import { describe, expect, it } from "vitest";
import {
  parseAtLeastOne,
  parseBytes,
  parseCount,
  parseNonNegative,
  parseShare,
  parseWhole,
} from "../../src/cli/parse.js";
import { coppice } from "./command-line.js";

const root = path.resolve(import.meta.dirname, "../..");
const teacher = path.join(root, "examples/tiny-teacher");

describe("sizes", () => {
  it.each([
    ["4GiB", 4 * 2 ** 30],
    ["4gib", 4 * 2 ** 30],
    ["1.5 GB", 1.5e9],
    ["600KB", 600_000],
    ["2TB", 2e12],
    ["12345", 12345],
  ])("%s is read", (text, bytes) => expect(parseBytes(text)).toBe(bytes));
  it.each(["5B", "0", "-1", "0.2", "1e400", "0x10", "Infinity", "", "GiB", "9e999TB"])("%j is refused", (text) => {
    expect(() => parseBytes(text)).toThrow(/a size is needed/);
  });

  it("have the same units in every command that splits files", async () => {
    for (const command of ["prune", "export", "quantize"]) {
      const { status, stderr } = await coppice(command, teacher, "--out", "/nowhere/x", "--shard-bytes", "5B");
      expect({ command, status }).toEqual({ command, status: 2 });
      expect(stderr).toMatch(/a size is needed, for example 4GiB/);
    }
  });
});

describe("numbers", () => {
  it.each<[(text: string) => number, string]>([
    [parseCount, "1e400"],
    [parseCount, "0"],
    [parseCount, "-5"],
    [parseWhole, "99999999999999999999"],
    [parseWhole, "1.5"],
    [parseAtLeastOne, "0"],
    [parseNonNegative, "abc"],
    [parseNonNegative, ""],
    [parseNonNegative, "-0.1"],
    [parseNonNegative, "Infinity"],
    [parseShare, "1"],
    [parseShare, "0"],
    [parseShare, "40"],
    [parseShare, "40%"],
  ])("%s refuses %j", async (parse, text) => {
    expect(() => parse(text)).toThrow(/needed/);
  });

  it.each([
    ["--weight-decay", "much"],
    ["--cross-entropy-weight", "NaN"],
    ["--batch-size", "0"],
    ["--sequence-length", "0"],
    ["--learning-rate", "0"],
    ["--threads", "0"],
  ])("distill refuses %s %s as bad usage", async (option, value) => {
    const { status, stderr } = await coppice(
      "distill",
      teacher,
      "--teacher",
      teacher,
      "--data",
      "x",
      "--out",
      "y",
      option,
      value,
    );
    expect(status).toBe(2);
    expect(stderr).toContain(`'${value}' is invalid`);
  });
});
