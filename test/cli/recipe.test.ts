import { existsSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import type { Command } from "commander";
import { describe, expect, it } from "vitest";
import { invocationOf } from "../../src/cli/invocation.js";
import { programFor } from "../../src/cli/program.js";
import { temporaryDirectory } from "../temporary.js";
import { coppice } from "./command-line.js";

const directory = temporaryDirectory();
const at = (name: string) => path.join(directory, name);

/** The command line of the compression that would begin. */
let begun: readonly string[] = [];
/** Commands are one for all files of tests that share this process. */
let isWatched = false;
const program = await programFor("compress");
(program.commands as Command[])[0]?.hook("preAction", (_, command) => {
  if (!isWatched) return;
  begun = invocationOf(command).words;
  throw new Error("enough");
});

/** The command line that a recipe amounts to. */
async function wordsOf(recipe: string, ...args: string[]): Promise<readonly string[]> {
  writeFileSync(at("recipe.yaml"), recipe);
  const line = ["compress", ...args, "--recipe", at("recipe.yaml")];
  isWatched = true;
  try {
    await expect(program.parseAsync(line, { from: "user" })).rejects.toThrow("enough");
  } finally {
    isWatched = false;
  }
  return begun;
}

const RECIPE = `# a comment
model: ./model
data: [a.txt, "b c.txt"]
target: 0.67x
out: ./smaller
tokens: 100M
seed: 007
recompute: true
gguf: [q4_k_m, q8_0]
`;

describe("a recipe", () => {
  it("gives the options of a command line, read as there", async () => {
    const words = await wordsOf(RECIPE);
    expect(words.slice(0, 2)).toEqual(["compress", "./model"]);
    const line = ` ${words.join(" ")} `;
    for (const part of ["--data a.txt b c.txt", "--target 0.67x", "--tokens 100000000", "--seed 7", "--recompute "])
      expect(line).toContain(` ${part}`);
    expect(line).toContain(" --gguf q4_k_m,q8_0 ");
  });

  it("leaves out what it says is not so", async () => {
    expect((await wordsOf(`${RECIPE}teacher-correction: false\n`)).join(" ")).not.toContain("--teacher-correction");
    expect((await wordsOf(`${RECIPE}teacher-correction: true\n`)).join(" ")).toContain("--teacher-correction");
  });

  it("gives way to the command line", async () => {
    const words = await wordsOf(RECIPE, "./other", "--target", "0.5x", "--data", "mine.txt");
    expect(words[1]).toBe("./other");
    expect(words.join(" ")).toContain("--data mine.txt --target 0.5x");
    expect(words).not.toContain("0.67x");
  });

  it.each([
    ["an unknown setting", "tagret: 0.5x", /no setting "tagret".*Did you mean target\?/],
    ["a value that its option refuses", "tokens: many", /bad\.yaml: tokens is "many": a positive number is needed/],
    ["a choice that is none", "loss: foward-kl", /loss is "foward-kl".*Did you mean forward-kl\?/],
    ["a flag that is neither on nor off", "recompute: perhaps", /true or false is needed/],
    ["an empty value", "target:", /target needs a value/],
    ["what is no YAML", "target: [0.5x", /is no recipe: .*line 1/s],
    ["what is no mapping", "- target", /must have lines like/],
  ])("refuses %s", async (_, text, message) => {
    writeFileSync(at("bad.yaml"), text);
    const { status, stderr } = await coppice("compress", "--recipe", at("bad.yaml"));
    expect(stderr).toMatch(message);
    expect(status).toBe(2);
  });

  it("that is not there is said to be missing", async () => {
    const { status, stderr } = await coppice("compress", "--recipe", at("none.yaml"));
    expect({ status, stderr }).toEqual({
      status: 2,
      stderr: expect.stringMatching(/none\.yaml cannot be read \(ENOENT\)/),
    });
  });
});

describe("coppice init", () => {
  const given = ["--model", "org/name", "--data", "a: b.txt", "c.txt", "--target", "phone-8gb"];

  it("writes a recipe that compress takes", async () => {
    const file = at("written.yaml");
    const { status, stdout } = await coppice("init", file, ...given);
    expect({ status, stdout }).toEqual({
      status: 0,
      stdout: expect.stringContaining(`coppice compress --recipe ${file}`),
    });
    const words = await wordsOf(readFileSync(file, "utf8"));
    expect(words.slice(0, 2)).toEqual(["compress", "org/name"]);
    expect(words.join(" ")).toContain("--data a: b.txt c.txt --target phone-8gb");
    const everything = readFileSync(file, "utf8").replace(/^#(\w[\w-]*: )/gm, "$1");
    expect((await wordsOf(everything)).join(" ")).toContain("--tokens 100000000"); // what is commented out is right, too
  });

  it("says what to pass where it cannot ask", async () => {
    const { status, stderr } = await coppice("init", at("never.yaml"), "--model", "org/name");
    expect({ status, stderr }).toEqual({
      status: 2,
      stderr: expect.stringMatching(/pass --model, --data and --target/),
    });
    expect(existsSync(at("never.yaml"))).toBe(false);
  });

  it("replaces no file", async () => {
    writeFileSync(at("kept.yaml"), "mine");
    const { status } = await coppice("init", at("kept.yaml"), ...given);
    expect(status).toBe(2);
    expect(readFileSync(at("kept.yaml"), "utf8")).toBe("mine");
  });
});
