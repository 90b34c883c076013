import { spawnSync } from "node:child_process";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { complete } from "../../src/cli/completion.js";
import { programFor } from "../../src/cli/program.js";
import { temporaryDirectory } from "../temporary.js";
import { coppice } from "./command-line.js";

const program = await programFor("completion");
const wordsFor = async (...typed: string[]) => {
  const { words, files } = await complete(program, typed);
  return { words: words.map(({ word }) => word), files };
};

describe("completion", () => {
  it("offers every command, and none that is hidden", async () => {
    const { words } = await wordsFor("");
    expect(words).toEqual(program.commands.map((one) => one.name()).concat("help"));
    expect((await wordsFor("comp")).words).toEqual(["compress", "completion"]);
    expect((await wordsFor("foundry", "keys", "")).words).toEqual(["add", "list", "remove", "help"]);
    expect((await wordsFor("completion", "")).words).toEqual(["bash", "zsh", "fish"]);
  });

  it("offers the options that a command declares, without those that are given", async () => {
    const { words } = await wordsFor("compress", "./model", "--target", "0.5x", "--ta");
    expect(words).toEqual([]);
    expect((await wordsFor("compress", "--te")).words).toEqual([
      "--temperature",
      "--teacher-cache",
      "--teacher-correction",
    ]);
    for (const command of program.commands)
      for (const { long, hidden } of command.options)
        if (!hidden) expect((await wordsFor(command.name(), `${long}`)).words).toContain(long);
  });

  it("offers the values of an option: choices, kinds in a list, tasks, devices, files", async () => {
    expect(await wordsFor("inspect", "--device", "c")).toEqual({ words: ["cuda", "cpu"], files: false });
    expect((await wordsFor("quantize", "m", "--type", "q8_0,q4_k")).words).toEqual(["q8_0,q4_k_m", "q8_0,q4_k_s"]);
    expect((await wordsFor("evaluate", "m", "--tasks", "piqa,hella")).words).toEqual(["piqa,hellaswag"]);
    expect((await wordsFor("compress", "m", "--target", "phone")).words).toContain("phone-8gb");
    expect(await wordsFor("compress", "m", "--data", "a.txt", "")).toEqual({ words: [], files: true }); // takes several
    expect(await wordsFor("compress", "m", "--tokens", "")).toEqual({ words: [], files: false });
    expect(await wordsFor("compress", "")).toEqual({ words: [], files: true });
  });

  it("refuses a shell that it has no script for", async () => {
    expect(await coppice("completion", "bsh")).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/bash, zsh, fish/),
    });
  });
});

const root = path.resolve(import.meta.dirname, "../..");
const folder = temporaryDirectory();
const bin = path.join(folder, "bin");
mkdirSync(bin);
symlinkSync(path.join(root, "bin/coppice.cjs"), path.join(bin, "coppice"));
writeFileSync(path.join(folder, "corpus.jsonl"), "");
const env = { ...process.env, PATH: `${bin}:${process.env.PATH}` };

/** How each shell is asked what it would offer after a line, by the script that it gets. */
const SHELLS = {
  bash: (script: string, words: readonly string[]) =>
    `source ${script}; COMP_WORDS=(coppice ${words.map((word) => `'${word}'`).join(" ")}); COMP_CWORD=${words.length}; _coppice; printf '%s\\n' "\${COMPREPLY[@]}"`,
  zsh: (script: string, words: readonly string[]) =>
    `_describe() { print -l -- \${candidates%%:*} }; _files() { print FILES }; source ${script}; words=(coppice ${words.map((word) => `'${word}'`).join(" ")}); CURRENT=${words.length + 1}; _coppice`,
  fish: (script: string, words: readonly string[]) => `source ${script}; complete -C 'coppice ${words.join(" ")}'`,
} as const;

describe.each(Object.keys(SHELLS) as (keyof typeof SHELLS)[])("%s, with the script that is printed", (shell) => {
  const isThere = spawnSync(shell, ["-c", "true"]).status === 0;
  const script = path.join(folder, `coppice.${shell}`);

  const offered = (...words: string[]) => {
    const { stdout, stderr } = spawnSync(shell, ["-c", SHELLS[shell](script, words)], {
      env,
      cwd: folder,
      encoding: "utf8",
    });
    return { lines: stdout.split("\n").map((line) => line.split("\t")[0]), stderr };
  };

  it.skipIf(!isThere)("completes commands, options, values and files", async () => {
    const printed = await coppice("completion", shell);
    expect(printed).toMatchObject({ status: 0, stderr: "" });
    writeFileSync(script, printed.stdout);
    expect(offered("com").lines).toEqual(expect.arrayContaining(["compress", "completion"]));
    expect(offered("compress", "./model", "--teacher-c").lines).toEqual(
      expect.arrayContaining(["--teacher-cache", "--teacher-correction"]),
    );
    expect(offered("inspect", "./model", "--device", "cp").lines).toContain("cpu");
    if (shell === "zsh") expect(offered("compress", "./model", "--data", "cor").lines).toContain("FILES");
    if (shell === "fish") expect(offered("compress", "./model", "--data", "cor").lines).toContain("corpus.jsonl");
  });
});

describe("a key press in an interactive bash", () => {
  const canEmulate = spawnSync("script", ["--version"]).status === 0; // a terminal of its own, by util-linux

  it.skipIf(!canEmulate)("completes file names where a path is asked for", async () => {
    const script = path.join(folder, "interactive.bash");
    writeFileSync(script, (await coppice("completion", "bash")).stdout);
    const typed = `source ${script}\ncoppice inspect cor\t\nexit\n`;
    const terminal = ["-qec", "bash --norc -i", "/dev/null"];
    const { stdout } = spawnSync("script", terminal, { env, cwd: folder, input: typed, encoding: "utf8" });
    expect(stdout).toMatch(/coppice: corpus\.jsonl is a file; a MODEL is a directory/);
  });
});
