import { mkdtempSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { type ModelTensors, openCheckpoint } from "../../src/models/index.js";
import { readMatrix } from "../../src/prune/matrices.js";
import { surgeonScores } from "../../src/prune/surgeon-scores.js";
import { composedTestBackends } from "../devices.js";
import { openAlgebraBackend } from "../linear-algebra/backend.js";
import { logitsOf, relativeDifference } from "../models/architectures.js";
import { hasSharedData, stories260K } from "../shared-data.js";
import { temporaryDirectory } from "../temporary.js";
import { changed, cutBySurgeon, expectedOf, fixtures, fixtureTokens, passageOver, type TokenRows } from "./cuts.js";

const temporary = temporaryDirectory();
const newDirectory = () => mkdtempSync(path.join(temporary, "parts-"));

/** What f32 makes of float64's results, relative to the largest: sums over hundreds of tokens, and equations of condition numbers of some hundreds. */
const TOLERANCE = 2e-5;

/** Mean cross-entropy of the next token, in nats. */
async function lossOf(...[backend, model, tokens]: [...Parameters<typeof logitsOf>]): Promise<number> {
  const logits = await logitsOf(backend, model, tokens);
  const vocab = model.model.vocabSize;
  const losses = tokens.flatMap((sequence, s) =>
    sequence.slice(1).map((next, i) => {
      const from = (s * sequence.length + i) * vocab;
      const row = logits.subarray(from, from + vocab);
      const largest = row.reduce((a, b) => Math.max(a, b));
      const total = row.reduce((sum, value) => sum + Math.exp(value - largest), 0);
      return largest + Math.log(total) - row[next]!;
    }),
  );
  return losses.reduce((a, b) => a + b, 0) / losses.length;
}

/** A parameter's values with the signs of the channels of the stream turned: an eigenvector's sign is free. */
function withSigns({ model, source }: ModelTensors, name: string, signs: readonly number[]): Float32Array {
  const { columns, data } = readMatrix(source, name);
  const spec = model.parameters.find((one) => one.name === name)!;
  if (spec.axes.length === 1) return data;
  const [first, second] = spec.axes.map((axis) => axis === "hidden");
  return data.map((value, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    return value * (first ? signs[row]! : 1) * (second ? signs[column]! : 1);
  });
}

/** The signs by which the channels of a cut model's embeddings differ from those of the peer's. */
function signsOf({ model, source }: ModelTensors, peer: Float32Array): number[] {
  const { columns, data } = readMatrix(source, model.embedding);
  const products = Array.from({ length: columns }, () => 0);
  data.forEach((value, i) => {
    products[i % columns]! += value * peer[i]!;
  });
  return products.map(Math.sign);
}

describe.each(composedTestBackends)("on %s", (_, options) => {
  const { backend } = openAlgebraBackend(options);
  const passage = passageOver(backend, fixtureTokens.calibration);

  describe.each(["tied", "untied"])("a model with a head that is %s", (name) => {
    const original = openCheckpoint(path.join(fixtures, name));
    const peer = expectedOf(name);

    it("has the peer's statistics, losses and orders of removal", async () => {
      const { scores, streamMoments } = await surgeonScores(passage, original);
      expect(relativeDifference(streamMoments.data, peer("moments.stream"))).toBeLessThan(TOLERANCE);
      for (const [layer, axis] of [0, 1].flatMap((i) => [[i, "ffn"] as const, [i, "heads"] as const])) {
        const losses = scores.get(`layers.${layer}.${axis}`)!;
        const order = [...peer(`order.${layer}.${axis}`)];
        const wanted = peer(`losses.${layer}.${axis}`);
        order.forEach((unit, i) => {
          expect(Math.abs(losses[unit]! / wanted[i]! - 1)).toBeLessThan(TOLERANCE);
        });
      }
    });

    it.each([
      ["ffn", { ffn: 36 }],
      ["hidden", { hidden: 24, ffn: 36 }],
      ["heads", { heads: 2 }],
    ])("cut in %s becomes what the peer makes of it", async (cut, wanted) => {
      const smaller = await cutBySurgeon({ passage, original, wanted, directory: newDirectory() });
      const logits = await logitsOf(backend, smaller, fixtureTokens.evaluation);
      expect(relativeDifference(logits, peer(`${cut}.logits`))).toBeLessThan(TOLERANCE);
      if (cut === "heads") return;
      const signs = signsOf(smaller, peer(`${cut}.${original.model.embedding}`));
      for (const { name: parameter } of smaller.model.parameters) {
        const difference = relativeDifference(withSigns(smaller, parameter, signs), peer(`${cut}.${parameter}`));
        expect(difference, parameter).toBeLessThan(TOLERANCE);
      }
    });

    it("does so where first positions are a thousand times larger", async () => {
      const huge = changed(original, (parameter, data, columns) => {
        if (parameter === original.model.embedding) for (let i = columns; i < 2 * columns; i++) data[i]! *= 1000;
      });
      const first = (rows: TokenRows): TokenRows => rows.map((row) => [1, ...row.slice(1)]);
      const data = passageOver(backend, first(fixtureTokens.calibration));
      const cut = { passage: data, original: huge, wanted: { hidden: 24, ffn: 36 }, directory: newDirectory() };
      const logits = await logitsOf(backend, await cutBySurgeon(cut), first(fixtureTokens.evaluation));
      expect(relativeDifference(logits, peer("huge.logits"))).toBeLessThan(TOLERANCE);
    });
  });

  it.runIf(hasSharedData)("stories260K loses as much as the peer's, cut and refitted", async () => {
    const { calibration, evaluation, losses } = readJsonObject(path.join(fixtures, "stories260K.json")) as {
      readonly calibration: TokenRows;
      readonly evaluation: TokenRows;
      readonly losses: Readonly<Record<string, number>>;
    };
    const original = openCheckpoint(stories260K);
    const data = passageOver(backend, calibration, { batch: 8 });
    expect(await lossOf(backend, original, evaluation)).toBeCloseTo(losses.original!, 5);
    for (const [cut, wanted] of Object.entries({ ffn: { ffn: 128 }, hidden: { hidden: 48, ffn: 128 } })) {
      const smaller = await cutBySurgeon({ passage: data, original, wanted, directory: newDirectory() });
      expect(await lossOf(backend, smaller, evaluation)).toBeCloseTo(losses[cut]!, 4);
    }
  });
});
