import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import { compress, measurePerplexity, type ProgressEvent, pruneModel } from "../../src/index.js";
import { noteSelection } from "../../src/jobs/start.js";
import { openCheckpoint } from "../../src/models/index.js";
import { planFor } from "../../src/prune/index.js";
import { temporaryDirectory } from "../temporary.js";

const model = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const olmo = path.resolve(import.meta.dirname, "../fixtures/architectures/olmo2");
const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");
const data = path.join(directory, "data.txt");
writeFileSync(data, corpus(5, 300));
const validation = path.join(directory, "validation.txt");
writeFileSync(validation, corpus(6, 60));

const common = {
  device: "cpu",
  threads: 1,
  data: [data],
  validation: [validation],
  computeType: "f32",
  calibrationSamples: 8,
} as const;
const refit = { start: "refit", refitSamples: 8 } as const;
const out = (name: string) => path.join(directory, name);
const lossOf = async (place: string) =>
  (await measurePerplexity({ ...common, model: place, data: [validation], sequenceLength: 64 })).loss;
const bytesOf = (place: string) => readFileSync(path.join(place, "model.safetensors"));

/** Stops a job when a stage has come so far. */
class Stopped extends Error {}
const stopAt = (stage: string, done: number) => (progress: ProgressEvent) => {
  if (progress.stage === stage && progress.done >= done) throw new Stopped();
};

describe("a cut that is interrupted", () => {
  it.each(["statistics", "search", "refit a candidate"])(
    "ends in %s, and the same command to the same bits",
    async (where) => {
      const job = { ...common, ...refit, model, target: "0.7x", maxCandidates: 2 } as const;
      const abort = new AbortController();
      const [interrupted, whole] = [out(`interrupted in ${where}`), out("not interrupted")];
      const onProgress = ({ stage }: ProgressEvent) => {
        if (stage === where) abort.abort();
      };
      const stopped = pruneModel({ ...job, out: interrupted, signal: abort.signal, onProgress });
      await expect(stopped).rejects.toThrow(/aborted/);
      await pruneModel({ ...job, out: interrupted });
      await pruneModel({ ...job, out: whole });
      expect(bytesOf(interrupted).equals(bytesOf(whole))).toBe(true);
    },
  );
});

describe("a pruned model that is refitted", () => {
  const job = { ...common, model, target: "hidden=48,ffn=96" };

  it("loses less than one that is only cut, and has the same sizes", async () => {
    await pruneModel({ ...job, start: "minitron", out: out("cut") });
    await pruneModel({ ...job, ...refit, out: out("refitted") });
    const [teacher, cut, refitted] = [await lossOf(model), await lossOf(out("cut")), await lossOf(out("refitted"))];
    expect(refitted - teacher).toBeLessThan(0.5 * (cut - teacher));
    const config = (place: string) => JSON.parse(readFileSync(path.join(place, "config.json"), "utf8"));
    expect(config(out("refitted"))).toMatchObject({ hidden_size: 48, intermediate_size: 96 });
    expect(readdirSync(out("refitted"))).not.toContain("refit");
  });

  it("is the same after it was stopped in the middle", async () => {
    const place = out("stopped");
    const stopped = { ...job, ...refit, out: place } as const;
    await expect(pruneModel({ ...stopped, onProgress: stopAt("statistics", 3) })).rejects.toThrow(Stopped);
    const goingOn: number[] = [];
    const stop = stopAt("refit", 3);
    const onProgress = (progress: ProgressEvent) => {
      if (progress.stage === "statistics") goingOn.push(progress.done);
      stop(progress);
    };
    await expect(pruneModel({ ...stopped, onProgress })).rejects.toThrow(Stopped);
    expect(goingOn[0]).toBe(4);
    expect(readdirSync(path.join(place, "refit")).join()).toMatch(/-step-1\.safetensors/);
    await pruneModel(stopped);
    expect(bytesOf(place).equals(bytesOf(out("refitted")))).toBe(true);
  });

  it("is the same after its search was stopped while it measured a candidate, and leaves nothing of that", async () => {
    const searched = { ...job, ...refit, target: "0.7x", maxCandidates: 2 };
    await pruneModel({ ...searched, out: out("searched") });
    const place = out("search stopped");
    const stopped = { ...searched, out: place, onProgress: stopAt("refit a candidate", 3) };
    await expect(pruneModel(stopped)).rejects.toThrow(Stopped);
    const parts = readdirSync(path.join(place, "refit"));
    expect(parts.filter((name) => /step-\d+/.test(name)).length).toBeGreaterThan(0);
    const stages = new Set<string>();
    await pruneModel({ ...searched, out: place, onProgress: ({ stage }) => void stages.add(stage) });
    expect(bytesOf(place).equals(bytesOf(out("searched")))).toBe(true);
    expect(readdirSync(place)).not.toContain("refit");
    // scores are kept, too
    expect(stages).not.toContain("calibrate");
  });

  it("is the same after its search was killed, and measures nothing twice", async () => {
    const searched = { ...job, ...refit, target: "0.7x", maxCandidates: 2, searchTokens: 128 };
    const begun = (count: { refits: number }, stopAfter: number) => (progress: ProgressEvent) => {
      if (progress.stage !== "refit a candidate" || progress.done > 0) return;
      if (count.refits === stopAfter) throw new Stopped();
      count.refits++;
    };
    const [all, first, second] = [{ refits: 0 }, { refits: 0 }, { refits: 0 }];
    const [whole, place] = [out("search with all"), out("search killed")];
    await pruneModel({ ...searched, out: whole, onProgress: begun(all, Number.POSITIVE_INFINITY) });
    expect(all.refits).toBe(4); // of two candidates, after the refit and again to be distilled
    await expect(pruneModel({ ...searched, out: place, onProgress: begun(first, 2) })).rejects.toThrow(Stopped);
    await pruneModel({ ...searched, out: place, onProgress: begun(second, Number.POSITIVE_INFINITY) });
    expect(first.refits + second.refits).toBe(4);
    expect(bytesOf(place).equals(bytesOf(whole))).toBe(true);
    expect(readdirSync(place).sort()).toEqual(readdirSync(whole).sort());
  });

  it("goes on with a short distillation where it was stopped", async () => {
    const searched = { ...job, ...refit, target: "0.7x", maxCandidates: 2, searchTokens: 1024 };
    const [whole, place] = [out("short distillations"), out("stopped in a short distillation")];
    await pruneModel({ ...searched, out: whole });
    const abort = new AbortController();
    let candidates = 0;
    const onProgress = ({ stage, done, total }: ProgressEvent) => {
      if (stage === "refit a candidate" && done === total && ++candidates === 3) abort.abort();
    };
    const stopped = pruneModel({ ...searched, out: place, onProgress, signal: abort.signal });
    await expect(stopped).rejects.toThrow(/stopped at step 1 of \d+/);
    const checkpoints = readdirSync(path.join(place, "refit"), { recursive: true }).map(String);
    expect(checkpoints.some((name) => /brief-.*step-000000001/.test(name))).toBe(true);
    await pruneModel({ ...searched, out: place });
    expect(bytesOf(place).equals(bytesOf(whole))).toBe(true);
    expect(readdirSync(place).sort()).toEqual(readdirSync(whole).sort());
  });

  it("is made of the best candidate's refit where that was on all sequences", async () => {
    const refitted: string[] = [];
    await pruneModel({
      ...{ ...job, ...refit, target: "0.7x", maxCandidates: 2, out: out("once") },
      onProgress: ({ stage, done }) => void (stage.startsWith("refit") && refitted.push(`${stage} ${done}`)),
    });
    expect(refitted.filter((progress) => progress === "refit a candidate 3")).toHaveLength(2);
    expect(refitted.filter((progress) => progress.startsWith("refit ") && !progress.includes("candidate"))).toEqual([
      "refit 0",
    ]);
    expect(bytesOf(out("once")).equals(bytesOf(out("searched")))).toBe(true);
    // the same cut without a search
    const { hidden_size, intermediate_size } = JSON.parse(readFileSync(path.join(out("once"), "config.json"), "utf8"));
    const target = `hidden=${hidden_size},ffn=${intermediate_size}`;
    await pruneModel({ ...job, ...refit, target, out: out("named") });
    expect(bytesOf(out("named")).equals(bytesOf(out("once")))).toBe(true);
  });

  it("needs data", async () => {
    await expect(pruneModel({ model, target: "ffn=96", start: "refit", out: out("none") })).rejects.toThrow(
      /--start refit needs --data/,
    );
  });

  it("is not asked for samples that it would not use, or cannot", async () => {
    const cut = pruneModel({ ...common, model, target: "ffn=96", refitSamples: 8, out: out("none") });
    await expect(cut).rejects.toThrow(/--refit-samples is for --start refit/);
    for (const refitSamples of [0, 1.5, Number.NaN])
      await expect(pruneModel({ ...job, start: "refit", refitSamples, out: out("none") })).rejects.toThrow(
        /give a whole number from 1 on/,
      );
    expect(existsSync(out("none"))).toBe(false);
  });

  it("says where the width is cut without rotating the model", () => {
    const notesOf = (place: string, sizes: Readonly<Record<string, number>>): string => {
      const original = openCheckpoint(place);
      const notes: string[] = [];
      const options = { target: "", onNote: (note: string) => void notes.push(note) };
      noteSelection({ original, options }, planFor(original.model, sizes, []));
      return notes.join("\n");
    };
    expect(notesOf(olmo, { hidden: 16 })).toMatch(
      /leaving channels out, not by rotating .*: it has norms after its blocks/,
    );
    expect(notesOf(olmo, { ffn: 32 })).toBe("");
    expect(notesOf(model, { hidden: 48 })).toBe("");
  });
});

describe("a compression", () => {
  const settings = { tokens: 512, sequenceLength: 32, batchSize: 4 };
  const job = { ...common, model, target: "0.75x", maxCandidates: 2, settings };

  it("starts from a refit, ranks candidates after it, and takes half the learning rate", async () => {
    const refitted = await compress({ ...job, refitSamples: 8, out: out("compressed") });
    const plain = await compress({ ...job, start: "minitron", out: out("minitron") });
    expect(refitted.pruned.loss).toBeLessThan(plain.pruned.loss);
    const ranking = JSON.parse(readFileSync(path.join(out("compressed"), "search.json"), "utf8"));
    const losses = ranking.candidates.flatMap((candidate: { refittedLoss?: number }) => candidate.refittedLoss ?? []);
    expect(losses.length).toBeGreaterThan(1);
    expect(losses[0]).toBe(Math.min(...losses.slice(0, 2)));
    const rateOf = (place: string): number =>
      JSON.parse(readFileSync(path.join(place, "run.json"), "utf8")).configuration.settings.learningRate;
    expect(rateOf(out("compressed"))).toBeCloseTo(rateOf(out("minitron")) / 2, 12);
  });
});
