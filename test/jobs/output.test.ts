import { spawn, spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import { readTensor, writeCheckpoint } from "../../src/checkpoint/index.js";
import { startFoundry } from "../../src/foundry/index.js";
import {
  compress,
  distill,
  evaluate,
  exportModel,
  type JobOptions,
  pretrain,
  pruneModel,
  quantize,
} from "../../src/index.js";
import { openCheckpoint } from "../../src/models/index.js";
import { hashBytes } from "../../src/system/files.js";
import { temporaryDirectory } from "../temporary.js";

const root = path.resolve(import.meta.dirname, "../..");
const main = path.join(root, "bin/coppice.cjs");
const teacher = path.join(root, "examples/tiny-teacher");
const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");

/** A directory with a model, data and notes that nothing may touch. */
let work: string;
let count = 0;
beforeEach(() => {
  work = path.join(directory, `work-${count++}`);
  mkdirSync(work);
  cpSync(teacher, path.join(work, "model"), { recursive: true });
  writeFileSync(path.join(work, "data.txt"), corpus(5, 200));
  writeFileSync(path.join(work, "notes.md"), "mine\n");
});
const at = (...names: string[]) => path.join(work, ...names);

/** A hash of every file below a directory, by the file's name. */
const snapshot = (place: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(place, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => path.join(entry.parentPath, entry.name))
      .map((file) => [path.relative(place, file), hashBytes(readFileSync(file))]),
  );

const common = { device: "cpu" } as const;
const settings = { tokens: 512, sequenceLength: 32, batchSize: 4, saveEverySteps: 2 };
const distilling = (out: string, more: Partial<JobOptions & { restart: boolean; teacher: string }> = {}) =>
  distill({ ...common, student: at("model"), teacher, data: [at("data.txt")], out, settings, ...more });
const cutting = (out: string, more: object = {}) => ({
  ...common,
  model: at("model"),
  data: [at("data.txt")],
  target: "hidden=96,ffn=256",
  calibrationSamples: 8,
  out,
  ...more,
});
const compressing = (out: string, more: object = {}) =>
  compress({ ...cutting(out), refitSamples: 4, settings, ...more });

describe("an --out that touches what is read", () => {
  /** Each command with an --out. */
  const commands: Record<string, (out: string) => Promise<unknown>> = {
    compress: (out) => compressing(out, { restart: true }),
    distill: (out) => distilling(out, { teacher: at("model"), restart: true }),
    pretrain: (out) =>
      pretrain({ ...common, model: at("model"), data: [at("data.txt")], out, settings, restart: true }),
    prune: (out) => pruneModel({ ...cutting(out), restart: true }),
    export: (out) => exportModel({ ...common, model: at("model"), out, restart: true, overwrite: true }),
    quantize: (out) => quantize({ ...common, model: at("model"), out, types: ["q8_0"], overwrite: true }),
    evaluate: (out) => evaluate({ ...common, models: [at("model")], out, tasks: ["piqa"], restart: true }),
  };
  it.each(Object.keys(commands))(
    "is refused by %s: it is, contains or lies inside the input; nothing is lost",
    async (name) => {
      symlinkSync(at("model"), at("link"));
      const before = snapshot(work);
      const run = commands[name]!;
      await expect(run(at("model"))).rejects.toThrow(/is (the|a) (model|teacher|student) itself: choose another --out/);
      await expect(run(at("link"))).rejects.toThrow(/itself/);
      await expect(run(work)).rejects.toThrow(/contains (the|a) (model|teacher)/);
      await expect(run(at("model", "inner"))).rejects.toThrow(/lies inside (the|a) (model|teacher)/);
      await expect(run(at("link", "inner"))).rejects.toThrow(/lies inside/);
      expect(snapshot(work)).toEqual(before);
    },
  );

  it("is refused where data, validation data or a glob's files lie in it", async () => {
    mkdirSync(at("texts"));
    renameSync(at("data.txt"), at("texts", "data.txt"));
    const before = snapshot(work);
    for (const data of [at("texts"), at("texts", "data.txt"), at("texts", "*.txt")])
      await expect(distilling(at("texts"), { data: [data] } as object)).rejects.toThrow(/(is|contains) the data/);
    await expect(
      distilling(at("texts"), { data: [path.join(root, "examples/corpus")], validation: [at("texts")] } as object),
    ).rejects.toThrow(/is the validation data itself/);
    await expect(distilling(at("texts", "out"), { data: [at("texts")] } as object)).rejects.toThrow(
      /lies inside the data/,
    );
    expect(snapshot(work)).toEqual(before);
  });

  it("is refused where the weights are links into it", async () => {
    mkdirSync(at("weights"));
    renameSync(at("model", "model.safetensors"), at("weights", "model.safetensors"));
    symlinkSync(at("weights", "model.safetensors"), at("model", "model.safetensors"));
    await expect(distilling(at("weights"))).rejects.toThrow(/contains the student/);
  });
});

describe("a directory that is not the run's own", () => {
  it.each([["compress"], ["distill"], ["pretrain"], ["prune"], ["export"], ["evaluate"]])(
    "is refused by %s, with --restart too, and keeps what it has",
    async (name) => {
      const out = at("mine");
      mkdirSync(path.join(out, "checkpoints"), { recursive: true });
      writeFileSync(path.join(out, "checkpoints", "precious.bin"), "1");
      const jobs: Record<string, () => Promise<unknown>> = {
        compress: () => compressing(out, { restart: true }),
        distill: () => distilling(out, { restart: true }),
        pretrain: () =>
          pretrain({ ...common, model: at("model"), data: [at("data.txt")], out, settings, restart: true }),
        prune: () => pruneModel({ ...cutting(out), restart: true }),
        export: () => exportModel({ ...common, model: at("model"), out, restart: true, overwrite: true }),
        evaluate: () => evaluate({ ...common, models: [at("model")], out, tasks: ["piqa"], restart: true }),
      };
      await expect(jobs[name]!()).rejects.toThrow(/is not empty and not a run of coppice \(it has checkpoints\)/);
      expect(snapshot(out)).toEqual({ "checkpoints/precious.bin": hashBytes("1") });
    },
  );

  it("is refused with a run.json of another tool, and with another command's run", async () => {
    mkdirSync(at("other"));
    writeFileSync(at("other", "run.json"), '{"id": "wandb"}');
    await expect(distilling(at("other"), { restart: true })).rejects.toThrow(/not a run of coppice/);
    await exportModel({ ...common, model: at("model"), out: at("exported") });
    await expect(pruneModel(cutting(at("exported")))).rejects.toThrow(/holds a run of another command \(export\)/);
    const cut = openCheckpoint(at("exported"));
    expect(cut.config.hidden_size).toBe(128);
  });

  it("keeps files of others through a restart and the end of a run", async () => {
    const out = at("run");
    await distilling(out);
    mkdirSync(path.join(out, "checkpoints"));
    writeFileSync(path.join(out, "checkpoints", "best.bin"), "mine");
    writeFileSync(path.join(out, "notes.md"), "mine");
    await distilling(out, { restart: true });
    expect(readFileSync(path.join(out, "checkpoints", "best.bin"), "utf8")).toBe("mine");
    expect(readFileSync(path.join(out, "notes.md"), "utf8")).toBe("mine");
    expect(readdirSync(path.join(out, "checkpoints"))).toEqual(["best.bin"]);
  });

  it("never deletes beyond it, whatever its list says", async () => {
    const out = at("run");
    await exportModel({ ...common, model: at("model"), out });
    const record = JSON.parse(readFileSync(path.join(out, "run.json"), "utf8"));
    symlinkSync(work, path.join(out, "up"));
    writeFileSync(path.join(out, "run.json"), JSON.stringify({ ...record, files: [...record.files, "up/notes.md"] }));
    await exportModel({ ...common, model: at("model"), out, restart: true });
    expect(existsSync(at("notes.md"))).toBe(true);
    writeFileSync(path.join(out, "run.json"), JSON.stringify({ ...record, files: [...record.files, "../notes.md"] }));
    await expect(exportModel({ ...common, model: at("model"), out, restart: true })).rejects.toThrow(
      /not a run of coppice/,
    );
    expect(existsSync(at("notes.md"))).toBe(true);
  });

  it("does not lose a file that someone put where the run is about to write", async () => {
    const out = at("run");
    const attempt = distilling(out, {
      onProgress: ({ stage }) => {
        if (stage === "distill" && !existsSync(path.join(out, "config.json")))
          writeFileSync(path.join(out, "config.json"), "mine");
      },
    });
    await expect(attempt).rejects.toThrow(
      /config.json was not written by this run and would be lost: move it elsewhere/,
    );
    expect(readFileSync(path.join(out, "config.json"), "utf8")).toBe("mine");
    rmSync(path.join(out, "config.json"));
    await distilling(out);
    expect(openCheckpoint(out).config.hidden_size).toBe(128);
  });

  it("is not a file, nor below one", async () => {
    await expect(distilling(at("notes.md"))).rejects.toThrow(/notes.md is a file: --out must name a directory/);
    await expect(distilling(at("notes.md", "out"))).rejects.toThrow(
      /notes.md.out cannot be written: .*notes.md is a file/,
    );
    await expect(distilling(" ")).rejects.toThrow(/--out is empty/);
    mkdirSync(at("folder.gguf"));
    await expect(exportModel({ ...common, model: at("model"), out: at("folder.gguf") })).rejects.toThrow(
      /is a directory/,
    );
    await expect(quantize({ ...common, model: at("model"), types: ["q8_0"], out: at("notes.md") })).rejects.toThrow(
      /is a file/,
    );
    expect(readFileSync(at("notes.md"), "utf8")).toBe("mine\n");
  });

  it("does not bear a file's name", async () => {
    for (const name of ["m.gguf", "m.GGUF", "model.safetensors"])
      await expect(pruneModel(cutting(at(name)))).rejects.toThrow(
        /is the name of a file, but this command writes a dir/,
      );
    await expect(exportModel({ ...common, model: at("model"), out: at("m.safetensors") })).rejects.toThrow(
      /name of a file/,
    );
    // a slip of .gguf is no directory
    await expect(exportModel({ ...common, model: at("model"), out: at("m.ggf") })).rejects.toThrow(
      /m\.ggf would be a directory\. Did you mean .*m\.gguf\?/,
    );
    const quantized = quantize({ ...common, model: at("model"), types: ["q8_0"], out: at("m.guff") });
    await expect(quantized).rejects.toThrow(/Did you mean .*m\.gguf\?/);
    expect(readdirSync(work).sort()).toEqual(["data.txt", "model", "notes.md"]);
  });

  it("is left as it was when nothing came of the run", async () => {
    await expect(distilling(at("a", "b"), { data: [at("notes.md")] } as object)).rejects.toThrow(/tokens/);
    expect(existsSync(at("a"))).toBe(false);
  });
});

describe("a foundry's data directory", () => {
  it("is empty or a foundry's", async () => {
    const before = snapshot(work);
    await expect(startFoundry({ data: work, port: 0, workers: 0 })).rejects.toThrow(/is not empty and no foundry's/);
    await expect(startFoundry({ data: at("notes.md"), port: 0 })).rejects.toThrow(/notes.md is a file: --data/);
    expect(snapshot(work)).toEqual(before);
  });
});

describe("a .gguf file that is there", () => {
  it("is replaced only when asked", async () => {
    const out = at("m.gguf");
    writeFileSync(out, "mine");
    await expect(exportModel({ ...common, model: at("model"), out })).rejects.toThrow(/is there already.*--overwrite/);
    await expect(quantize({ ...common, model: at("model"), types: ["q8_0"], out })).rejects.toThrow(/is there already/);
    expect(readFileSync(out, "utf8")).toBe("mine");
    await exportModel({ ...common, model: at("model"), out, overwrite: true });
    expect(statSync(out).size).toBeGreaterThan(1e5);
  });

  it("is never replaced where it is a part of what is read", async () => {
    mkdirSync(at("parts"));
    const shards = { ...common, shardBytes: 600_000 };
    const { files } = await exportModel({ ...shards, model: at("model"), out: at("parts", "p.gguf") });
    expect(files.length).toBeGreaterThan(1);
    const before = files.map((file) => readFileSync(file));
    const again = exportModel({ ...shards, model: files[0]!, out: at("parts", "p.gguf"), overwrite: true });
    await expect(again).rejects.toThrow(/is a file of the model itself/);
    expect(files.map((file) => readFileSync(file))).toEqual(before);
  });

  it("counts when it is a part of several, and beside others", async () => {
    mkdirSync(at("gguf"));
    writeFileSync(at("gguf", "m-00001-of-00002.gguf"), "mine");
    await expect(exportModel({ ...common, model: at("model"), out: at("gguf", "m.gguf") })).rejects.toThrow(
      /m-00001-of-00002.gguf is there/,
    );
    writeFileSync(at("gguf", "model-q8_0.gguf"), "mine");
    const both = quantize({ ...common, model: at("model"), types: ["q4_0", "q8_0"], out: at("gguf") });
    await expect(both).rejects.toThrow(/model-q8_0.gguf is there already/);
    expect(existsSync(at("gguf", "model-q4_0.gguf"))).toBe(false); // said before anything is made
    await quantize({ ...common, model: at("model"), types: ["q4_0"], out: at("gguf") });
    expect(readdirSync(at("gguf")).sort()).toEqual(["m-00001-of-00002.gguf", "model-q4_0.gguf", "model-q8_0.gguf"]);
  });
});

describe("a kind that is named twice", () => {
  it("is made once", async () => {
    const { files } = await quantize({ ...common, model: at("model"), types: ["q8_0", "q8_0"], out: at("m.gguf") });
    expect(files.map(({ name }) => name)).toEqual(["q8_0"]);
  });
});

describe("a run that goes on", () => {
  const stopping = () => {
    const abort = new AbortController();
    const onProgress = ({ stage }: { readonly stage: string }) => void (stage === "distill" && abort.abort());
    return { signal: abort.signal, onProgress };
  };
  const differently = (more: object) =>
    distill({
      ...common,
      student: at("model"),
      teacher,
      data: [at("data.txt")],
      out: at("run"),
      settings: { ...settings, ...more },
    });

  it("may save more often and compute activations again, to the same result; not train on something else", async () => {
    await distilling(at("whole"));
    await expect(distilling(at("run"), stopping())).rejects.toThrow(/stopped at step 1 of 4/);
    await expect(differently({ learningRate: 1e-3 })).rejects.toThrow(/settings.learningRate .* -> 0.001/);
    await differently({ recompute: true, saveEverySteps: 1, validateEverySteps: 2 });
    const weights = (name: string) => readFileSync(at(name, "model.safetensors"));
    expect(weights("run").equals(weights("whole"))).toBe(true);
  });

  it("may do so with other settings where it had done nothing yet", async () => {
    const tight = { memoryBytes: 2_000_000 };
    await expect(distilling(at("run"), tight)).rejects.toThrow(/takes .* and there are/);
    const record = JSON.parse(readFileSync(at("run", "run.json"), "utf8")) as { files: string[] };
    writeFileSync(at("run", "run.json"), JSON.stringify({ ...record, files: [...record.files, "model.safetensors"] }));
    writeFileSync(at("run", "model.safetensors.partial-1-0123abcd"), "of a killed process");
    await differently({ sequenceLength: 16, batchSize: 2 });
    expect(existsSync(at("run", "model.safetensors.partial-1-0123abcd"))).toBe(false);
    expect(JSON.parse(readFileSync(at("run", "run.json"), "utf8")).configuration.settings.sequenceLength).toBe(16);
  });

  it("without its scores says so, and that there are some already where they are asked for", async () => {
    const scoresFile = at("scores.safetensors");
    const notes: string[] = [];
    const onNote = (note: string) => void notes.push(note);
    await expect(compressing(at("run"), { scoresFile, ...stopping() })).rejects.toThrow(/stopped at step 1/);
    rmSync(at("run", "stages.json"));
    await expect(compressing(at("other"), { scoresFile, onNote, ...stopping() })).rejects.toThrow(/stopped at step 1/);
    expect(notes.join()).toMatch(/has scores already: --samples changes nothing of them/);
    await expect(
      compressing(at("third"), { scoresFile, ...stopping(), target: "0.8x", maxCandidates: 1 }),
    ).rejects.toThrow(/stopped/);
    const file = at("third", "stages.json");
    const stages = JSON.parse(readFileSync(file, "utf8")) as { name: string }[];
    writeFileSync(file, JSON.stringify(stages.filter(({ name }) => name !== "search" && name !== "prune")));
    await expect(compressing(at("third"), { target: "0.8x", maxCandidates: 1 })).rejects.toThrow(
      /scores that the run began with are not in .*--scores/,
    );
  });

  it("is not asked for the memory of a training that is done", async () => {
    const evaluating = { evaluate: { tasks: ["piqa"], data: at("nothing"), limit: 1 } };
    mkdirSync(at("nothing"));
    await expect(compressing(at("run"), { ...evaluating, hub: { offline: true } })).rejects.toThrow(/piqa|offline/i);
    expect(readFileSync(at("run", "report.html"), "utf8")).toContain("distill"); // all but the evaluation is reported
    await compressing(at("run"), { memoryBytes: 2_000_000 });
    expect(JSON.parse(readFileSync(at("run", "run.json"), "utf8")).finished).toBe(true);
  });
});

describe("two runs in one directory", () => {
  it("at once: the second says who has it, and the first ends as if alone", async () => {
    const first = distilling(at("run"));
    await expect(distilling(at("run"))).rejects.toThrow(new RegExp(`in use by another run: process ${process.pid} on`));
    await first;
    const steps = readFileSync(at("run", "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line).step);
    expect(steps).toEqual([1, 2, 3, 4]);
    expect(existsSync(at("run", "run.lock"))).toBe(false);
  });

  it("of which one was killed: the other takes its lock over", async () => {
    const args = [
      "distill",
      at("model"),
      "--teacher",
      teacher,
      "--data",
      at("data.txt"),
      "--out",
      at("run"),
      "--device",
      "cpu",
    ];
    const child = spawn(process.execPath, [main, ...args, "--tokens", "1B", "--sequence-length", "32"], {
      stdio: "ignore",
    });
    const ended = new Promise((resolve) => child.once("exit", resolve));
    while (!existsSync(at("run", "metrics.jsonl")) && child.exitCode === null)
      await new Promise((resolve) => setTimeout(resolve, 20));
    const second = spawnSync(process.execPath, [main, ...args, "--tokens", "1B"], { encoding: "utf8" });
    expect(second).toMatchObject({ status: 1, stderr: expect.stringMatching(`process ${child.pid} on`) });
    child.kill("SIGKILL");
    await ended;
    expect(existsSync(at("run", "run.lock"))).toBe(true);
    await distilling(at("run"), { restart: true });
    expect(existsSync(at("run", "run.lock"))).toBe(false);
  });

  it("of which one is on another machine: it is believed, and the lock named", async () => {
    mkdirSync(at("run"));
    writeFileSync(
      at("run", "run.lock"),
      JSON.stringify({ pid: 1, host: "elsewhere", since: "2026-01-01", token: "x" }),
    );
    await expect(distilling(at("run"))).rejects.toThrow(/process 1 on elsewhere, since 2026-01-01.* delete .*run.lock/);
  });
});

describe("a finished run", () => {
  it("is not run again, and says so", async () => {
    const first = await distilling(at("run"));
    const notes: string[] = [];
    expect(await distilling(at("run"), { onNote: (text) => notes.push(text) })).toEqual(first);
    expect(notes.join()).toMatch(/finished already; --restart/);
    const pruned = await pruneModel(cutting(at("pruned")));
    expect(await pruneModel(cutting(at("pruned"), { onNote: (text: string) => notes.push(text) }))).toEqual(pruned);
    expect(notes).toHaveLength(2);
  });

  it("of other inputs at the same paths is another", async () => {
    cpSync(at("model"), at("teacher"), { recursive: true });
    await distilling(at("run"), { teacher: at("teacher") });
    const file = at("teacher", "model.safetensors");
    const { mtime, atime } = statSync(file);
    const { config, source } = openCheckpoint(at("teacher"));
    const flipped = {
      ...source,
      tensors: source.tensors,
      readRows: (name: string, from: number, to: number) => source.readRows(name, from, to).map((byte) => byte ^ 1),
      releaseRows: () => {},
    };
    writeCheckpoint(at("changed"), config, flipped);
    expect(statSync(at("changed", "model.safetensors")).size).toBe(statSync(file).size);
    cpSync(at("changed", "model.safetensors"), file);
    utimesSync(file, atime, mtime); // as cp -p leaves it
    await expect(distilling(at("run"), { teacher: at("teacher") })).rejects.toThrow(
      /teacher: not the same content as before/,
    );
    writeFileSync(at("data.txt"), corpus(6, 200));
    await expect(distilling(at("run"))).rejects.toThrow(/data: not the same content/);
    expect(readTensor(openCheckpoint(at("run")).source, "model.norm.weight").length).toBeGreaterThan(0);
  });

  it("of the same inputs at other paths is the same", async () => {
    const first = await distilling(at("run"), { teacher: at("model") });
    cpSync(at("model"), at("moved"), { recursive: true });
    expect(await distilling(at("run"), { teacher: at("moved") })).toEqual(first);
  });

  it("that lacks a file says so instead of being finished", async () => {
    await pruneModel(cutting(at("pruned")));
    rmSync(at("pruned", "model.safetensors"));
    await expect(pruneModel(cutting(at("pruned")))).rejects.toThrow(/model.safetensors is gone: --restart/);
    await pruneModel({ ...cutting(at("pruned")), restart: true });
    expect(openCheckpoint(at("pruned")).config.hidden_size).toBe(96);
  });

  it("of other scores is not taken for this one's", async () => {
    const scoresFile = at("scores.safetensors");
    await pruneModel(cutting(at("pruned"), { scoresFile }));
    await pruneModel(cutting(at("pruned"), { scoresFile })); // they are there now
    rmSync(scoresFile);
    await pruneModel(cutting(at("again"), { scoresFile, calibrationSamples: 4 }));
    await expect(pruneModel(cutting(at("pruned"), { scoresFile }))).rejects.toThrow(/is not what the run in .* used/);
  });
});

describe("scores and importances", () => {
  it("of another model of the same sizes are refused, and so is a place that cannot hold them", async () => {
    const scoresFile = at("scores.safetensors");
    const importanceFile = at("importance.safetensors");
    await pruneModel(cutting(at("one"), { scoresFile }));
    const quantizing = { ...common, data: [at("data.txt")], types: ["q4_0" as const], samples: 4, importanceFile };
    await expect(quantize({ ...quantizing, data: [], model: at("model"), out: at("none.gguf") })).rejects.toThrow(
      /importance\.safetensors does not exist, and without --data/,
    );
    await quantize({ ...quantizing, model: at("model"), out: at("one.gguf") });
    const notes: string[] = [];
    const onNote = (note: string) => void notes.push(note);
    await quantize({ ...quantizing, samples: 8, model: at("model"), out: at("again.gguf"), onNote });
    expect(notes.join()).toMatch(/has importances already: --data and --samples change nothing of them/);
    const { config, source } = openCheckpoint(at("model"));
    const tuned = {
      tensors: source.tensors,
      readRows: (name: string, from: number, to: number) => source.readRows(name, from, to).map((byte) => byte ^ 1),
      releaseRows: () => {},
    };
    writeCheckpoint(at("tuned"), config, tuned, { carryFrom: at("model") });
    const other = { model: at("tuned") };
    await expect(pruneModel({ ...cutting(at("two"), { scoresFile }), ...other })).rejects.toThrow(
      /scores.safetensors has the scores of another model of the same sizes/,
    );
    await expect(quantize({ ...quantizing, ...other, out: at("two.gguf") })).rejects.toThrow(
      /importances of another model/,
    );
    await expect(pruneModel(cutting(at("three"), { scoresFile: at("model") }))).rejects.toThrow(
      /is a directory: --scores/,
    );
    await expect(pruneModel(cutting(at("three"), { scoresFile: at("notes.md", "s") }))).rejects.toThrow(
      /notes.md is a file/,
    );
    expect(existsSync(at("three"))).toBe(false);
  });
});

describe("a run of which the data has changed on the hub", () => {
  it("is not continued with what was measured on the data before", async () => {
    const run = (more = {}) => pruneModel(cutting(at("changing"), { start: "refit", refitSamples: 4, ...more }));
    const stop = ({ stage }: { stage: string }) => {
      if (stage === "refit") throw new Error("stopped");
    };
    await expect(run({ onProgress: stop })).rejects.toThrow("stopped");
    const file = at("changing", "refit", "data.json");
    const { identities } = JSON.parse(readFileSync(file, "utf8"));
    writeFileSync(file, JSON.stringify({ identities: ["other", ...identities.slice(1)] }));
    await expect(run()).rejects.toThrow(/the data has changed since the run in .*changing began: --restart/);
    writeFileSync(file, JSON.stringify({ identities }));
    expect((await run()).out).toBe(at("changing"));
    expect(existsSync(file)).toBe(false);
  });
});

describe("a run whose own files are damaged", () => {
  /** Stops a run at a step, with checkpoints after the second and the last. */
  async function stoppedAt(step: number): Promise<string[]> {
    const abort = new AbortController();
    const stop = ({ done, stage }: { done: number; stage: string }) => {
      if (stage === "distill" && done >= step * 128) abort.abort();
    };
    await expect(distilling(at("run"), { signal: abort.signal, onProgress: stop })).rejects.toThrow(/stopped at step/);
    return readdirSync(at("run", "checkpoints")).sort();
  }
  const cutShort = (file: string) => writeFileSync(file, readFileSync(file).subarray(0, 1000));

  it("goes on from the checkpoint before, and ends with the same bits", async () => {
    await distilling(at("whole"));
    expect(await stoppedAt(3)).toEqual(["step-000000002", "step-000000003"]);
    cutShort(at("run", "checkpoints", "step-000000003", "state.safetensors"));
    const notes: string[] = [];
    await distilling(at("run"), { onNote: (text) => notes.push(text) });
    expect(notes.join()).toMatch(/a checkpoint is damaged .*step-000000003.*: going on from the one before/);
    const weights = (run: string) => hashBytes(readFileSync(at(run, "model.safetensors")));
    expect(weights("run")).toBe(weights("whole"));
  });

  it("says so where none is whole, and where its record is not", async () => {
    for (const name of await stoppedAt(3)) cutShort(at("run", "checkpoints", name, "state.safetensors"));
    await expect(distilling(at("run"))).rejects.toThrow(/no checkpoint is whole; --restart begins anew/);
    writeFileSync(at("run", "stages.json"), '[{"name"');
    await expect(distilling(at("run"))).rejects.toThrow(/stages.json is damaged.*--restart begins anew/);
    await distilling(at("run"), { restart: true });
    writeFileSync(at("run", "run.json"), "{");
    await expect(distilling(at("run"), { restart: true })).rejects.toThrow(/its run.json is damaged/);
  });
});

describe("other settings in a run's directory", () => {
  it("are named one by one", async () => {
    await distilling(at("run"));
    const other = distill({
      ...common,
      student: at("model"),
      teacher,
      data: [at("data.txt")],
      out: at("run"),
      settings: { ...settings, seed: 9 },
      distillation: { temperature: 2 },
    });
    await expect(other).rejects.toThrow(
      "holds a run with other settings (settings.seed 0 -> 9; distillation.temperature not given -> 2): choose another --out, or --restart to discard it",
    );
  });
});
