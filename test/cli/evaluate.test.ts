import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { EvaluateOutcome } from "../../src/index.js";
import { temporaryDirectory } from "../temporary.js";
import { coppice, json as jsonOf } from "./command-line.js";

const root = path.resolve(import.meta.dirname, "../..");
const main = path.join(root, "bin/coppice.cjs");
const model = path.join(root, "examples/tiny-teacher");
const fixtures = path.join(root, "test/fixtures/benchmarks");
const directory = temporaryDirectory();
const cache = path.join(directory, "cache");
process.env.COPPICE_CACHE = cache;
process.env.HF_HUB_OFFLINE = "1";
process.env.HF_HOME = path.join(directory, "hub");

const evaluate = (...args: string[]) => coppice("evaluate", ...args, "--device", "cpu");
const json = (...args: string[]) => jsonOf<EvaluateOutcome>("evaluate", ...args, "--device", "cpu");
const scores = ({ models }: EvaluateOutcome) => models.map(({ tasks }) => tasks.map(({ metrics }) => metrics));

describe("coppice evaluate", () => {
  const out = path.join(directory, "out");
  const flags = [
    "--tasks",
    "piqa,openbookqa:2,lambada_openai,xlsum_english",
    "--data",
    fixtures,
    "--max-gen-tokens",
    "8",
  ];

  it("measures models and writes what the harness writes, and a report", async () => {
    const result = await json(model, model, ...flags, "--out", out);
    expect(result.models.map((one) => one.model)).toEqual([model, model]);
    const [first, second] = scores(result);
    expect(first).toEqual(second);
    expect(result.models[0]?.tasks.map(({ task, fewShot }) => [task, fewShot])).toEqual([
      ["piqa", 0],
      ["openbookqa", 2],
      ["lambada_openai", 0],
      ["xlsum_english", 3],
    ]);
    expect(result.models[0]?.tasks.at(-1)?.documents).toEqual({ all: 21, measured: 5 }); // 20 %, rounded up
    expect(result.models[1]?.tasks.every(({ requests, cached }) => requests === cached)).toBe(true);
    const [folder = ""] = readdirSync(out).filter((name) => name.endsWith("tiny-teacher"));
    const files = readdirSync(path.join(out, folder));
    const read = (start: string) =>
      readFileSync(path.join(out, folder, files.find((name) => name.startsWith(start))!), "utf8");
    const results = JSON.parse(read("results_")) as Record<string, Record<string, Record<string, unknown>>>;
    const accuracy = result.models[0]?.tasks[0]?.metrics[0];
    expect(results.results?.piqa).toMatchObject({
      alias: "piqa",
      "acc,none": accuracy?.value,
      "acc_stderr,none": accuracy?.standardError,
    });
    expect(results["n-shot"]).toMatchObject({ openbookqa: 2 });
    expect(results["n-samples"]?.piqa).toEqual({ original: 10, effective: 10 });
    expect(results.configs?.piqa).toMatchObject({ dataset_path: "baber/piqa", num_fewshot: 0 });
    const samples = read("samples_piqa_").trim().split("\n");
    expect(samples).toHaveLength(10);
    const sample = JSON.parse(samples[3]!) as { acc: number; doc_id: number; arguments: object; prompt_hash: string };
    expect(sample).toMatchObject({ doc_id: 3, filter: "none", metrics: ["acc", "acc_norm"] });
    expect(Object.keys(sample.arguments)).toEqual(["gen_args_0", "gen_args_1"]);
    const report = readFileSync(path.join(out, "report.html"), "utf8");
    expect(report).toContain("<svg");
    expect(report).toContain("openbookqa (2)");
    expect(JSON.parse(readFileSync(path.join(out, "results.json"), "utf8"))).toEqual({ models: result.models });
  });

  it("shows tables, with published figures where asked", async () => {
    const { stdout, status } = await evaluate(model, ...flags, "--published");
    expect(status).toBe(0);
    expect(stdout).toMatch(/piqa \(0\) +│ +acc,none │ +\d+\.\d\d ± \d+\.\d\d │ +10 of 10 │ +20 │ +20 │/);
    expect(stdout).toContain("Mistral-NeMo-Minitron 8B (published)");
    expect(stdout).toContain("31.94"); // its ROUGE-L
  });

  it("that was killed goes on, with the same scores", async () => {
    const data = path.join(directory, "many");
    const folder = path.join(data, "baber/piqa/default");
    mkdirSync(folder, { recursive: true });
    const rows = Array.from({ length: 300 }, (_, i) => ({
      goal: `How are ${i} apples kept? `.repeat(4),
      sol1: `in ${i} boxes`,
      sol2: "not at all",
      label: i % 2,
    }));
    writeFileSync(path.join(folder, "validation.jsonl"), rows.map((row) => JSON.stringify(row)).join("\n"));
    const args = [model, "--tasks", "piqa", "--data", data];
    const answers = path.join(cache, "evaluations");
    const before = new Set(readdirSync(answers));
    const sizeOfNew = () =>
      readdirSync(answers).reduce(
        (sum, name) => sum + (before.has(name) ? 0 : statSync(path.join(answers, name)).size),
        0,
      );
    const own = ["--max-length", "100"]; // answers of its own
    const child = spawn(process.execPath, [main, "evaluate", ...args, ...own, "--threads", "1"], { stdio: "ignore" });
    while (sizeOfNew() === 0 && child.exitCode === null) await wait(10);
    child.kill("SIGKILL");
    await new Promise((resolve) => child.once("exit", resolve));
    const resumed = await json(...args, ...own);
    const cached = resumed.models[0]?.tasks[0]?.cached ?? 0;
    expect(cached).toBeGreaterThan(0);
    expect(cached).toBeLessThan(600);
    const fresh = path.join(directory, "fresh");
    process.env.COPPICE_CACHE = fresh;
    const undisturbed = await json(...args, ...own);
    process.env.COPPICE_CACHE = cache;
    const values = (outcome: EvaluateOutcome) => scores(outcome)[0]?.[0]?.map(({ value }) => value);
    expect(undisturbed.models[0]?.tasks[0]?.cached).toBe(0);
    expect(values(resumed)).toEqual(values(undisturbed));
    expect(existsSync(fresh)).toBe(true);
  });

  it.each([
    ["a task that is not there", [model, "--tasks", "quiz"], 2, /there is no task quiz; known are minitron/],
    ["data that are not there", [model, "--tasks", "piqa"], 1, /baber\/piqa .* --data DIRECTORY/],
    ["a task file that is not there", [model, "--tasks", "./own.json"], 2, /there is no task file/],
    ["an engine that does not fit", [model, "--engine", "llama.cpp"], 2, /for \.gguf files/],
    [
      "texts longer than the model reads",
      [model, "--tasks", "xlsum_english", "--data", fixtures, "--max-gen-tokens", "9999"],
      2,
      /--max-gen-tokens less/,
    ],
    ["a limit of nothing", [model, "--limit", "0"], 2, /positive/],
    ["a server that is not there", ["http://127.0.0.1:9/v1", "--tasks", "piqa"], 1, /cannot be reached/],
  ])("says what to do about %s", async (_, args, status, message) => {
    const result = await evaluate(...args);
    expect(result.stderr).toMatch(message);
    expect(result.status).toBe(status);
    expect(result.stdout).toBe("");
  });
});
