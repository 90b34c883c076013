import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import { openGguf } from "../../src/checkpoint/index.js";
import { exportModel, plan, pruneModel } from "../../src/index.js";
import { explain } from "../../src/jobs/explain.js";
import { openCheckpoint } from "../../src/models/index.js";
import { writeModel } from "../../src/models/open.js";
import { axisSizes, keptIndices, planFor, prune } from "../../src/prune/index.js";
import { changed } from "../refit/cuts.js";
import { temporaryDirectory } from "../temporary.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const directory = temporaryDirectory();
const at = (name: string) => path.join(directory, name);
process.env.COPPICE_CACHE = at("cache");

const job = (out: string, changes: object = {}) => ({
  out: at(out),
  model: at("model"),
  data: [at("data.txt")],
  target: "0.85x",
  space: { axes: ["ffn"], divisors: { ffn: 8 } },
  device: "cpu" as const,
  threads: 1,
  computeType: "f32" as const,
  calibrationSamples: 4,
  refitSamples: 4,
  maxCandidates: 1,
  start: "refit" as const,
  perLayer: true,
  ...changes,
});

/** The teacher, narrower to be quick, whose second layer's feed-forward network gives nothing. */
beforeAll(() => {
  mkdirSync(directory, { recursive: true });
  writeFileSync(at("data.txt"), corpus(5, 120));
  const original = openCheckpoint(teacher);
  const narrower = planFor(original.model, { ffn: 96 }, []);
  const scores = new Map([0, 1, 2, 3].map((layer) => [`layers.${layer}.ffn`, new Float32Array(384).fill(1)]));
  const smaller = prune(original, narrower, keptIndices(original.model, narrower, scores));
  const idle = changed(smaller, (name, data) => {
    if (name.includes("layers.1.mlp.down_proj")) data.fill(0);
  });
  writeModel(at("model"), idle, { carryFrom: teacher });
});

describe("sizes for each layer", () => {
  it("cut first the layer that does nothing, meet the target, and are taken where they lose less", async () => {
    const { parameters } = await pruneModel(job("pruned"));
    const { model } = openCheckpoint(at("pruned"));
    const ffn = [axisSizes(model).ffn ?? []].flat();
    expect(ffn[1]).toBe(0);
    expect(ffn.filter((size) => size === 0)).toHaveLength(1);
    expect(Math.abs(parameters.to / parameters.from / 0.85 - 1)).toBeLessThanOrEqual(0.05);
    const [taken, rival] = explain(at("pruned")).search?.candidates ?? [];
    expect(taken?.sizes.ffn).toEqual(ffn);
    expect(rival?.sizes.ffn).toBeTypeOf("number");
    expect(taken?.parameters).toBeLessThanOrEqual(rival?.parameters ?? 0);
    expect(taken?.refittedLoss).toBeLessThan(rival?.refittedLoss ?? 0);
  });

  it("are the same bits again, and as GGUF the same sizes", async () => {
    await pruneModel(job("again"));
    const [one, two] = ["pruned", "again"].map((name) => readFileSync(path.join(at(name), "model.safetensors")));
    expect(one?.equals(two ?? Buffer.alloc(0))).toBe(true);
    await exportModel({ model: at("again"), out: at("again.gguf"), dtype: "f32" });
    expect(openGguf(at("again.gguf")).metadata.get("general.architecture")?.value).toBe("deci");
    expect(axisSizes(openCheckpoint(at("again.gguf")).model)).toEqual(axisSizes(openCheckpoint(at("again")).model));
  });

  it("are refused before anything is computed where they cannot be, with what to do", async () => {
    await expect(pruneModel(job("x", { start: "minitron", refitSamples: undefined }))).rejects.toThrow(
      /needs --start refit/,
    );
    await expect(pruneModel(job("x", { target: "ffn=64" }))).rejects.toThrow(/the target ffn=64 names them/);
    await expect(pruneModel(job("x", { space: { axes: ["hidden"] } }))).rejects.toThrow(/add --axes ffn/);
    await expect(plan(job("x", { data: undefined }))).rejects.toThrow(/--per-layer needs --data/);
  });
});
