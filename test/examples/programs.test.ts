import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { startFoundry } from "../../src/foundry/index.js";
import { temporaryDirectory } from "../temporary.js";

const root = path.resolve(import.meta.dirname, "../..");
const teacher = path.join(root, "examples/tiny-teacher");

const start = (args: readonly string[], cwd: string): ChildProcess =>
  spawn(process.execPath, args, { cwd, stdio: ["ignore", "pipe", "pipe"] });

/** Runs a program to its end. @returns what it wrote to standard output */
async function outputOf(args: readonly string[], cwd: string): Promise<string> {
  const child = start(args, cwd);
  let [output, complaints] = ["", ""];
  child.stdout?.on("data", (text) => {
    output += text;
  });
  child.stderr?.on("data", (text) => {
    complaints += text;
  });
  const code = await new Promise((resolve) => child.once("close", resolve));
  expect(code, complaints).toBe(0);
  return output;
}

const example = (name: string, ...args: readonly string[]): string[] => [
  path.join(root, "node_modules/tsx/dist/cli.mjs"),
  path.join(root, "examples", name),
  ...args,
];

/** The loss in the line that begins with a word. */
function lossOf(name: string, output: string): number {
  const [, loss] = new RegExp(String.raw`^${name}.*loss ([\d.]+)`, "m").exec(output) ?? [];
  expect(loss, output).toBeDefined();
  return Number(loss);
}

describe("the examples", () => {
  it("compress a model", async () => {
    const directory = temporaryDirectory();
    const output = await outputOf(example("compress.ts", teacher, path.join(directory, "out")), directory);
    const [before, cut, after] = ["teacher", "pruned", "student"].map((name) => lossOf(name, output));
    expect(cut).toBeGreaterThan(before as number);
    expect(after).toBeLessThan(cut as number);
    expect(existsSync(path.join(directory, "out/report.html"))).toBe(true);
    expect(output).toMatch(/\.gguf: One morning, Mira went to \w+/);
  });

  it("train with an objective of their own", async () => {
    const output = await outputOf(example("own-objective.ts"), temporaryDirectory());
    const [before, cut, after] = ["tiny-teacher", "pruned", "student"].map((name) => lossOf(name, output));
    expect(after).toBeLessThan(cut as number);
    expect(after).toBeGreaterThan(before as number);
  });

  it("define an architecture of their own", async () => {
    const output = await outputOf(example("own-architecture.ts"), temporaryDirectory());
    const uniform = Math.log(512); // what a model that knows nothing loses
    expect(lossOf("trained", output)).toBeLessThan(0.6 * uniform);
    expect(lossOf("pruned", output)).toBeLessThan(uniform);
  });

  it("define a benchmark of their own, which the command line takes", async () => {
    const directory = temporaryDirectory();
    const task = path.join(root, "examples/own-task.ts");
    const args = [path.join(root, "bin/coppice.cjs"), "evaluate", teacher, "--tasks", task, "--json"];
    const output = await outputOf([...args, "--out", path.join(directory, "scores")], directory);
    const { models } = JSON.parse(output) as {
      models: { tasks: { task: string; metrics: { value: number }[]; documents: { measured: number } }[] }[];
    };
    const [result] = models[0]?.tasks ?? [];
    expect(result).toMatchObject({ task: "lost_thing", documents: { measured: 20 } });
    // the teacher was trained on such stories; who guesses is right in a third of them
    expect(result?.metrics[0]?.value).toBeGreaterThan(0.9);
  });

  it("serve a model within an Express application", async () => {
    const server = start(example("serve-in-express.ts", teacher, "0"), temporaryDirectory());
    try {
      const url = await new Promise<string>((resolve, reject) => {
        server.stdout?.once("data", (text) => resolve(`${text}`.trim()));
        server.once("close", (code) => reject(new Error(`it ended with ${code}`)));
      });
      const post = async (at: string, body: unknown) => {
        const headers = { "content-type": "application/json" };
        const response = await fetch(url + at, { method: "POST", headers, body: JSON.stringify(body) });
        expect(response.status).toBe(200);
        return response.json();
      };
      expect(await (await fetch(url)).text()).toContain("/llm");
      const completion = { model: "storyteller", prompt: "One morning,", max_tokens: 8 };
      expect(await post("/llm/v1/completions", completion)).toMatchObject({ choices: [{ finish_reason: "length" }] });
      expect(await post("/story", { hero: "Wren" })).toEqual({
        story: expect.stringMatching(/^One morning, Wren went to \w+/),
      });
    } finally {
      const ended = new Promise((resolve) => server.once("close", resolve));
      server.kill("SIGTERM");
      expect(await ended).toBe(0);
    }
  });

  it("ask a foundry for a model", async () => {
    const directory = temporaryDirectory();
    const options = { data: path.join(directory, "foundry"), logLevel: "silent", device: "cpu", threads: 1 } as const;
    const foundry = await startFoundry({ ...options, port: 0, workers: 1 });
    try {
      const output = await outputOf(example("foundry-client.ts", foundry.url, "model"), directory);
      expect(output).toContain('"state":"done"');
      const files = [...output.matchAll(/^(model[/\\]\S+): (\d+) bytes$/gm)];
      expect(files.map(([, file]) => path.basename(file ?? ""))).toContain("config.json");
      expect(output).toMatch(/\.gguf: \d+ bytes/);
      for (const [, file = "", bytes] of files)
        expect(readFileSync(path.join(directory, file)).byteLength).toBe(Number(bytes));
    } finally {
      await foundry.close();
    }
  });

  it("are short enough to be read at once", () => {
    for (const name of [
      "compress",
      "own-objective",
      "own-task",
      "own-architecture",
      "serve-in-express",
      "foundry-client",
    ])
      expect(readFileSync(path.join(root, `examples/${name}.ts`), "utf8").split("\n").length, name).toBeLessThan(60);
  });
});
