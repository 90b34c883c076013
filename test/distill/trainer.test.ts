import { appendFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, describe, expect, it, vi } from "vitest";
import { Sequences } from "../../src/data/index.js";
import {
  crossEntropyObjective,
  DISTILLATION_DEFAULTS,
  defaultTrainOptions,
  distillationObjective,
  type Objective,
  RunDirectory,
  SparseTeacher,
  type TrainOptions,
  topKTargets,
  train,
} from "../../src/distill/index.js";
import { Backend } from "../../src/ggml/index.js";
import { initialize, loadWeights, type ModelWeights, modelFromConfig } from "../../src/models/index.js";
import { Random } from "../../src/system/random.js";
import { temporaryDirectory } from "../temporary.js";
import { streamOf } from "../tokens.js";

const config = {
  model_type: "llama",
  vocab_size: 24,
  hidden_size: 32,
  intermediate_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 2,
};
const model = modelFromConfig(config);
const directory = temporaryDirectory();
const backend = Backend.open({ device: "cpu" });
afterAll(() => backend.free());

/** Text that can be learnt: each token follows from the one before, with some noise. */
const random = new Random(8);
const ids = [0];
while (ids.length < 4001) ids.push(random.uniform() < 0.9 ? (ids.at(-1)! * 5 + 3) % 24 : random.integer(24));
const sequences = new Sequences(streamOf(ids, directory), 16);

const options: TrainOptions = {
  ...defaultTrainOptions(32, 16 * 8 * 30, 16, 8),
  learningRate: 5e-3,
  minimumLearningRate: 5e-4,
  saveEverySteps: 4,
  computeType: "f32",
};
const bytes = (weights: ModelWeights) =>
  weights.trained.map((tensor) => Buffer.from(weights.store.read(tensor).buffer));
const same = (a: ModelWeights, b: ModelWeights) => {
  const [left, right] = [bytes(a), bytes(b)];
  return left.every((buffer, i) => buffer.equals(right[i]!));
};
const fresh = () => initialize(backend, model, 3);
const teacher = initialize(backend, model, 4);
const distilled: Objective = distillationObjective({ kind: "online", weights: teacher }, DISTILLATION_DEFAULTS);

describe("training", () => {
  it("learns what the data holds", async () => {
    const student = fresh();
    const losses: number[] = [];
    await train({
      backend,
      student,
      objective: crossEntropyObjective,
      sequences,
      options: { ...options, tokens: 16 * 8 * 150 },
      onProgress: ({ record }) => void losses.push(record.loss),
    });
    expect(losses[0]).toBeCloseTo(Math.log(24), 0);
    // the entropy of the source: 0.9 + 0.1/24 on one token, 0.1/24 on the others
    const [p, q] = [0.9 + 0.1 / 24, 0.1 / 24];
    const entropy = -p * Math.log(p) - 23 * q * Math.log(q);
    expect(losses.at(-1)).toBeLessThan(entropy + 0.3);
    expect(losses.at(-1)).toBeGreaterThan(entropy - 0.2);
    student.free();
  });

  it("begins where in the order of the data it is to begin", async () => {
    const seen: number[][] = [];
    class Watched extends Sequences {
      override batch(numbers: readonly number[]) {
        seen.push([...numbers]);
        return super.batch(numbers);
      }
    }
    const watched = new Watched(sequences.stream, 16);
    const run = async (steps: number, firstSequence?: number) => {
      const student = fresh();
      const shorter = { ...options, tokens: 16 * 8 * steps, warmupSteps: 0 };
      const objective = crossEntropyObjective;
      await train({ backend, student, objective, sequences: watched, options: shorter, firstSequence });
      student.free();
    };
    await run(4);
    await run(2, 0);
    await run(2, 2 * 8);
    expect(seen.slice(4)).toEqual(seen.slice(0, 4));
  });

  it.each(["forward-kl", "reverse-kl", "jensen-shannon"] as const)(
    "brings the student to the teacher by %s",
    async (divergence) => {
      const student = fresh();
      const losses: number[] = [];
      await train({
        backend,
        student,
        sequences,
        options: { ...options, tokens: 16 * 8 * 60 },
        objective: distillationObjective(
          { kind: "online", weights: teacher },
          { ...DISTILLATION_DEFAULTS, divergence },
        ),
        onProgress: ({ record }) => void losses.push(record.loss),
      });
      expect(losses.at(-1)).toBeLessThan(0.6 * losses[0]!);
      student.free();
    },
  );

  it("gives the same weights for the same seed, others for another", async () => {
    const [a, b, c] = [fresh(), fresh(), fresh()];
    for (const [student, seed] of [
      [a, 1],
      [b, 1],
      [c, 2],
    ] as const)
      await train({ backend, student, objective: distilled, sequences, options: { ...options, seed } });
    expect(same(a, b)).toBe(true);
    expect(same(a, c)).toBe(false);
  });

  it.each(["f32", "bf16"] as const)(
    "gives the same weights in %s where activations are computed again",
    async (computeType) => {
      const [kept, recomputed] = [fresh(), fresh()];
      const few = { ...options, computeType, tokens: 16 * 8 * 6 };
      await train({ backend, student: kept, objective: distilled, sequences, options: few });
      await train({
        backend,
        student: recomputed,
        objective: distilled,
        sequences,
        options: { ...few, recompute: true },
      });
      expect(same(kept, recomputed)).toBe(true);
      for (const student of [kept, recomputed]) student.free();
    },
  );

  it("saves a checkpoint every ten minutes, however many steps they are", async () => {
    const run = new RunDirectory(path.join(directory, "slow"));
    const student = fresh();
    let minutes = 0;
    const clock = vi.spyOn(performance, "now").mockImplementation(() => minutes * 60_000);
    const saved: number[] = [];
    const save = run.save.bind(run);
    run.save = (state, tensors) => {
      saved.push(state.step);
      save(state, tensors);
    };
    await train({
      backend,
      student,
      objective: crossEntropyObjective,
      sequences,
      options: { ...options, tokens: 16 * 8 * 10, saveEverySteps: 1000 },
      run,
      validate: async () => 0,
      onProgress: () => {
        minutes += 4;
      },
    });
    clock.mockRestore();
    expect(saved).toEqual([3, 6, 9, 10]); // three steps of four minutes are more than ten
    student.free();
    run.close();
  });

  it("adds up gradients of parts of a batch to those of the whole", async () => {
    const [whole, parts] = [fresh(), fresh()];
    const few = { ...options, tokens: 16 * 8 * 3 };
    await train({ backend, student: whole, objective: distilled, sequences, options: few });
    await train({ backend, student: parts, objective: distilled, sequences, options: { ...few, microBatchSize: 2 } });
    const [a, b] = [bytes(whole), bytes(parts)].map((all) => new Float32Array(Buffer.concat(all).buffer));
    const worst = a!.reduce((largest, value, i) => Math.max(largest, Math.abs(value - b![i]!)), 0);
    expect(worst).toBeGreaterThan(0); // added up in another order
    expect(worst).toBeLessThan(1e-3);
  });

  const saving = { ...options, freeGradients: true, ...(backend.kernels && { optimizerState: "8bit" as const }) };

  it.each([
    ["", options],
    [", with less memory", saving],
  ])("goes on after a stop at any step to the very same weights%s", async (name, options) => {
    const uninterrupted = fresh();
    await train({ backend, student: uninterrupted, objective: distilled, sequences, options });
    const run = new RunDirectory(path.join(directory, `interrupted${name}`));
    for (const stopAt of [3, 9, 20, Number.POSITIVE_INFINITY]) {
      const student = fresh();
      const abort = new AbortController();
      const attempt = train({
        backend,
        student,
        objective: distilled,
        sequences,
        options,
        run,
        signal: abort.signal,
        onProgress: ({ record }) => void (record.step >= stopAt && abort.abort()),
      });
      if (Number.isFinite(stopAt)) await expect(attempt).rejects.toThrow(/stopped at step \d+ of 30/);
      else {
        await attempt;
        expect(same(student, uninterrupted)).toBe(true);
      }
      student.free();
    }
    const steps = run.readMetrics().map(({ step }) => step);
    expect(steps).toEqual(Array.from({ length: 30 }, (_, i) => i + 1));
    expect(readdirSync(run.file("checkpoints")).length).toBeLessThanOrEqual(2);
  });

  it("does the same where gradients are freed as they come and none is clipped", async () => {
    const [kept, freed] = [fresh(), fresh()];
    const unclipped = { ...options, clipNorm: 1e9 };
    for (const [student, freeGradients] of [
      [kept, false],
      [freed, true],
    ] as const)
      await train({ backend, student, objective: distilled, sequences, options: { ...unclipped, freeGradients } });
    expect(same(kept, freed)).toBe(true);
    for (const student of [kept, freed]) student.free();
  });

  it("refuses to free gradients that must be summed", async () => {
    const student = fresh();
    const summed = { ...saving, microBatchSize: 2 };
    await expect(train({ backend, student, objective: distilled, sequences, options: summed })).rejects.toThrow(
      /gradients of 4 micro-batches must be kept/,
    );
    student.free();
  });

  it("stops with advice when the loss is no number any more", async () => {
    const student = fresh();
    const wild = { ...options, learningRate: 1e30, warmupSteps: 0, tokens: 16 * 8 * 20 };
    await expect(train({ backend, student, objective: distilled, sequences, options: wild })).rejects.toThrow(
      /try a lower learning rate/,
    );
    student.free();
  });

  it("refuses settings that cannot be", async () => {
    const student = fresh();
    const attempt = (change: Partial<TrainOptions>) =>
      train({ backend, student, objective: distilled, sequences, options: { ...options, ...change } });
    await expect(attempt({ tokens: 0 })).rejects.toThrow(/tokens must be positive, not 0/);
    await expect(attempt({ clipNorm: 0 })).rejects.toThrow(/clipNorm must be a number more than 0/);
    await expect(attempt({ microBatchSize: 3 })).rejects.toThrow(/8 sequences cannot be computed 3 at a time/);
    student.free();
  });
});

describe("a top-k teacher", () => {
  const topK = (cacheDirectory?: string, weights: () => ModelWeights = () => teacher) =>
    new SparseTeacher(backend, weights, sequences, {
      targets: topKTargets({ k: 24, temperature: 1 }),
      computeType: "f32",
      teacherId: "test",
      vocabSize: 24,
      cacheDirectory,
    });
  const objective = (source: SparseTeacher) =>
    distillationObjective({ kind: "sparse", source }, { ...DISTILLATION_DEFAULTS, divergence: "top-k" });

  it("must have the vocabulary that the student's loss is of", async () => {
    const student = fresh();
    const divergence = "top-k" as const;
    const narrower = { ...DISTILLATION_DEFAULTS, divergence, vocabSize: 20 };
    const distilled = distillationObjective({ kind: "sparse", source: topK() }, narrower);
    await expect(train({ backend, student, objective: distilled, sequences, options })).rejects.toThrow(
      /targets are of 24 tokens, the student's loss of 20/,
    );
    student.free();
  });

  it("with every token is the whole teacher", async () => {
    const [dense, sparse] = [fresh(), fresh()];
    const losses: number[][] = [[], []];
    for (const [i, [student, towards]] of (
      [
        [dense, distilled],
        [sparse, objective(topK())],
      ] as const
    ).entries())
      await train({
        backend,
        student,
        objective: towards,
        sequences,
        options,
        onProgress: ({ record }) => void losses[i]!.push(record.loss),
      });
    for (const [i, loss] of losses[0]!.entries()) expect(losses[1]![i]).toBeCloseTo(loss, 3);
  });

  it("whose logits would not fit on the disk says so before it begins", () => {
    const options = {
      targets: topKTargets({ k: 24, temperature: 1 }),
      computeType: "f32" as const,
      teacherId: "large",
      vocabSize: 24,
    };
    const huge = Object.assign(Object.create(Object.getPrototypeOf(sequences) as object), sequences, {
      count: 2 ** 50,
    });
    const cacheDirectory = path.join(directory, "too-large");
    expect(
      () => new SparseTeacher(backend, () => teacher, huge, { ...options, cacheDirectory, expectedSequences: 2 ** 50 }),
    ).toThrow(/the teacher's logits need .* GiB, its disk has/);
  });

  it("is computed once: a second run reads the cache, needs no teacher and ends with the same weights", async () => {
    const cache = path.join(directory, "logits");
    const [first, second] = [fresh(), fresh()];
    const computing = topK(cache);
    await train({ backend, student: first, objective: objective(computing), sequences, options });
    computing.free();
    const reading = topK(cache, () => {
      throw new Error("the teacher was asked");
    });
    await train({ backend, student: second, objective: objective(reading), sequences, options });
    reading.free();
    expect(same(first, second)).toBe(true);
  });
});

describe("padding behind the vocabulary", () => {
  /** The same model with rows of its own in the embedding and the head behind the 24 that mean something. */
  const padded = (weights: ModelWeights, rows: number, trainable: boolean) => {
    const larger = modelFromConfig({ ...config, vocab_size: 24 + rows });
    const source = weights.source();
    const noise = new Random(rows, 0);
    const extra = new Uint8Array(Float32Array.from({ length: rows * 32 }, () => 3 * noise.normal()).buffer);
    const tensors = new Map(
      [...source.tensors].map(([name, info]) => [
        name,
        { ...info, shape: info.shape[0] === 24 ? [24 + rows, 32] : info.shape },
      ]),
    );
    return loadWeights(
      backend,
      larger,
      {
        tensors,
        readRows: (name, from, to) => {
          const { shape } = source.tensors.get(name)!;
          if (shape[0] !== 24) return source.readRows(name, from, to);
          return Buffer.concat([source.readRows(name, 0, 24), extra]).subarray(from * 128, to * 128);
        },
        releaseRows: () => {},
      },
      { dtype: "f32", trainable },
    );
  };

  it.each(["forward-kl", "top-k"] as const)("counts for nothing in %s, whichever model has it", async (divergence) => {
    const trained: { losses: number[]; head: Float32Array }[] = [];
    for (const rows of [
      { teacher: 0, student: 0 },
      { teacher: 8, student: 0 },
      { teacher: 8, student: 3 },
    ]) {
      const [from, student] = [padded(teacher, rows.teacher, false), padded(fresh(), rows.student, true)];
      const distillation = { ...DISTILLATION_DEFAULTS, divergence, crossEntropyWeight: 0.5, vocabSize: 24 };
      const source = new SparseTeacher(backend, () => from, sequences, {
        targets: topKTargets({ k: 5, temperature: 1 }),
        computeType: "f32",
        teacherId: "padded",
        vocabSize: 24,
      });
      const objective =
        divergence === "top-k"
          ? distillationObjective({ kind: "sparse", source }, distillation)
          : distillationObjective({ kind: "online", weights: from }, distillation);
      const losses: number[] = [];
      await train({
        backend,
        student,
        objective,
        sequences,
        options,
        onProgress: ({ record }) => void losses.push(record.loss),
      });
      trained.push({ losses, head: student.store.read(student.get("lm_head.weight")).slice(0, 24 * 32) });
      source.free();
      from.free();
      student.free();
    }
    const [plain, ...others] = trained;
    for (const { losses, head } of others) {
      for (const [i, loss] of losses.entries()) expect(loss).toBeCloseTo(plain!.losses[i]!, 5);
      for (const [i, weight] of head.entries()) expect(weight).toBeCloseTo(plain!.head[i]!, 4);
    }
  });
});

describe("a run's directory", () => {
  it("belongs to one configuration and says what differs", () => {
    const run = new RunDirectory(path.join(directory, "claimed"));
    run.claim({ tokens: 5, seed: 1 });
    run.claim({ tokens: 6, seed: 1 }); // nothing was done yet
    writeFileSync(run.own("work.txt"), "done");
    expect(() => run.claim({ tokens: 5, seed: 1 })).toThrow(/other settings \(tokens 6 -> 5\)/);
    run.discard();
    expect(existsSync(run.file("run.json"))).toBe(false);
  });

  it("has finished once its result is written, though a kill keeps it from deleting its work", () => {
    const place = path.join(directory, "cleaning");
    const start = () => {
      const run = new RunDirectory(place);
      run.claim({ seed: 1 });
      return run;
    };
    const run = start();
    for (const name of ["work/a", "work/b"]) {
      const file = run.own(...name.split("/"));
      mkdirSync(path.dirname(file), { recursive: true });
      writeFileSync(file, name);
    }
    const before = readFileSync(run.file("run.json"), "utf8");
    run.finish({ loss: 2 }, "work");
    expect(readdirSync(place)).not.toContain("work");
    run.close();
    // as a kill between two files leaves it
    const record = { ...JSON.parse(before), finished: true, result: { loss: 2 }, leftovers: ["work/a", "work/b"] };
    mkdirSync(path.join(place, "work"));
    writeFileSync(path.join(place, "work", "b"), "work/b");
    writeFileSync(path.join(place, "run.json"), JSON.stringify(record));
    const again = start();
    expect([again.finished, again.result]).toEqual([true, { loss: 2 }]);
    expect(readdirSync(place)).not.toContain("work");
    again.close();
  });

  it("survives a metrics line that a kill has cut short", () => {
    const run = new RunDirectory(path.join(directory, "cut"));
    const record = {
      step: 1,
      tokens: 1,
      loss: 1,
      learningRate: 1,
      gradientNorm: 1,
      tokensPerSecond: 1,
      seconds: 1,
      terms: {},
    };
    run.appendMetrics(record);
    appendFileSync(run.file("metrics.jsonl"), '{"step":2,"tok');
    expect(run.readMetrics()).toEqual([record]);
    run.truncateMetrics(1);
    expect(readFileSync(run.file("metrics.jsonl"), "utf8")).toBe(`${JSON.stringify(record)}\n`);
  });
});
