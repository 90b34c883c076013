import { spawn, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import type { CompressOutcome } from "../../src/index.js";
import type { Explanation } from "../../src/jobs/explain.js";
import { openCheckpoint } from "../../src/models/index.js";
import { temporaryDirectory } from "../temporary.js";
import { coppice, json } from "./command-line.js";

const root = path.resolve(import.meta.dirname, "../..");
const main = path.join(root, "bin/coppice.cjs");
const teacher = path.join(root, "examples/tiny-teacher");
const benchmarks = path.join(root, "test/fixtures/benchmarks");
const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");
process.env.HF_HUB_OFFLINE = "1";
const data = path.join(directory, "stories.txt");
writeFileSync(data, corpus(5, 400));

const small = ["--sequence-length", "64", "--batch-size", "8", "--save-every", "3"];
const compression = [
  "--target",
  "0.67x",
  "--data",
  data,
  "--tokens",
  "6K",
  "--samples",
  "24",
  "--refit-samples",
  "6",
  "--candidates",
  "3",
  ...small,
];

describe("coppice compress", () => {
  const out = path.join(directory, "out");

  it("makes a smaller model that is nearly as good, and reports it", async () => {
    const evaluation = ["--evaluate", "piqa,lambada_openai", "--evaluate-limit", "3", "--benchmark-data", benchmarks];
    const started = performance.now();
    const result = await json<CompressOutcome>("compress", teacher, ...compression, "--out", out, ...evaluation);
    const wallSeconds = (performance.now() - started) / 1000;
    expect(result.evaluation?.models.map(({ model }) => model)).toEqual(["teacher", "pruned", "student"]);
    for (const { tasks } of result.evaluation?.models ?? [])
      expect(tasks.map(({ task, documents }) => [task, documents.measured])).toEqual([
        ["piqa", 3],
        ["lambada_openai", 3],
      ]);
    expect(result.student.parameters / result.teacher.parameters).toBeGreaterThan(0.67 * 0.95);
    expect(result.student.parameters / result.teacher.parameters).toBeLessThan(0.67 * 1.05);
    expect(result.student.bytes).toBe(result.pruned.bytes);
    expect(result.pruned.loss).toBeGreaterThan(result.teacher.loss);
    expect(result.student.loss).toBeLessThan(1.05 * result.teacher.loss); // the refitted start is as near already
    expect(result.student.perplexity).toBeCloseTo(Math.exp(result.student.loss), 6);
    expect(result.plan.hidden!.from).toBe(128);
    expect(result.plan.layers).toEqual({ from: 4, to: 4 });
    expect(result.tokens).toBeGreaterThanOrEqual(6_000);
    expect(result.tokensPerSecond).toBeGreaterThan(0);
    expect(result.out).toBe(out);

    const { config, source } = openCheckpoint(out);
    expect(config.hidden_size).toBe(result.plan.hidden!.to);
    expect(source.tensors.get("model.embed_tokens.weight")).toEqual(expect.objectContaining({ dtype: "bf16" }));
    expect(existsSync(path.join(out, "tokenizer.json"))).toBe(true);
    const report = readFileSync(path.join(out, "report.html"), "utf8");
    expect(report).toContain("<polyline");
    expect(report).toContain("piqa (0), acc_norm");
    expect(report).not.toMatch(/(src|href)="?http/); // self-contained
    const stages = JSON.parse(readFileSync(path.join(out, "report.json"), "utf8")).stages as {
      name: string;
      seconds: number;
      peakMemoryBytes: number;
    }[];
    expect(stages.map(({ name }) => name)).toEqual(expect.arrayContaining(["calibrate", "search", "prune", "distill"]));
    expect(result.seconds).toBe(stages.reduce((sum, { seconds }) => sum + seconds, 0));
    expect(result.seconds).toBeLessThanOrEqual(wallSeconds);
    for (const { peakMemoryBytes } of stages) expect(peakMemoryBytes).toBeGreaterThan(1e7);

    // what it says of the student is what one measures
    const measured = await json<{ loss: number; tokens: number }>(
      "perplexity",
      out,
      "--data",
      data,
      "--sequence-length",
      "64",
    );
    expect(Math.abs(measured.loss - result.student.loss)).toBeLessThan(0.15);
    expect((await json<{ parameters: number }>("inspect", out)).parameters).toBe(result.student.parameters);
  });

  it("is explained: what was asked for, what was cut and why, what was won back, how to repeat it", async () => {
    const explained = await json<Explanation>("explain", out);
    const report = JSON.parse(readFileSync(path.join(out, "report.json"), "utf8"));
    expect(explained).toMatchObject({ command: "compress", state: "finished" });
    expect(explained.report?.models.student?.loss).toBe(report.models.student.loss);
    expect(explained.report?.recoveredShare).toBe(report.recoveredShare);
    const sourceOf = (name: string) => explained.settings.find((one) => one.name === name)?.source;
    expect(["tokens", "saveEverySteps", "maxCandidates"].map(sourceOf)).toEqual(Array(3).fill("command line"));
    expect(["learningRate", "seed"].map(sourceOf)).toEqual(["default", "default"]);
    const { candidates = [], measuredOn } = explained.search ?? {};
    const losses = candidates.map(({ refittedLoss }) => refittedLoss);
    expect(losses).toHaveLength(3);
    expect(losses[0]).toBeLessThanOrEqual(losses[1] ?? Number.NaN); // the last round measures two
    expect(candidates[0]?.parameters).toBe(report.models.student.parameters);
    expect(explained.files.every(({ bytes }) => bytes !== undefined)).toBe(true);
    expect(Object.keys(explained.inputs)).toEqual(["model", "data", "validation"]);

    // the command that it tells is the one that was given: its run is finished already
    const [, words = ""] = / && coppice (.*)$/.exec(explained.commandLine ?? "") ?? [];
    const again = await coppice(...words.split(" "));
    expect(again).toMatchObject({ status: 0, stderr: expect.stringMatching(/is finished already/) });

    const { stdout } = await coppice("explain", out);
    expect(stdout).toMatch(/3 candidates were measured.*is the smallest; the next best has \d/);
    expect(stdout).toMatch(/distillation (won back \d+ %|left the model worse than its start)/);
    // two losses of the pruned model, each with what it is measured on
    expect(measuredOn).toMatchObject({ sequenceLength: 256, computeType: "bf16" });
    expect(stdout).toContain(
      `of the first ${measuredOn?.tokens} tokens of the validation data, in sequences of 256 tokens`,
    );
    const { tokens } = report.models.pruned;
    expect(stdout).toContain(`of all ${tokens} tokens of the validation data, in sequences of 64 tokens`);
    expect(stdout).toMatch(/begun \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ,/);
  });

  it("killed again and again, ends with the same bits as a run that was never stopped", async () => {
    const killed = path.join(directory, "killed");
    const lines = () => {
      const file = path.join(killed, "metrics.jsonl");
      return existsSync(file) ? readFileSync(file, "utf8").split("\n").length - 1 : 0;
    };
    for (const steps of [1, 5]) {
      const child = spawn(process.execPath, [main, "compress", teacher, ...compression, "--out", killed], {
        stdio: "ignore",
      });
      const ended = new Promise((resolve) => child.on("exit", resolve));
      while (lines() < steps && child.exitCode === null) await new Promise((resolve) => setTimeout(resolve, 5));
      child.kill("SIGKILL");
      await ended;
    }
    expect(existsSync(path.join(killed, "config.json"))).toBe(false); // not finished yet
    const result = await json<CompressOutcome>("compress", teacher, ...compression, "--out", killed);
    const weights = (where: string) => readFileSync(path.join(where, "model.safetensors"));
    expect(weights(killed).equals(weights(out))).toBe(true);
    const first = JSON.parse(readFileSync(path.join(out, "report.json"), "utf8"));
    expect(result.student.loss).toBe(first.models.student.loss);
    // a finished run is not run again
    expect(await json<CompressOutcome>("compress", teacher, ...compression, "--out", killed)).toEqual(result);
  });

  it("refuses to go on with other settings in the same directory", async () => {
    const { status, stderr } = await coppice("compress", teacher, ...compression, "--seed", "9", "--out", out);
    expect(status).toBe(2);
    expect(stderr).toMatch(/holds a run with other settings .*--restart/);
  });
});

describe("other commands", () => {
  it("plan lists candidates, ranked by loss when there is data", async () => {
    const listed = await json<{ candidates: { parameters: number; loss?: number }[] }>(
      "plan",
      teacher,
      "--target",
      "0.67x",
    );
    expect(listed.candidates.length).toBeGreaterThan(5);
    const { stdout } = await coppice("plan", teacher, "--target", "0.67x", "--tolerance", "0.01");
    const shares = [...stdout.matchAll(/([\d.]+) % │/g)].map(([, share]) => Number(share));
    expect(shares.length).toBeGreaterThan(0);
    for (const share of shares) expect(Math.abs(share - 67)).toBeLessThanOrEqual(0.7);
    const ranked = await json<{ candidates: { loss?: number; distilledLoss?: number }[] }>(
      "plan",
      teacher,
      "--target",
      "0.67x",
      "--data",
      data,
      "--samples",
      "16",
      "--candidates",
      "4",
      "--search-tokens",
      "2K",
      "--axes",
      "hidden,ffn,layers",
      "--max-depth-cut",
      "0.25",
    );
    const losses = ranked.candidates.flatMap(({ distilledLoss }) => distilledLoss ?? []);
    expect(losses.length).toBe(4);
    expect(losses).toEqual([...losses].sort((a, b) => a - b));
    expect(ranked.candidates.filter(({ loss }) => loss !== undefined).length).toBe(4);
    expect(ranked.candidates.length).toBeGreaterThan(4); // the others are listed too
  });

  it("prune, distill and pretrain do one stage each", async () => {
    const pruned = path.join(directory, "pruned");
    const cut = await json<{ parameters: { to: number } }>(
      "prune",
      teacher,
      "--target",
      "hidden=96,ffn=256,layers=3",
      "--data",
      data,
      "--samples",
      "16",
      "--out",
      pruned,
    );
    expect((await json<{ parameters: number }>("inspect", pruned)).parameters).toBe(cut.parameters.to);
    const student = path.join(directory, "student");
    const distilled = await json<{ before: { loss: number }; student: { loss: number } }>(
      "distill",
      pruned,
      "--teacher",
      teacher,
      "--data",
      data,
      "--tokens",
      "5K",
      "--out",
      student,
      ...small,
      "--teacher-cache",
      "--top-k",
      "16",
      "--cross-entropy-weight",
      "0.1",
      "--micro-batch-size",
      "4",
    );
    expect(distilled.student.loss).toBeLessThan(distilled.before.loss);
    const trained = await json<{ student: { loss: number } }>(
      "pretrain",
      path.join(root, "examples/tiny-config"),
      "--from-scratch",
      "--data",
      data,
      "--tokens",
      "5K",
      "--out",
      path.join(directory, "trained"),
      ...small,
    );
    expect(trained.student.loss).toBeLessThan(Math.log(512));
  });

  it("distill refuses a student of another tokenizer before anything is measured", async () => {
    const other = path.join(directory, "other-tokenizer");
    mkdirSync(other);
    for (const name of ["config.json", "model.safetensors", "tokenizer_config.json"])
      copyFileSync(path.join(teacher, name), path.join(other, name));
    const definition = JSON.parse(readFileSync(path.join(teacher, "tokenizer.json"), "utf8"));
    const [[a = "", id] = [], [b = "", next] = []] = Object.entries(definition.model.vocab).slice(300, 302);
    Object.assign(definition.model.vocab, { [a]: next, [b]: id });
    writeFileSync(path.join(other, "tokenizer.json"), JSON.stringify(definition));
    const out = path.join(directory, "never");
    const { status, stderr } = await coppice(
      "distill",
      other,
      "--teacher",
      teacher,
      "--data",
      data,
      "--out",
      out,
      ...small,
    );
    expect(status).toBe(2);
    expect(stderr).toMatch(/different tokenizers: token \d+ is ".*" in the teacher and ".*" in the student/);
    expect(stderr).not.toMatch(/measure/);
    expect(existsSync(out)).toBe(false);
  });

  it("compress corrects the teacher and searches by short distillations when asked", async () => {
    const result = await json<CompressOutcome>(
      "compress",
      teacher,
      ...compression.slice(0, 4),
      "--tokens",
      "4K",
      "--samples",
      "16",
      "--start",
      "minitron",
      "--candidates",
      "2",
      ...small,
      "--teacher-correction",
      "4K",
      "--search-tokens",
      "2K",
      "--out",
      path.join(directory, "corrected"),
    );
    expect(result.student.loss).toBeLessThan(result.pruned.loss);
    expect(existsSync(path.join(directory, "corrected", "corrected-teacher", "config.json"))).toBe(true);
  });

  it("doctor writes what a bug report needs, once", async () => {
    const file = path.join(directory, "report.json");
    const { status, stdout } = await coppice("doctor", "--bundle", file);
    expect({ status, stdout }).toEqual({ status: 0, stdout: expect.stringContaining(`written to ${file}`) });
    const report = JSON.parse(readFileSync(file, "utf8"));
    expect(report).toMatchObject({ coppice: expect.any(String), diagnosis: { devices: expect.any(Array) } });
    expect(stdout).toContain(JSON.stringify(report, null, 2)); // nothing that is not shown
    expect(await coppice("doctor", "--bundle", file)).toMatchObject({ status: 2 });
  });

  it("doctor says what is in use", async () => {
    const found = await json<{ devices: { kind: string }[]; ggml: { version: string } }>("doctor");
    expect(found.devices.map(({ kind }) => kind)).toContain("cpu");
    expect(found.ggml.version).toMatch(/^\d+\.\d+/);
  });

  it("each explain themselves with an example", async () => {
    for (const command of [
      "init",
      "inspect",
      "plan",
      "prune",
      "distill",
      "compress",
      "explain",
      "completion",
      "doctor",
    ]) {
      const { stdout, status } = await coppice(command, "--help");
      expect(status).toBe(0);
      expect(stdout).toContain(`Example:\n  coppice ${command}`);
    }
  });
});

describe("the process", () => {
  const start = (...args: string[]) => spawnSync(process.execPath, [main, ...args], { encoding: "utf8" });

  it("ends with 0, results on standard output only", () => {
    const { status, stdout, stderr } = start("inspect", teacher, "--json");
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(JSON.parse(stdout)).toMatchObject({ architecture: "llama" });
  });

  it("ends with 2 for bad usage and with 1 for what failed, and says why on standard error only", () => {
    const misused = start("inspect", teacher, "--fast");
    expect(misused).toMatchObject({ status: 2, stdout: "", stderr: expect.stringMatching(/unknown option '--fast'/) });
    const failed = start("inspect", path.join(root, "docs"));
    expect(failed).toMatchObject({ status: 1, stdout: "", stderr: expect.stringMatching(/^coppice: .*config\.json/) });
  });

  it("minds no reader that stops reading", async () => {
    const child = spawn(process.execPath, [main, "--help"], { stdio: ["ignore", "pipe", "pipe"] });
    child.stdout.destroy();
    expect(await new Promise((resolve) => child.on("exit", resolve))).toBe(0);
  });
});

describe("mistakes", () => {
  const empty = path.join(directory, "empty");
  mkdirSync(empty);
  it.each([
    ["an unknown command", ["shrink"], 2, /^coppice: unknown command 'shrink'/],
    ["an unknown option", ["inspect", teacher, "--fast"], 2, /^coppice: unknown option '--fast'/],
    ["a missing option", ["prune", teacher, "--target", "0.5x"], 2, /^coppice: required option '--out/],
    [
      "a required option, mistyped",
      ["prune", teacher, "--targt", "0.5x"],
      2,
      /'--targt'\. Did you mean --target or --start\?/,
    ],
    [
      "a mistyped option with its value",
      ["prune", teacher, "--targt=0.5x"],
      2,
      /'--targt'\. Did you mean --target or --start\?/,
    ],
    [
      "an option like no other",
      ["foundry", "keys", "add", "me", "--quickly"],
      2,
      /`coppice foundry keys add --help` lists/,
    ],
    ["a prompt as an argument", ["generate", teacher, "Once upon"], 2, /given as --prompt "Once upon"/],
    ["a target that is none", ["plan", teacher, "--target", "tiny"], 2, /"tiny" is not understood.*a device \(/],
    ["a share without its x", ["plan", teacher, "--target", "0.67"], 2, /did you mean 0\.67x/],
    ["a number without its unit", ["plan", teacher, "--target", "500"], 2, /give a unit \(8\.4B/],
    [
      "a target that cuts nothing",
      ["compress", teacher, "--target", "phone-8gb", "--data", data, "--out", path.join(directory, "never")],
      2,
      /fits phone-8gb as it is, in \w+: .*`coppice quantize MODEL --type/,
    ],
    [
      "a model that an option has taken",
      ["compress", "--target", "0.67x", "--out", path.join(directory, "never"), "--data", data, teacher],
      2,
      /missing argument 'model': --data takes all words that follow it/,
    ],
    ["a missing model", ["inspect"], 2, /missing argument 'model'/],
    [
      "a size that cannot be",
      ["quantize", teacher, "--size", "100KB", "--data", data, "--out", path.join(directory, "never.gguf")],
      2,
      /^coppice: the weights take \d+ bytes even in the smallest types/,
    ],
    ["a device that nearly is", ["plan", teacher, "--target", "phone-8g"], 2, /Did you mean phone-8gb, phone-4gb, or/],
    ["a command that nearly is", ["compres"], 2, /Did you mean compress\?/],
    ["an option that nearly is", ["inspect", teacher, "--jsn"], 2, /Did you mean --json\?/],
    ["a choice that nearly is", ["inspect", teacher, "--device", "cpi"], 2, /Allowed choices.*Did you mean cpu/],
    ["a kind that nearly is", ["quantize", teacher, "--type", "q4_km", "--out", "x"], 2, /Did you mean q4_k_m/],
    ["a task that nearly is", ["evaluate", teacher, "--tasks", "helaswag"], 2, /Did you mean hellaswag\?/],
    ["a model that nearly is", ["inspect", `${teacher}s`], 2, /Did you mean .*tiny-teacher\?/],
    [
      "a model to serve that is nowhere",
      ["serve", "nope.gguf", "--port", "0"],
      2,
      /coppice: there is no model nope\.gguf/,
    ],
    [
      "benchmarks that are nowhere",
      ["evaluate", teacher, "--data", `${benchmarks}s`],
      2,
      /Did you mean .*benchmarks\?/,
    ],
    [
      "benchmarks that are nowhere, after hours of training",
      [
        "compress",
        teacher,
        ...compression,
        "--evaluate",
        "piqa",
        "--benchmark-data",
        "/no",
        "--out",
        path.join(empty, "x"),
      ],
      2,
      /the benchmark data \/no is not there/,
    ],
    ["what is no run", ["explain", empty], 2, /is not a run of coppice: it has no run\.json/],
    ["a target out of reach", ["plan", teacher, "--target", "0.1x"], 2, /no architecture has/],
    ["a directory without a model", ["inspect", empty], 1, /is not a model directory: it has no config.json/],
    ["a model that is nowhere", ["inspect", "/nowhere/at/all"], 2, /there is no model /],
    ["a hub id that is not cached, offline", ["inspect", "org/name"], 1, /is not in the cache/],
    ["data that is nowhere", ["perplexity", teacher, "--data", "/nowhere.txt"], 2, /no data found at \/nowhere.txt/],
    [
      "a device that is not there",
      ["perplexity", teacher, "--data", data, "--device", "metal"],
      2,
      /no metal device was found/,
    ],
    [
      "pruning without data",
      ["prune", teacher, "--target", "0.67x", "--out", path.join(directory, "x")],
      2,
      /pruning needs --data/,
    ],
    [
      "writing over the model",
      ["prune", teacher, "--target", "0.67x", "--data", data, "--out", teacher],
      2,
      /is the model itself/,
    ],
  ])("%s: says what is wrong, without a stack trace", async (_, args, code, message) => {
    const { status, stderr, stdout } = await coppice(...args);
    expect(stderr).toMatch(message);
    expect(stderr).not.toMatch(/\n {4}at /);
    expect(status).toBe(code);
    expect(stdout).toBe("");
  });
});
