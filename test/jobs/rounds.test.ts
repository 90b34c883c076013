import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { corpus } from "../../examples/corpus.js";
import { defaultTrainOptions } from "../../src/distill/index.js";
import { type CompressJob, compress } from "../../src/index.js";
import { explain } from "../../src/jobs/explain.js";
import { candidatesOfRounds, trainingOfRounds, withinSizes } from "../../src/jobs/rounds.js";
import { candidatesFor } from "../../src/jobs/target.js";
import { openCheckpoint } from "../../src/models/index.js";
import { axisSizes, largestOf } from "../../src/prune/index.js";
import { hashBytes } from "../../src/system/files.js";
import { temporaryDirectory } from "../temporary.js";

const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");
const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const data = path.join(directory, "data.txt");
writeFileSync(data, corpus(5, 200));
const at = (name: string) => path.join(directory, name);

const job: Omit<CompressJob, "out"> = {
  device: "cpu",
  threads: 1,
  model: teacher,
  data: [data],
  target: "0.5x",
  calibrationSamples: 8,
  refitSamples: 4,
  maxCandidates: 1,
  settings: { tokens: 768, sequenceLength: 32, batchSize: 4, saveEverySteps: 2, computeType: "f32" },
};

const weightsOf = (run: string): string => hashBytes(readFileSync(path.join(run, "model.safetensors")));
const { model } = openCheckpoint(teacher);

describe("compressing in rounds", () => {
  it("ends at the target; report and explanation tell of each round", async () => {
    const out = at("two");
    const stages = new Set<string>();
    const onProgress = ({ stage }: { stage: string }) => void stages.add(stage);
    const {
      teacher: first,
      student,
      rounds = [],
      tokens,
      keptLayers,
      plan,
    } = await compress({ ...job, rounds: 2, out, onProgress });
    expect(Math.abs(student.parameters / first.parameters - 0.5)).toBeLessThan(0.5 * 0.05);
    expect(rounds).toHaveLength(2);
    const [one, two] = rounds;
    expect(Math.abs((one?.student.parameters ?? 0) / first.parameters - Math.SQRT1_2)).toBeLessThan(
      Math.SQRT1_2 * 0.05,
    );
    expect([one?.tokens, two?.tokens, tokens]).toEqual([384, 384, 768]);
    for (const [axis, { from, to }] of Object.entries(plan)) {
      expect(from).toEqual(one?.plan[axis]?.from);
      expect(one?.plan[axis]?.to).toEqual(two?.plan[axis]?.from);
      expect(to).toEqual(two?.plan[axis]?.to);
    }
    expect(keptLayers).toEqual([...Array(model.layerCount).keys()]);
    expect([...stages]).toContain("round 2 of 2: distill");
    const explained = explain(out);
    expect(explained.report?.rounds?.map(({ student: { loss } }) => loss)).toEqual(
      rounds.map((round) => round.student.loss),
    );
    expect(explained.training).toMatchObject({ steps: 6, tokens: 768 });
    expect(readFileSync(path.join(out, "report.html"), "utf8")).toContain("<h2>Rounds</h2>");
    expect(openCheckpoint(path.join(out, "round-1", "student")).model.sizes).not.toEqual(model.sizes);
    expect(existsSync(path.join(out, "round-1", "checkpoints", "step-000000003"))).toBe(false);
  });

  it("goes on with the same result after a kill at any moment of the second round", async () => {
    const whole = at("two");
    const moments = [
      "calibrate",
      "statistics",
      "search",
      "refit",
      "prune",
      "measure pruned",
      "distill",
      "measure student",
    ];
    const out = at("killed");
    for (const moment of moments) {
      let seen = 0;
      const killed = compress({
        ...job,
        rounds: 2,
        out,
        onProgress: ({ stage }) => {
          // the last step of a distillation has not been saved yet
          if (stage === `round 2 of 2: ${moment}` && ++seen === (moment === "distill" ? 3 : 1))
            throw new Error("killed");
        },
      });
      await expect(killed, moment).rejects.toThrow("killed");
    }
    const result = await compress({ ...job, rounds: 2, out });
    expect(weightsOf(out)).toBe(weightsOf(whole));
    expect(weightsOf(path.join(out, "round-1", "student"))).toBe(weightsOf(path.join(whole, "round-1", "student")));
    expect(await compress({ ...job, rounds: 2, out })).toEqual(result);
    await expect(compress({ ...job, rounds: 3, out })).rejects.toThrow(/rounds/);
    await expect(compress({ ...job, out })).rejects.toThrow(/rounds/);
  });

  it("with one round writes the same bits as without the option", async () => {
    const plain = await compress({ ...job, target: "0.7x", out: at("plain") });
    const one = await compress({ ...job, target: "0.7x", rounds: 1, out: at("one") });
    expect(weightsOf(at("one"))).toBe(weightsOf(at("plain")));
    expect(one.rounds).toBeUndefined();
    expect(readdirSync(at("one"))).toEqual(readdirSync(at("plain")));
    expect(one.student).toEqual(plain.student);
    expect(await compress({ ...job, target: "0.7x", out: at("one") })).toEqual({ ...one });
  });

  it("works with plain cuts, a corrected teacher, depth and matched states", async () => {
    const plain = { start: "minitron", refitSamples: undefined, rounds: 2 } as const;
    const cut = { target: "layers=2,ffn=128", intermediate: true, teacherCorrection: true } as const;
    const { rounds = [], keptLayers, plan } = await compress({ ...job, ...plain, ...cut, out: at("deep") });
    expect(rounds).toHaveLength(2);
    expect(plan).toMatchObject({ layers: { from: model.layerCount, to: 2 }, ffn: { to: 128 } });
    expect(keptLayers).toHaveLength(2);
    // the layers that are left are named as the first model numbers them
    for (const layer of keptLayers) expect(rounds[0]?.keptLayers).toContain(layer);
  });

  it.each([
    [{ rounds: 0 }, /--rounds 0: give a whole number from 1 on/],
    [{ rounds: 1.5 }, /--rounds 1.5/],
    [{ rounds: 7 }, /768 tokens are 6 steps, too few for 7 rounds/],
    [{ rounds: 2, target: "layers.0.ffn=64,layers=2" }, /cut one of the two, or do without --rounds/],
  ])("is refused where it cannot work: %j", async (change, message) => {
    await expect(compress({ ...job, ...change, out: at("refused") })).rejects.toThrow(
      expect.objectContaining({ name: "UsageError", message: expect.stringMatching(message) }),
    );
  });
});

describe("the sizes of rounds", () => {
  it("leave a way to the target, whatever a round chooses", () => {
    const options = { target: "0.5x", space: { axes: ["hidden", "ffn"] } };
    const [first = [], second = [], last = []] = candidatesOfRounds(model, options, 3);
    expect(last.map(({ parameters }) => parameters)).toEqual(
      candidatesFor(model, options).map(({ parameters }) => parameters),
    );
    for (const [from, to] of [
      [first, second],
      [second, last],
    ])
      for (const { sizes } of from ?? [])
        expect(
          (to ?? []).some((smaller) =>
            Object.keys(sizes).every((axis) => largestOf(smaller.sizes[axis]) <= largestOf(sizes[axis])),
          ),
        ).toBe(true);
  });

  it("cut each model to no more than it has", () => {
    const [first = []] = candidatesOfRounds(model, { target: "0.5x" }, 2);
    expect(withinSizes(model, first)).toEqual(first);
    const wide = { sizes: { ...axisSizes(model), ffn: largestOf(axisSizes(model).ffn) + 1 }, parameters: 0 };
    expect(withinSizes(model, [wide])).toEqual([]);
  });

  it("differ from layer to layer only in the last one", () => {
    const sizes = Array.from({ length: model.layerCount }, (_, i) => 64 + 32 * i);
    const [first = [], last = []] = candidatesOfRounds(model, { target: `ffn=${sizes.join("/")}` }, 2);
    expect(last.map((candidate) => candidate.sizes.ffn)).toEqual([sizes]);
    for (const candidate of first) expect(largestOf(candidate.sizes.ffn)).toBeGreaterThanOrEqual(Math.max(...sizes));
  });
});

describe("the training of rounds", () => {
  it("shares the steps, and goes on in the data", () => {
    const settings = defaultTrainOptions(64, 10 * 32 * 4, 32, 4);
    const rounds = trainingOfRounds(settings, 3);
    expect(rounds.map((round) => round.settings.tokens / 128)).toEqual([4, 3, 3]);
    expect(rounds.map(({ firstSequence }) => firstSequence)).toEqual([0, 16, 28]);
  });
});
