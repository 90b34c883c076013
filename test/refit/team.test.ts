import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import type { Passage } from "../../src/evaluate/residual-stream.js";
import type { Team } from "../../src/evaluate/team.js";
import { Backend } from "../../src/ggml/index.js";
import { type ModelTensors, openCheckpoint } from "../../src/models/index.js";
import { readMatrix } from "../../src/prune/matrices.js";
import { type SurgeonProgress, surgeonScores } from "../../src/prune/surgeon-scores.js";
import { prepareCut, refitCut } from "../../src/refit/index.js";
import { temporaryDirectory } from "../temporary.js";
import { fixtures, passageOver, planOf, randomTokens } from "./cuts.js";

const temporary = temporaryDirectory();
const newDirectory = () => mkdtempSync(path.join(temporary, "parts-"));

/** Members of a team within this process, each with a backend of its own. */
const SIZE = 3;
const backends = Array.from({ length: SIZE }, () => Backend.open({ device: "cpu", threads: 1 }));
afterAll(() => {
  for (const backend of backends) backend.free();
});

const share = (count: number, rank: number) =>
  [Math.floor((count * rank) / SIZE), Math.floor((count * (rank + 1)) / SIZE)] as const;

/** Where members meet: each call waits for those of all others. */
function meetingPoint<T>(): (rank: number, own: T) => Promise<readonly T[]> {
  let brought: T[] = [];
  let waiting: ((all: readonly T[]) => void)[] = [];
  return (rank, own) =>
    new Promise((resolve) => {
      brought[rank] = own;
      waiting.push(resolve);
      if (waiting.length < SIZE) return;
      const [all, members] = [brought, waiting];
      [brought, waiting] = [[], []];
      for (const member of members) member(all);
    });
}

function teamOf(batches: number): Team[] {
  const meet = meetingPoint<readonly Float32Array[]>();
  return Array.from({ length: SIZE }, (_, rank) => ({
    rank,
    size: SIZE,
    share,
    batches,
    sum: async (store, root) => {
      const all = await meet(
        rank,
        [...store].map((tensor) => store.read(tensor)),
      );
      if (root !== undefined && root !== rank) return;
      [...store].forEach((tensor, i) => {
        const sums = all.reduce(
          (total, own) => total.map((value, k) => value + own[i]![k]!),
          new Float32Array(all[0]![i]!.length),
        );
        store.write(tensor, sums);
      });
    },
    broadcast: async (numbers, from) => {
      const all = await meet(rank, [numbers]);
      if (from !== rank) numbers.set(all[from]![0]!);
      await meet(rank, []);
    },
  }));
}

/** Does something in every member of a team, with its part of the data. @returns what the leader's gives */
async function byTeam<T>(passage: Passage, work: (own: Passage, rank: number) => Promise<T>): Promise<T> {
  const team = teamOf(passage.batches.length);
  const results = backends.map((backend, rank) =>
    work(
      {
        ...passage,
        backend,
        batches: passage.batches.slice(...share(passage.batches.length, rank)),
        team: team[rank],
      },
      rank,
    ),
  );
  const [leader] = await Promise.all(results);
  return leader as T;
}

function expectClose(values: Float32Array, expected: Float32Array, tolerance: number): void {
  const size = Math.sqrt(expected.reduce((sum, value) => sum + value * value, 0));
  const error = Math.sqrt(expected.reduce((sum, value, i) => sum + (value - values[i]!) ** 2, 0));
  expect(error).toBeLessThan(tolerance * size);
}

const weightsOf = ({ model, source }: ModelTensors) =>
  new Map(model.parameters.map(({ name }) => [name, readMatrix(source, name).data]));

describe.each(readdirSync(fixtures).filter((name) => !name.includes(".")))("a team with the model %s", (name) => {
  const original = openCheckpoint(path.join(fixtures, name));
  const alone = passageOver(backends[0]!, randomTokens(original.model, 10, 12), { batch: 2 });

  it("finds the statistics that one process finds, and goes on after some steps", async () => {
    const expected = await surgeonScores(alone, original);
    let known: SurgeonProgress | undefined;
    const found = await byTeam(alone, (own, rank) =>
      surgeonScores(own, original, {
        onStep: (progress) => {
          if (rank === 0) known ??= { ...progress, scores: new Map(progress.scores) };
        },
      }),
    );
    expect(known?.steps).toBe(SIZE);
    const resumed = await byTeam(alone, (own, rank) =>
      surgeonScores(own, original, {
        known:
          rank === 0
            ? known
            : { steps: SIZE, scores: new Map(), streamMoments: new Float32Array(found.streamMoments.data.length) },
      }),
    );
    for (const { scores, streamMoments } of [found, resumed]) {
      expect([...scores.keys()]).toEqual([...expected.scores.keys()]);
      for (const [dimension, values] of expected.scores) expectClose(scores.get(dimension)!, values, 1e-3);
      expectClose(streamMoments.data, expected.streamMoments.data, 1e-5);
    }
  });

  it("refits as one process does, and goes on where that was stopped", async () => {
    const statistics = await surgeonScores(alone, original);
    const { plan, kept, streamMoments } = await planOf({
      passage: alone,
      original,
      wanted: { hidden: 24, ffn: 36 },
      directory: "",
      statistics,
    });
    const cut = await prepareCut({ passage: alone, original, plan, kept, streamMoments });
    const inOne = newDirectory();
    const expected = weightsOf(await refitCut(cut, alone, { place: (file) => path.join(inOne, file) }));
    const [leaders, ...others] = backends.map(newDirectory);
    const together = () =>
      byTeam(alone, (own, rank) =>
        refitCut(cut, own, { place: (file) => path.join([leaders!, ...others][rank]!, file) }),
      );
    const first = weightsOf(await together());
    for (const [parameter, values] of expected) expectClose(first.get(parameter)!, values, 1e-3);
    for (const directory of others) expect(readdirSync(directory)).toEqual(["embeddings.safetensors"]);
    for (const part of ["step-2", "last"]) rmSync(path.join(leaders!, `${part}.safetensors`));
    expect(weightsOf(await together())).toEqual(first);
  });
});
