import { copyFileSync, existsSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import {
  compress,
  distill,
  evaluate,
  measurePerplexity,
  pretrain,
  quantize,
  type TrainSettings,
} from "../../src/index.js";
import { temporaryDirectory } from "../temporary.js";

const model = path.resolve(import.meta.dirname, "../../examples/tiny-teacher"); // of 512 positions
const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");
const data = path.join(directory, "data.txt");
writeFileSync(data, corpus(5, 300));
const out = path.join(directory, "out");

const common = { device: "cpu", data: [data] } as const;
const small = { tokens: 512, sequenceLength: 32, batchSize: 4 };
type Change = Partial<TrainSettings>;
const commands: Record<string, (change: Change) => Promise<unknown>> = {
  distill: (change) => distill({ ...common, teacher: model, student: model, out, settings: { ...small, ...change } }),
  pretrain: (change) => pretrain({ ...common, model, out, settings: { ...small, ...change } }),
  compress: (change) => compress({ ...common, model, out, target: "0.67x", settings: { ...small, ...change } }),
};

describe.each(Object.keys(commands))("%s", (name) => {
  it.each<[string, Change, RegExp]>([
    ["sequences beyond the model's positions", { sequenceLength: 513 }, /513 is more than the 512 positions/],
    ["a warm-up longer than the run", { warmupSteps: 5 }, /warm-up of 5 steps is longer than the run of 4/],
    ["a batch counted in tokens", { batchSize: 4_000_000 }, /a batch of 4000000 sequences is too large: it counts/],
    ["a learning rate of 0", { learningRate: 0 }, /learningRate must be positive, not 0/],
    ["a learning rate that rises", { learningRate: 1e-4, minimumLearningRate: 1e-3 }, /ends at 0.001, above/],
    ["a weight decay that is not a number", { weightDecay: Number.NaN }, /weightDecay must be 0 or more/],
  ])("refuses %s before anything else", async (_, change, message) => {
    await expect(commands[name]!(change)).rejects.toThrow(message);
    expect(existsSync(out)).toBe(false);
  });
});

describe("a compression", () => {
  const stages = new Set<string>();
  const job = { ...common, model, out: path.join(directory, "compression"), target: "0.67x", settings: small } as const;
  const onProgress = ({ stage }: { readonly stage: string }) => void stages.add(stage);

  it("refuses too little data before it measures anything", async () => {
    const few = path.join(directory, "few.txt");
    writeFileSync(few, corpus(7, 1));
    const settings = { ...small, sequenceLength: 500 };
    const short = compress({ ...job, data: [few], validation: [data], settings, onProgress });
    await expect(short).rejects.toThrow(/has \d+ tokens, but one sequence needs 501/);
    expect([...stages]).toEqual(["tokenize"]);
  });

  it("refuses scores of a model that it is to change before", async () => {
    const scoresFile = path.join(directory, "scores.safetensors");
    copyFileSync(path.join(model, "model.safetensors"), scoresFile);
    const corrected = compress({ ...job, teacherCorrection: true, scoresFile, onProgress });
    await expect(corrected).rejects.toThrow(/scores of the model as it is, and --teacher-correction changes it first/);
    expect([...stages]).toEqual(["tokenize"]);
  });
});

describe("measuring", () => {
  it("refuses sequences beyond the model's positions", async () => {
    const message = /more than the 512 positions that .* was made for/;
    await expect(measurePerplexity({ ...common, model, sequenceLength: 1024 })).rejects.toThrow(message);
    await expect(quantize({ ...common, model, types: ["q8_0"], out, sequenceLength: 1024 })).rejects.toThrow(message);
    await expect(evaluate({ device: "cpu", models: [model], tasks: ["piqa"], maxLength: 600 })).rejects.toThrow(
      message,
    );
    expect(existsSync(out)).toBe(false);
  });
});

describe("what looks like a mistake is noted", () => {
  let count = 0;
  /** The notes before the first step of a training run. */
  const notesOf = async (job: { data?: string[]; validation: string[] }, tokens: number) => {
    const notes: string[] = [];
    const place = path.join(directory, `run-${count++}`);
    const abort = new AbortController();
    const onProgress = ({ stage }: { readonly stage: string }) => void (stage !== "tokenize" && abort.abort());
    const options = { onNote: (text: string) => void notes.push(text), onProgress, signal: abort.signal };
    const run = pretrain({ ...common, ...job, model, out: place, settings: { ...small, tokens }, ...options });
    await expect(run).rejects.toThrow(/stopped at step 1/);
    return notes.join("\n");
  };

  it("validation data that is training data, by any name", async () => {
    const copy = path.join(directory, "copy.txt");
    copyFileSync(data, copy);
    const other = path.join(directory, "other.txt");
    writeFileSync(other, corpus(6, 100));
    for (const same of [data, copy, path.join(directory, "*a.txt")])
      expect(await notesOf({ validation: [same] }, 512)).toMatch(/the validation data is training data, too/);
    expect(await notesOf({ validation: [other, data] }, 512)).toMatch(/training data, too/);
    expect(await notesOf({ validation: [other] }, 512)).toBe("");
  });

  it("many passes over little data", async () => {
    const little = path.join(directory, "little.txt");
    writeFileSync(little, corpus(7, 3));
    const notes = await notesOf({ data: [little], validation: [data] }, 30_000);
    expect(notes).toMatch(/30000 tokens are \d+ passes over the data, which has \d+/);
  });
});
