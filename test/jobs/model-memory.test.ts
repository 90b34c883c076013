import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it, vi } from "vitest";
import { corpus } from "../../examples/corpus.js";
import { Backend } from "../../src/ggml/index.js";
import { inspect, measurePerplexity, pruneModel } from "../../src/jobs/index.js";
import { temporaryDirectory } from "../temporary.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const root = temporaryDirectory();
const data = path.join(root, "stories.txt");
writeFileSync(data, corpus(5, 60));
const few = { calibrationSamples: 4, refitSamples: 2, maxCandidates: 2, data: [data], cacheDir: root } as const;

describe("a model that is larger than the memory it may take", () => {
  it("is searched, refitted and cut to the same bits, and a note says how", async () => {
    const cut = async (name: string, memoryBytes: number | undefined) => {
      const notes: string[] = [];
      const out = path.join(root, name);
      const onNote = (note: string) => void notes.push(note);
      await pruneModel({ ...few, model: teacher, target: "0.7x", start: "refit", out, memoryBytes, onNote });
      return { weights: readFileSync(path.join(out, "model.safetensors")), notes: notes.join("\n") };
    };
    const [whole, streamed] = [await cut("whole", undefined), await cut("streamed", 1_000_000)];
    expect(streamed.weights.equals(whole.weights)).toBe(true);
    expect(streamed.notes).toMatch(/do not fit in .*B.*layer by layer/);
    expect(whole.notes).not.toMatch(/layer by layer/);
  });

  it("and its candidates together take no more than they may", async () => {
    const { parameters } = await inspect(teacher);
    const memoryBytes = 2 * 1.5 * parameters; // half as much again as the weights in bf16
    let most = 0;
    const allocate = Backend.prototype.allocate;
    const watch = vi.spyOn(Backend.prototype, "allocate").mockImplementation(function (this: Backend, ...place) {
      const buffer = allocate.apply(this, place);
      most = Math.max(most, this.takenBytes);
      return buffer;
    });
    await pruneModel({
      ...few,
      model: teacher,
      target: "0.9x",
      refitSamples: undefined,
      out: path.join(root, "small"),
      memoryBytes,
    });
    watch.mockRestore();
    expect(most).toBeGreaterThan(2 * parameters); // the original was loaded as a whole
    expect(most).toBeLessThanOrEqual(memoryBytes);
  });

  it("has the same loss", async () => {
    const job = { ...few, model: teacher, sequenceLength: 64 };
    expect(await measurePerplexity({ ...job, memoryBytes: 100_000 })).toEqual(await measurePerplexity(job));
  });

  it("has sizes for each layer, the same as in memory, but no short distillations", async () => {
    const job = { ...few, model: teacher, target: "0.7x", start: "refit" } as const;
    const [streamed, whole] = [path.join(root, "streamed layers"), path.join(root, "layers")];
    const { plan } = await pruneModel({ ...job, perLayer: true, memoryBytes: 1_000_000, out: streamed });
    expect(await pruneModel({ ...job, perLayer: true, out: whole })).toMatchObject({ plan });
    expect(readFileSync(path.join(streamed, "model.safetensors"))).toEqual(
      readFileSync(path.join(whole, "model.safetensors")),
    );
    const stages: string[] = [];
    const onProgress = ({ stage }: { readonly stage: string }) => void stages.push(stage);
    const brief = pruneModel({
      ...job,
      onProgress,
      searchTokens: 1000,
      memoryBytes: 1_000_000,
      out: path.join(root, "brief"),
    });
    await expect(brief).rejects.toThrow(/--search-tokens.*needs the whole model in memory/);
    expect(stages.filter((stage) => stage !== "tokenize")).toEqual([]); // before anything that takes long
  });
});
