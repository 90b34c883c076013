import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import type { DistillationOptions } from "../../src/distill/index.js";
import { compress, distill, inspect, type TeacherOptions } from "../../src/index.js";
import { temporaryDirectory } from "../temporary.js";

const model = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const directory = temporaryDirectory();
const data = path.join(directory, "data.txt");
writeFileSync(data, corpus(5, 300));
const cacheDir = path.join(directory, "cache");

const common = {
  device: "cpu",
  threads: 1,
  data: [data],
  settings: { tokens: 512, sequenceLength: 32, batchSize: 4 },
  cacheDir,
} as const;

describe("ways to get the teacher's predictions", () => {
  const out = path.join(directory, "refused");
  it.each<[string, TeacherOptions, Partial<DistillationOptions>, boolean, RegExp]>([
    ["both kinds", { topK: 5, sampledLogits: 50 }, {}, false, /--top-k and --sampled-logits cannot be combined/],
    ["no samples", { sampledLogits: 0 }, {}, false, /--sampled-logits must be a whole number from 1 up, not 0/],
    ["half a token", { topK: 1.5 }, {}, false, /--top-k must be a whole number from 1 up, not 1.5/],
    [
      "samples with another divergence",
      { sampledLogits: true },
      { divergence: "reverse-kl" },
      false,
      /estimate forward-kl only: --sampled-logits cannot be combined with --loss reverse-kl/,
    ],
    [
      "samples with the divergence of the most probable",
      { sampledLogits: 50 },
      { divergence: "top-k" },
      false,
      /cannot be combined with --loss top-k/,
    ],
    [
      "a cache with another divergence",
      { cache: true },
      { divergence: "jensen-shannon" },
      false,
      /jensen-shannon needs/,
    ],
    ["samples with intermediate states", { sampledLogits: 50 }, {}, true, /intermediate states need the whole teacher/],
    ["a cache with intermediate states", { cache: true }, {}, true, /intermediate states need the whole teacher/],
  ])("refuses %s before anything else", async (_, teacherOptions, distillation, intermediate, message) => {
    const compressed = compress({ ...common, model, out, target: "0.67x", teacherOptions, distillation, intermediate });
    await expect(compressed).rejects.toThrow(message);
    if (!intermediate) {
      const distilled = distill({ ...common, teacher: model, student: model, out, teacherOptions, distillation });
      await expect(distilled).rejects.toThrow(message);
    }
    expect(existsSync(out)).toBe(false);
  });

  it("distills on samples: the same from the teacher and from the cache, and a run is of one number of them", async () => {
    const run = (name: string, teacherOptions: TeacherOptions) => {
      const distillation = { temperature: 2, crossEntropyWeight: 0.1 };
      const job = { ...common, teacher: model, student: model, out: path.join(directory, name), teacherOptions };
      return distill({ ...job, distillation });
    };
    await run("fresh", { sampledLogits: 20 });
    await run("written", { sampledLogits: 20, cache: true });
    await run("read", { sampledLogits: 20, cache: true });
    const [fresh, ...others] = ["fresh", "written", "read"].map((name) =>
      readFileSync(path.join(directory, name, "model.safetensors")),
    );
    for (const other of others) expect(other.equals(fresh!)).toBe(true);
    expect(readdirSync(path.join(cacheDir, "logits"))).toHaveLength(1);
    await expect(run("read", { sampledLogits: 21, cache: true })).rejects.toThrow(/sampledLogits 20 -> 21/);
  });

  it("distills from a teacher that does not fit beside its student: its predictions are computed first, layer by layer", async () => {
    const { parameters } = await inspect(model);
    const memoryBytes = 16 * parameters + 1_000_000; // what training takes, and less than the teacher
    const settings = { ...common.settings, sequenceLength: 8, batchSize: 1 }; // activations fit into the rest
    const run = (name: string, more: { teacherOptions?: TeacherOptions; memoryBytes?: number }) => {
      const places = { out: path.join(directory, name), cacheDir: path.join(directory, `${name}-cache`) };
      return distill({ ...common, settings, ...places, ...more, teacher: model, student: model });
    };
    const teacherOptions = { topK: 8, cache: true };
    await run("in-memory", { teacherOptions });
    await run("streamed", { teacherOptions, memoryBytes });
    const [whole, streamed] = ["in-memory", "streamed"].map((name) =>
      readFileSync(path.join(directory, name, "model.safetensors")),
    );
    expect(streamed!.equals(whole!)).toBe(true);
    await expect(run("uncached", { memoryBytes })).rejects.toThrow(/the teacher does not fit in .*--teacher-cache/);
    // a whole compression is refused before it searches
    const compressed = compress({
      ...common,
      settings,
      model,
      target: "0.9x",
      out: path.join(directory, "early"),
      memoryBytes,
    });
    await expect(compressed).rejects.toThrow(/the teacher does not fit in .*--teacher-cache/);
    expect(readdirSync(path.join(directory, "early"))).not.toContain("search.json");
    await expect(run("tiny", { memoryBytes: 1_000_000 })).rejects.toThrow(
      /^training .* takes .*MiB .*there are 977 KiB/,
    );
  });
});
