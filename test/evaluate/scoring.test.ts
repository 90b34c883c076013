import { readFileSync } from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { aggregate, mean, passAtK, rougeL, TASKS } from "../../src/evaluate/index.js";
import { pooledStandardError } from "../../src/evaluate/metrics.js";
import { PythonRandom } from "../../src/evaluate/python-random.js";
import { capitalize, countWords, length, trim, trimEnd } from "../../src/evaluate/python-text.js";

interface Expected {
  readonly gsm8k: readonly { readonly text: string; readonly gold: string; readonly scores: readonly number[] }[];
  readonly rouge: readonly { readonly reference: string; readonly candidate: string; readonly value: number }[];
  readonly texts: readonly {
    readonly text: string;
    readonly strip: string;
    readonly rstrip: string;
    readonly capitalize: string;
    readonly length: number;
    readonly words: number;
  }[];
  readonly pages: readonly { readonly page: string; readonly text: string }[];
  readonly endings: readonly { readonly ending: string; readonly text: string }[];
  readonly samples: readonly { readonly size: number; readonly count: number; readonly drawn: readonly number[] }[];
  readonly choices: readonly number[];
  readonly pooled: number;
}
// written by bench/peers/scoring.py with the harness, rouge_score and Python
const expected = JSON.parse(
  readFileSync(path.resolve(import.meta.dirname, "../fixtures/scoring.json"), "utf8"),
) as Expected;
const taskNamed = (name: string) => TASKS.find((task) => task.name === name)!;
const tools = { passes: async () => false };
const settings = { samples: 1 };

describe("scores", () => {
  it("of GSM8K are the harness's, strict and flexible", async () => {
    for (const { text, gold, scores } of expected.gsm8k) {
      const question = taskNamed("gsm8k").read({ question: "?", answer: gold });
      expect(Object.values(await question.score([text], tools)), JSON.stringify({ text, gold })).toEqual(scores);
    }
  });

  it("of summaries are rouge_score's", () => {
    for (const { reference, candidate, value } of expected.rouge)
      expect(rougeL(reference, candidate), reference).toBeCloseTo(value, 12);
  });

  it("of several samples are the mean over all choices of k of them", () => {
    const anyRight = (n: number, right: number, k: number): number => {
      let [hits, total] = [0, 0];
      for (let mask = 0; mask < 2 ** n; mask++) {
        const chosen = Array.from({ length: n }, (_, i) => i).filter((i) => mask & (2 ** i));
        if (chosen.length !== k) continue;
        total++;
        if (chosen.some((i) => i < right)) hits++;
      }
      return hits / total;
    };
    for (const [n, right, k] of [
      [5, 2, 1],
      [5, 2, 3],
      [8, 1, 4],
      [8, 0, 2],
      [8, 7, 2],
    ] as const)
      expect(passAtK(n, right, k)).toBeCloseTo(anyRight(n, right, k), 12);
  });

  it("have the standard error of a share", async () => {
    const shares = fc.tuple(fc.integer({ min: 2, max: 400 }), fc.double({ min: 0, max: 1, noNaN: true }));
    await fc.assert(
      fc.asyncProperty(shares, async ([n, share]) => {
        const right = Math.round(n * share);
        const p = right / n;
        const score = await aggregate(mean("acc"), [...Array(right).fill(1), ...Array(n - right).fill(0)]);
        expect(score.value).toBeCloseTo(p, 12);
        expect(score.standardError).toBeCloseTo(Math.sqrt((p * (1 - p)) / (n - 1)), 12);
      }),
    );
    const groups = [0.05, 0.02, 0.1].map((error, i) => ({ error, size: [100, 300, 40][i]! }));
    expect(pooledStandardError(groups)).toBeCloseTo(expected.pooled, 14);
  });
});

describe("the length of a text", () => {
  const row = { prompt: "def f():", canonical_solution: "", test: "", entry_point: "f" };
  const lengthWith = (own: object) => {
    const [request] = taskNamed("humaneval")
      .read(row)
      .requests("", { samples: 1, ...own });
    return request?.kind === "generate" ? request.maxTokens : undefined;
  };

  it("is the task's, half of what the model holds where that leaves no room, or what the caller says", () => {
    expect(lengthWith({})).toBe(1024);
    expect(lengthWith({ maxLength: 1025 })).toBe(1024);
    expect(lengthWith({ maxLength: 1024 })).toBe(512);
    expect(lengthWith({ maxLength: 512, maxTokens: 9999 })).toBe(9999);
  });
});

describe("Python's functions", () => {
  it("draw what Python draws", () => {
    const random = new PythonRandom(1234);
    for (const { size, count, drawn } of expected.samples)
      expect(
        random.sample(
          Array.from({ length: size }, (_, i) => i),
          count,
        ),
      ).toEqual(drawn);
    expect(expected.choices.map(() => random.choice(1000))).toEqual(expected.choices);
    expect(() => random.sample([1, 2], 3)).toThrow(RangeError);
  });

  it("treat text as Python does", () => {
    for (const one of expected.texts) {
      const label = JSON.stringify(one.text);
      expect(trim(one.text), label).toBe(one.strip);
      expect(trimEnd(one.text), label).toBe(one.rstrip);
      expect(capitalize(one.text), label).toBe(one.capitalize);
      expect(length(one.text), label).toBe(one.length);
      expect(countWords(one.text), label).toBe(one.words);
    }
  });

  it("are used where the harness cleans texts", () => {
    for (const { page, text } of expected.pages) {
      const [request] = taskNamed("wikitext").read({ page }).requests("", settings);
      expect(request).toEqual({ kind: "rolling", text });
    }
    for (const { ending, text } of expected.endings) {
      const row = { activity_label: "A", ctx_a: "b", ctx_b: "c", endings: [ending], label: "0" };
      const [request] = taskNamed("hellaswag").read(row).requests("", settings);
      expect(request).toEqual({ kind: "log-likelihood", context: "A: b C", continuation: ` ${text}` });
    }
  });
});
