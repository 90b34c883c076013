import { spawnSync } from "node:child_process";
import { appendFileSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { parquetWriteBuffer } from "hyparquet-writer";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import {
  Datasets,
  type EvaluatedModel,
  evaluateTask,
  groupResults,
  lastWord,
  loadTaskFile,
  ReplyCache,
  type Request,
  TASKS,
} from "../../src/evaluate/index.js";
import type { EvaluateOutcome } from "../../src/index.js";
import { plannedTasks } from "../../src/jobs/task-names.js";
import { temporaryDirectory } from "../temporary.js";

const directory = temporaryDirectory();
const fixtures = path.resolve(import.meta.dirname, "../fixtures/benchmarks");
const datasets = new Datasets({ directory: fixtures });
const tools = { passes: async () => false };
const piqa = TASKS.find(({ name }) => name === "piqa")!;

/** A model to which shorter texts are likelier, and which records its requests. */
function shortSighted(asked: Request[], stopAfter = Number.POSITIVE_INFINITY): EvaluatedModel {
  return {
    likelihood: {
      logLikelihoods: async (requests, onReply, { signal } = {}) => {
        for (const [i, request] of requests.entries()) {
          if (signal?.aborted || asked.length >= stopAfter) return;
          asked.push(request);
          const text = request.kind === "rolling" ? request.text : request.continuation;
          onReply(i, { logLikelihood: -text.length, isGreedy: false });
        }
      },
    },
    generation: {
      generate: async (requests, onReply) => {
        for (const [i, request] of requests.entries()) {
          asked.push(request);
          onReply(i, ` the answer is ${request.context.length}\n`);
        }
      },
    },
  };
}

describe("an evaluation", () => {
  it("goes on where it was stopped, and asks nothing twice", async () => {
    const identity = ["model", 1];
    const kept = path.join(directory, "kept");
    const whole: Request[] = [];
    const expected = await evaluateTask(piqa, shortSighted(whole), { datasets, tools });
    const first: Request[] = [];
    const stopped = { ...shortSighted(first, 7), cache: ReplyCache.open(kept, identity) };
    await expect(evaluateTask(piqa, stopped, { datasets, tools })).rejects.toThrow(
      /stopped with 7 of 20 .* to continue/,
    );
    const [file = ""] = readdirSync(kept);
    appendFileSync(path.join(kept, file), '["cut o'); // as a killed process leaves it
    const second: Request[] = [];
    const resumed = { ...shortSighted(second), cache: ReplyCache.open(kept, identity) };
    const result = await evaluateTask(piqa, resumed, { datasets, tools });
    expect(first.length + second.length).toBe(whole.length);
    expect(result.metrics).toEqual(expected.metrics);
    expect(result.cached).toBe(7);
    const third: Request[] = [];
    const again = { ...shortSighted(third), cache: ReplyCache.open(kept, identity) };
    expect((await evaluateTask(piqa, again, { datasets, tools })).metrics).toEqual(expected.metrics);
    expect(third).toEqual([]);
  });

  it("that begins anew asks all of its own again, and leaves other tasks' answers where they are", async () => {
    const kept = path.join(directory, "kept-anew");
    const open = (restart?: "own" | "all") => ReplyCache.open(kept, "model", restart);
    const others = open();
    others.set("of another task", "kept");
    others.flush();
    await evaluateTask(piqa, { ...shortSighted([]), cache: open() }, { datasets, tools });
    const asked: Request[] = [];
    const anew = { ...shortSighted(asked), cache: open("own") };
    expect((await evaluateTask(piqa, anew, { datasets, tools })).cached).toBe(0);
    expect(asked).toHaveLength(20);
    expect(open().get("of another task")).toBe("kept");
    expect((await evaluateTask(piqa, { ...shortSighted([]), cache: open() }, { datasets, tools })).cached).toBe(20);
    open("all");
    expect(open().get("of another task")).toBeUndefined();
  });

  it("says how many documents, which data, and how sure it is", async () => {
    const result = await evaluateTask(piqa, shortSighted([]), { datasets, tools, limit: 0.25 });
    expect(result.documents).toEqual({ all: 10, measured: 3 }); // a quarter, rounded up
    expect(result.data.validation).toMatch(/^sha256:[0-9a-f]{64}$/);
    const limited = await evaluateTask(piqa, shortSighted([]), { datasets, tools, limit: 4, fewShot: 2 });
    expect(limited).toMatchObject({ documents: { measured: 4 }, fewShot: 2, requests: 8 });
    expect(Object.keys(limited.data)).toEqual(["validation", "train"]);
    await expect(evaluateTask(piqa, shortSighted([]), { datasets, tools, fewShot: 4 })).rejects.toThrow(
      /4 worked examples are wanted, but the split train has 4 usable rows/,
    );
    await expect(evaluateTask(piqa, {}, { datasets, tools })).rejects.toThrow(/cannot give likelihoods/);
  });

  it("gives groups the mean over all documents", () => {
    const metric = { name: "acc", filter: "none", aggregation: "mean" as const, higherIsBetter: true };
    const of = (task: string, value: number, measured: number) => ({
      task,
      version: 1,
      fewShot: 0,
      documents: { all: 100, measured },
      requests: 1,
      cached: 0,
      seconds: 1,
      data: {},
      metrics: [{ metric, value, standardError: 0.1 }],
    });
    const several = [
      { ...of("a", 1, 10), fewShot: 5 },
      { ...of("b", 0, 30), fewShot: 5 },
      ...[of("a", 0, 10), of("b", 0, 30)],
      of("c", 1, 10),
    ];
    const two = [
      { name: "inner", version: 1, members: ["a", "b"] },
      { name: "mixed", version: 1, members: ["a", "c"] },
    ];
    expect(
      groupResults(two, several).map(({ group, fewShot, metrics }) => [group, fewShot, metrics[0]?.value]),
    ).toEqual([
      ["inner", 5, 0.25],
      ["inner", 0, 0],
      ["mixed", 0, 0.5],
    ]);
    const groups = [
      { name: "all", version: 1, members: ["inner", "c"] },
      { name: "inner", version: 1, members: ["a", "b"] },
      { name: "missing", version: 1, members: ["a", "d"] },
    ];
    const results = groupResults(groups, [of("a", 1, 10), of("b", 0, 30), of("c", 0.5, 60)]);
    expect(results.map(({ group, documents, metrics }) => [group, documents, metrics[0]?.value])).toEqual([
      ["all", 100, 0.4],
      ["inner", 40, 0.25],
    ]);
  });
});

describe("benchmark data", () => {
  it("come from JSONL, gzipped or not, and Parquet, equal in every form", async () => {
    const rows = [
      { goal: "g", sol1: "a", sol2: "b", label: 0 },
      { goal: "h", sol1: "c", sol2: "d", label: 1 },
    ];
    const folder = path.join(directory, "forms/org/data/default");
    mkdirSync(folder, { recursive: true });
    writeFileSync(path.join(folder, "a.jsonl"), rows.map((row) => JSON.stringify(row)).join("\n"));
    const column = (name: keyof (typeof rows)[0]) => rows.map((row) => row[name]);
    const columnData = [
      ...(["goal", "sol1", "sol2"] as const).map((name) => ({ name, data: column(name), type: "STRING" as const })),
      { name: "label", data: rows.map(({ label }) => BigInt(label)), type: "INT64" as const },
    ];
    writeFileSync(path.join(folder, "b-00000-of-00001.parquet"), new Uint8Array(parquetWriteBuffer({ columnData })));
    const own = new Datasets({ directory: path.join(directory, "forms") });
    const load = async (split: string) =>
      (await own.split({ repo: "org/data" }, split)).rows.map(({ record }) => record);
    expect(await load("a")).toEqual(rows);
    expect(await load("b")).toEqual(rows);
  });

  it("have another version when any of their files changes, and come from one kind of file", async () => {
    const folder = path.join(directory, "shards/org/data/default");
    mkdirSync(folder, { recursive: true });
    const write = (name: string, n: number) => writeFileSync(path.join(folder, name), `{"n":${n}}\n`);
    const load = () => new Datasets({ directory: path.join(directory, "shards") }).split({ repo: "org/data" }, "test");
    write("test-0.jsonl", 1);
    write("test-1.jsonl", 2);
    const before = await load();
    expect(before.rows).toHaveLength(2);
    write("test-1.jsonl", 3);
    expect((await load()).version).not.toBe(before.version);
    for (const other of ["test.json", "test.jsonl.gz"]) {
      write(other, 4);
      await expect(load(), other).rejects.toThrow(/keep one kind of file/);
      rmSync(path.join(folder, other));
    }
    for (const other of ["test-old.jsonl", "test.bak.jsonl"]) {
      write(other, 4);
      await expect(load(), other).rejects.toThrow(/may be a part of the split test or not/);
      rmSync(path.join(folder, other));
    }
    write("test-00002-of-00003-2a1df75c6bce91ab.jsonl", 5);
    expect((await load()).rows).toHaveLength(3);
  });

  it("that are missing or malformed are named", async () => {
    const offline = new Datasets({ directory: fixtures, hub: { offline: true, cacheDir: directory } });
    await expect(offline.split({ repo: "org/none", config: "c" }, "test")).rejects.toThrow(
      /org\/none \(c, test\) is not available: .*put it in .*org.none.c.test\.jsonl/,
    );
    const folder = path.join(directory, "bad/baber/piqa/default");
    mkdirSync(folder, { recursive: true });
    writeFileSync(path.join(folder, "validation.jsonl"), '{"goal":"g","sol1":"a","sol2":7,"label":0}\n');
    const bad = new Datasets({ directory: path.join(directory, "bad") });
    await expect(evaluateTask(piqa, shortSighted([]), { datasets: bad, tools })).rejects.toThrow(
      /piqa: .*validation\.jsonl:1: the row sol2 is 7, not a string \(it has: goal, sol1, sol2, label\)/,
    );
  });
});

describe("a row without a right answer", () => {
  it.each([
    [
      "arc_challenge",
      { question: "?", choices: { text: ["a", "b"], label: ["A", "B"] }, answerKey: "C" },
      /none of its 2/,
    ],
    ["piqa", { goal: "g", sol1: "a", sol2: "b", label: -1 }, /none of its 2/],
    ["hellaswag", { activity_label: "", ctx_a: "", ctx_b: "", endings: ["a"], label: "" }, /the row label is ""/],
  ])("is refused: %s", (name, row, message) => {
    expect(() => TASKS.find((task) => task.name === name)!.read(row)).toThrow(message);
  });
});

describe("a task file", () => {
  const write = (name: string, content: unknown) => {
    const file = path.join(directory, name);
    writeFileSync(file, typeof content === "string" ? content : JSON.stringify(content));
    return file;
  };
  writeFileSync(
    path.join(directory, "colours.jsonl"),
    [
      { question: "Sky?", options: ["blue", "green"], answer: "blue" },
      { question: "Grass?", options: ["blue", "green"], answer: "B" },
      { question: "Sun?", options: ["red", "yellow"], answer: 1 },
    ]
      .map((row) => JSON.stringify(row))
      .join("\n"),
  );
  const colours = {
    kind: "multiple-choice",
    name: "colours",
    data: "colours.jsonl",
    prompt: "Q: {{ question | upper }}\nA:",
    choices: "options",
    answer: "answer",
  };

  it("of choices asks for each of them", async () => {
    const task = (await loadTaskFile(write("colours.json", colours)))!;
    const asked: Request[] = [];
    const result = await evaluateTask(task, shortSighted(asked), { datasets, tools });
    expect(asked[0]).toEqual({ kind: "log-likelihood", context: "Q: SKY?\nA:", continuation: " blue" });
    expect(result.metrics.map(({ value }) => value)).toEqual([1 / 3, 2 / 3]); // shorter words, but longer ones per letter
  });

  it("of generation compares what it extracts", async () => {
    const file = write("lengths.json", {
      kind: "generation",
      name: "lengths",
      data: "colours.jsonl",
      prompt: "{{question}}",
      answer: "{{ question|length }}",
      extract: "answer is (\\d+)",
      metrics: ["exact_match", "rouge_l"],
    });
    const result = await evaluateTask((await loadTaskFile(file))!, shortSighted([]), { datasets, tools });
    expect(result.metrics.map(({ value }) => value)).toEqual([1, 1]);
  });

  it("may be a module", () => {
    const module = write(
      "own.ts",
      `import { lastWord, type Task } from "coppice/evaluate";
       import { z } from "zod";
       const task: Task = lastWord({
         name: "own", version: 1, dataset: { repo: ${JSON.stringify(path.join(directory, "colours.jsonl"))} },
         splits: { test: "test" }, schema: z.object({ question: z.string() }),
         context: ({ question }) => question, continuation: () => " yes",
       });
       export default task;`,
    );
    // in a process of its own, as it is installed: from src, all that the module imports would be compiled a second time
    const root = path.resolve(import.meta.dirname, "../..");
    const command = [path.join(root, "bin/coppice.cjs"), "evaluate", path.join(root, "examples/tiny-teacher")];
    const flags = ["--tasks", module, "--device", "cpu", "--json"];
    const env = { ...process.env, COPPICE_CACHE: path.join(directory, "cache") };
    const { stdout, stderr } = spawnSync(process.execPath, [...command, ...flags], { encoding: "utf8", env });
    const [task] = (JSON.parse(stdout || stderr) as EvaluateOutcome).models[0]?.tasks ?? [];
    expect(task).toMatchObject({ task: "own", documents: { all: 3, measured: 3 } });
    expect(task?.metrics.map(({ metric }) => metric.name)).toEqual(["perplexity", "acc"]);
  });

  it("has no question among its own worked examples, though its splits are the same file", async () => {
    const file = path.join(directory, "numbers.jsonl");
    const questions = Array.from({ length: 6 }, (_, i) => `number ${i}`);
    writeFileSync(file, questions.map((question) => JSON.stringify({ question })).join("\n"));
    for (const splits of [{ test: "test" }, { test: "test", fewShot: "train" }])
      for (const sampler of ["first", "random"] as const) {
        const task = lastWord({
          name: "own",
          version: 1,
          dataset: { repo: file },
          splits,
          fewShot: { count: 3, sampler },
          schema: z.object({ question: z.string() }),
          context: ({ question }) => question,
          continuation: () => " yes",
        });
        const asked: Request[] = [];
        await evaluateTask(task, shortSighted(asked), { datasets, tools });
        const contexts = asked.map((request) => (request as { readonly context: string }).context);
        expect(contexts).toHaveLength(6);
        contexts.forEach((context, i) => {
          const numbers = [...context.matchAll(/number \d/g)].map(([number]) => number);
          expect(numbers).toHaveLength(4);
          expect(numbers.filter((number) => number === `number ${i}`)).toHaveLength(1);
        });
      }
  });

  it("of the last word measures the perplexity of that", async () => {
    const task = lastWord({
      name: "own",
      version: 1,
      dataset: { repo: path.join(directory, "colours.jsonl") },
      splits: { test: "test" },
      schema: z.object({ question: z.string() }),
      context: ({ question }) => question,
      continuation: () => " yes",
    });
    const result = await evaluateTask(task, shortSighted([]), { datasets, tools });
    expect(result.metrics.map(({ metric }) => metric.name)).toEqual(["perplexity", "acc"]);
    expect(result.metrics[0]?.value).toBeCloseTo(Math.exp(4), 9);
  });

  it.each([
    ["is not JSON", "{", /not valid JSON/],
    ["has no kind", { ...colours, kind: "quiz" }, /kind/],
    ["has fields that mean nothing", { ...colours, fewshot: 3 }, /fewshot/],
    ["has a malformed template", { ...colours, prompt: "{{ question " }, /template/],
    [
      "extracts by a malformed expression",
      { ...colours, kind: "generation", choices: undefined, extract: "(" },
      /extract/,
    ],
  ])("that %s is refused", async (_, content, message) => {
    await expect(loadTaskFile(write("bad.json", content))).rejects.toThrow(message);
  });

  it.each([
    ["{{ lats }}", /no column lats, only question, options, answer\./],
    ["{{ questoin }}", /no column questoin.*Did you mean question\?/],
    ["{{ '' }}", /nothing to continue with/],
  ])("that continues with %s is refused", async (continuation, message) => {
    const content = {
      kind: "last-word",
      name: "words",
      data: "colours.jsonl",
      context: "{{ question }}",
      continuation,
    };
    const task = await loadTaskFile(write("words.json", content));
    await expect(evaluateTask(task!, shortSighted([]), { datasets, tools })).rejects.toThrow(message);
  });

  it("sees columns that it sets, goes through or asks for as its own, and keeps a last line end", async () => {
    const context =
      "{% set last = options[-1] %}{% for one in options if one != last %}{{ loop.index }} {{ one|upper }} {% endfor %}" +
      "{% if hint is defined %}{{ hint }}{% endif %}{{ note|default('none') }} {{ last }}\nAnswer:\n";
    const content = {
      kind: "last-word",
      name: "words",
      data: "colours.jsonl",
      context,
      continuation: "{{ question }}",
    };
    const asked: Request[] = [];
    await evaluateTask((await loadTaskFile(write("names.json", content)))!, shortSighted(asked), { datasets, tools });
    expect(asked[0]).toMatchObject({ context: "1 BLUE none green\nAnswer:\n" });
  });

  it.each([
    ["{% if question and options %}yes{% endif %}", "yes"],
    ["{% if not question or 'blue' in options %}yes{% endif %}", "yes"],
    ["{% if 'red' not in options and question is not none %}yes{% endif %}", "yes"],
    ["{{ -1 * 2 + options|length }}{{ question ~ '!' }}", "0Sky?!"],
    ["{% macro m(a, b=1) %}{{ a }}{{ b }}{% endmacro %}{{ m(question, b=2) }}", "Sky?2"],
    ["{% filter upper %}{{ question }}{% endfilter %}", "SKY?"],
    ["{{ question[:2] }}{{ 'a' if question else 'b' }}", "Ska"],
    ["{{ question -}}\n", "Sky?"],
    ["{{ question }}\n", "Sky?\n"],
  ])("may be written as %s", async (context, wanted) => {
    const content = {
      kind: "last-word",
      name: "words",
      data: "colours.jsonl",
      context,
      continuation: "{{ question }}",
    };
    const asked: Request[] = [];
    await evaluateTask((await loadTaskFile(write("operators.json", content)))!, shortSighted(asked), {
      datasets,
      tools,
    });
    expect(asked[0]).toMatchObject({ context: wanted });
  });

  it("says what answers are where that could be two things", async () => {
    const rows = [{ q: "1+1", options: ["2", "9", "1", "8"], answer: "2" }];
    writeFileSync(path.join(directory, "sums.jsonl"), rows.map((row) => JSON.stringify(row)).join("\n"));
    const sums = { ...colours, name: "sums", data: "sums.jsonl", prompt: "{{ q }}=" };
    const rightOf = async (content: object) => {
      const task = (await loadTaskFile(write("sums.json", content)))!;
      const samples: { readonly target: unknown }[] = [];
      await evaluateTask(task, shortSighted([]), { datasets, tools, onSample: (sample) => samples.push(sample) });
      return samples[0]?.target;
    };
    await expect(rightOf(sums)).rejects.toThrow(/"2" is a choice's text, and the index or letter of another/);
    expect(await rightOf({ ...sums, answerIs: "text" })).toEqual(await rightOf({ ...sums, answer: "{{ '0' }}" }));
    expect(await rightOf({ ...sums, answerIs: "index" })).not.toEqual(await rightOf({ ...sums, answerIs: "text" }));
  });

  it("whose choices are no texts is refused", async () => {
    const task = await loadTaskFile(write("none.json", { ...colours, choices: "question" }));
    await expect(evaluateTask(task!, shortSighted([]), { datasets, tools })).rejects.toThrow(/choices must be a list/);
  });

  it("keeps the line ends and blanks beside tags, as Jinja does unless told otherwise", async () => {
    const prompt = "Sky.\n{% if true %}Hint{% endif %}\n  {% if true %}A{% endif %}\nAnswer:";
    const task = (await loadTaskFile(write("blanks.json", { ...colours, prompt })))!;
    const asked: Request[] = [];
    await evaluateTask(task, shortSighted(asked), { datasets, tools });
    expect(asked[0]).toMatchObject({ context: "Sky.\nHint\n  A\nAnswer:" });
  });

  it("without worked examples stays so, whatever is asked of all", async () => {
    const counts = async (names: readonly string[]) =>
      (await plannedTasks(names, 5)).map(({ task, fewShot }) => [task.name, fewShot]);
    expect(await counts(["truthfulqa_mc2", "humaneval", "winogrande"])).toEqual([
      ["truthfulqa_mc2", 0],
      ["humaneval", 0],
      ["winogrande", 5],
    ]);
    await expect(plannedTasks(["humaneval:3"], undefined)).rejects.toThrow(/humaneval has no worked examples/);
  });

  it("that is named as another one is refused, and the same one counts once", async () => {
    const file = write("twice.json", { ...colours, name: "winogrande" });
    await expect(plannedTasks([file, "winogrande"], undefined)).rejects.toThrow(/are both named winogrande/);
    const [first, second] = [write("a.json", colours), write("b.json", colours)];
    await expect(plannedTasks([first, second], undefined)).rejects.toThrow(/both named colours/);
    expect(await plannedTasks([first, first], undefined)).toHaveLength(1);
    expect((await plannedTasks([`${first}:1`, first], undefined)).map(({ label }) => label)).toEqual([
      "colours_1shot",
      "colours_0shot",
    ]);
  });

  it("whose answers are none of the choices is refused", async () => {
    const task = await loadTaskFile(write("wrong.json", { ...colours, answer: "question" }));
    await expect(evaluateTask(task!, shortSighted([]), { datasets, tools })).rejects.toThrow(/none of the 2 choices/);
  });
});
