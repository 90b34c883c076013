import path from "node:path";
import { describe, expect, it } from "vitest";
import { command, environment } from "../../src/cli/command.js";
import {
  parseAtLeastOne,
  parseBytes,
  parseCount,
  parseNonNegative,
  parseSeparator,
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

describe("options that would change nothing", () => {
  const data = ["--data", path.join(root, "examples/corpus")];
  it.each([
    [
      ["plan", teacher, "--device", "phone-8gb", "--target", "0.5x"],
      /--target would change nothing: a plan for phone-8gb/,
    ],
    [["plan", teacher, "--device", "phone-8gb", "--per-layer"], /--per-layer would change nothing/],
    [["plan", teacher, "--target", "0.5x", "--context-size", "64"], /--context-size is for a plan for a device/],
    [["plan", teacher, "--target", "0.5x", "--bits", "8"], /--bits is for targets in bytes/],
    [["plan", teacher, "--target", "0.5x", "--samples", "8"], /--samples would change nothing without --data/],
    [["plan", teacher, "--device", "phone-8gb", "--memory", "1GiB"], /--memory would change nothing/],
    [["quantize", teacher, "--type", "q8_0", "--probe", "--out", "/nowhere/x.gguf"], /--probe.* for --size/],
    [
      ["quantize", teacher, "--type", "q8_0", "--samples", "8", "--out", "/nowhere/x.gguf"],
      /--samples.* are for --data/,
    ],
    [["generate", teacher, "--prompt", "x", "--draft-tokens", "4"], /--draft-tokens is for --draft/],
    [
      ["prune", teacher, "--target", "ffn=64", ...data, "--axes", "ffn", "--candidates", "3", "--out", "/nowhere/x"],
      /ffn=64 names the sizes: --axes and --candidates would change nothing/,
    ],
    [
      ["compress", teacher, "--target", "0.5x", ...data, "--evaluate-limit", "5", "--out", "/nowhere/x"],
      /for --evaluate/,
    ],
    [["prune", teacher, "--target", "layers=40", ...data, "--out", "/nowhere/x"], /layers=40: the model has 4 layers/],
  ] as const)("are refused: %j", async (args, message) => {
    const { status, stderr } = await coppice(...args);
    expect(stderr).toMatch(message);
    expect(status).not.toBe(0);
  });
});

describe("a separator", () => {
  it("may hold line ends, and is not empty", () => {
    expect(parseSeparator("\\n\\n")).toBe("\n\n");
    expect(parseSeparator("a\\tb\\\\n")).toBe("a\tb\\n");
    expect(parseSeparator("<|endoftext|>")).toBe("<|endoftext|>");
    expect(() => parseSeparator("")).toThrow(/cannot be empty/);
  });
});

it("a number in the environment is read as one on the command line is", async () => {
  process.env.COPPICE_SERVE_QUEUE = "many";
  const { status, stderr } = await coppice("serve", teacher);
  delete process.env.COPPICE_SERVE_QUEUE;
  expect(status).toBe(2);
  expect(stderr).toMatch(/--queue.*many.*is invalid/);
});

describe("a switch's environment variable", () => {
  it.each([
    ["1", true],
    ["true", true],
    ["false", undefined],
    ["0", undefined],
    ["", undefined],
  ])("%j makes it %s", (value, expected) => {
    process.env.COPPICE_TEST_LOUD = value;
    const own = command("test", "a test")
      .option("--loud", "loud")
      .option("--name <text>", "name")
      .with(environment("COPPICE_TEST"));
    process.env.COPPICE_TEST_NAME = "no";
    own.parse([], { from: "user" });
    expect(own.opts().loud).toBe(expected);
    expect(own.opts().name).toBe("no");
    own.parse(["--name", "given"], { from: "user" });
    expect(own.opts().name).toBe("given");
    delete process.env.COPPICE_TEST_LOUD;
    delete process.env.COPPICE_TEST_NAME;
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
