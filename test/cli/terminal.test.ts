import { spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import { temporaryDirectory } from "../temporary.js";

const root = path.resolve(import.meta.dirname, "../..");
const main = path.join(root, "bin/coppice.cjs");
const teacher = path.join(root, "examples/tiny-teacher");
const directory = temporaryDirectory();
const data = path.join(directory, "stories.txt");
writeFileSync(data, corpus(5, 100));

/** Whether letters or their background are coloured: parameters 30 to 49 and 90 to 107 of "select graphic rendition". */
const isColoured = (shown: string): boolean =>
  shown.split("\u001b[").some((part) => /^(\d+;)*(3\d|4\d|9\d|10\d)m/.test(part) && !/^39m|^49m/.test(part));

/** Runs a command in a terminal of its own and types an answer after each text that is waited for. @returns all that was shown */
async function inTerminal(
  args: readonly string[],
  answers: readonly (readonly [string, string])[],
  variables: NodeJS.ProcessEnv = {},
): Promise<{ readonly shown: string; readonly code: number | null }> {
  const undecided = { NO_COLOR: undefined, FORCE_COLOR: undefined, CI: undefined }; // each decides about colors
  const env = {
    ...process.env,
    ...undecided,
    TERM: "xterm",
    COPPICE_CACHE: path.join(directory, "cache"),
    ...variables,
  };
  const line = ["stty cols 120 rows 40;", process.execPath, main, ...args].join(" ");
  const child = spawn("script", ["-qec", line, "/dev/null"], {
    env,
    cwd: directory,
    stdio: ["pipe", "pipe", "inherit"],
  });
  const left = [...answers];
  let shown = "";
  let from = 0;
  child.stdout.on("data", (chunk: Buffer) => {
    shown += chunk.toString("utf8");
    const at = left[0] === undefined ? -1 : shown.indexOf(left[0][0], from);
    if (at < 0) return;
    from = at + (left[0]?.[0].length ?? 0);
    child.stdin.write(left.shift()?.[1] ?? "");
  });
  const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
  return { shown, code };
}

/** util-linux's program gives a terminal of its own. */
const canEmulate = spawnSync("script", ["--version"]).status === 0;
const DOWN = "\u001b[B";

describe.skipIf(!canEmulate)("in a terminal", () => {
  it("init asks for model, data and device", async () => {
    const { shown, code } = await inTerminal(
      ["init", "asked.yaml"],
      [
        ["Which model", "org/name\r"],
        ["Which texts", "stories.txt\r"],
        ["Where should it run", `${DOWN}\r`],
      ],
    );
    expect(shown).toContain("coppice compress --recipe asked.yaml");
    expect(code).toBe(0);
    const recipe = readFileSync(path.join(directory, "asked.yaml"), "utf8");
    expect(recipe).toMatch(/^model: org\/name$/m);
    expect(recipe).toMatch(/^data: \[stories\.txt\]$/m);
    expect(recipe).toMatch(/^target: [a-z]+-[\w-]+$/m);
    expect(isColoured(shown)).toBe(true);
  });

  it("init asks again for what is not there, and writes nothing when it is stopped", async () => {
    const { shown, code } = await inTerminal(
      ["init", "stopped.yaml"],
      [
        ["Which model", "./nowhere\r"],
        ["there is no ./nowhere", "\u0003"],
      ],
    );
    expect(shown).toContain("nothing was written");
    expect(code).toBe(130);
    expect(() => readFileSync(path.join(directory, "stopped.yaml"))).toThrow();
  });

  it("nothing is coloured with NO_COLOR", async () => {
    const { shown } = await inTerminal(["init", "plain.yaml"], [["Which model", "\u0003"]], { NO_COLOR: "1" });
    expect(shown).toContain("Which model");
    expect(isColoured(shown)).toBe(false);
  });

  it("bars are drawn without colours, and a log takes their place", async () => {
    const command = ["perplexity", teacher, "--data", data, "--sequence-length", "64", "--device", "cpu"];
    const { shown } = await inTerminal(command, []);
    expect(shown).toMatch(/█.*100 %/);
    expect(isColoured(shown)).toBe(false);
    const logged = await inTerminal([...command, "--verbose"], []);
    expect(logged.shown).not.toContain("█");
    expect(logged.shown).toMatch(/"message":"command ended"/);
  });
});

const training = (out: string, tokens: string): string[] => [
  ...["distill", teacher, "--teacher", teacher, "--data", data, "--tokens", tokens, "--sequence-length", "32"],
  ...["--batch-size", "2", "--device", "cpu", "--out", path.join(directory, out)],
];
/** As it is without npm, whose end would be noticed, too. */
const alone = { ...process.env, npm_lifecycle_event: undefined, COPPICE_CACHE: path.join(directory, "cache") };
const metricsOf = (out: string): string[] => {
  const file = path.join(directory, out, "metrics.jsonl");
  return existsSync(file) ? readFileSync(file, "utf8").trim().split("\n") : [];
};
const trains = async (out: string): Promise<void> => {
  while (metricsOf(out).length < 2) await new Promise((resolve) => setTimeout(resolve, 20));
};

describe.skipIf(!canEmulate)("when its terminal is closed", () => {
  it("a training saves where it is, and ends", async () => {
    const line = ["exec", process.execPath, main, ...training("closed", "1B")].join(" ");
    const child = spawn("script", ["-qec", line, "/dev/null"], { env: alone, stdio: ["pipe", "pipe", "inherit"] });
    child.stdout.resume();
    await trains("closed");
    child.kill("SIGKILL"); // who holds the other end of the terminal
    const lock = path.join(directory, "closed", "run.lock");
    while (existsSync(lock)) await new Promise((resolve) => setTimeout(resolve, 20));
    const steps = metricsOf("closed").length;
    const saved = readdirSync(path.join(directory, "closed", "checkpoints")).map((name) => Number(name.split("-")[1]));
    expect(Math.max(...saved)).toBe(steps);
  });
});

describe("where there is no terminal", () => {
  it("a training goes on when the one that it was started from is closed, as under nohup", async () => {
    const child = spawn(process.execPath, [main, ...training("nohup", "8K")], { env: alone, stdio: "ignore" });
    const ended = new Promise((resolve) => child.once("exit", resolve));
    await trains("nohup");
    child.kill("SIGHUP");
    expect(await ended).toBe(0);
    expect(metricsOf("nohup")).toHaveLength(125);
  });

  it("there are no bars and no colours, FORCE_COLOR or not", () => {
    for (const variables of [{}, { FORCE_COLOR: "1" }]) {
      const env = { ...process.env, ...variables };
      const args = [main, "perplexity", teacher, "--data", data, "--sequence-length", "64", "--device", "cpu"];
      const { stdout, stderr, status } = spawnSync(process.execPath, args, { env, encoding: "utf8" });
      expect(status).toBe(0);
      expect(stdout + stderr).not.toContain("\u001b");
    }
  });
});
