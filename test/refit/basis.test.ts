import path from "node:path";
import { describe, expect, it } from "vitest";
import type { Passage } from "../../src/evaluate/residual-stream.js";
import { ResidualStream } from "../../src/evaluate/residual-stream.js";
import { type Matrix, multiply } from "../../src/linear-algebra/index.js";
import { type ModelTensors, openCheckpoint, sizeOf } from "../../src/models/index.js";
import { readMatrix } from "../../src/prune/matrices.js";
import { surgeonScores } from "../../src/prune/surgeon-scores.js";
import { type Basis, rotationBasis, whyNotRotated } from "../../src/refit/basis.js";
import { type MatrixRows, rowsTimes } from "../../src/refit/matrix-rows.js";
import { projectedScale } from "../../src/refit/scale.js";
import { rotatedStart } from "../../src/refit/start.js";
import { tokenMoments } from "../../src/refit/token-moments.js";
import { composedTestBackends } from "../devices.js";
import { openAlgebraBackend } from "../linear-algebra/backend.js";
import { logitsOf, relativeDifference } from "../models/architectures.js";
import { changed, fixtures, fixtureTokens, passageOver } from "./cuts.js";

const opened = (name: string) => openCheckpoint(path.join(fixtures, name));

async function basisOf(passage: Passage, { model, source }: ModelTensors): Promise<Basis & { readonly read: Matrix }> {
  const { streamMoments } = await surgeonScores(passage, { model, source });
  const basis = await rotationBasis({
    backend: passage.backend,
    moments: streamMoments,
    gain: readMatrix(source, model.finalNorm!.gain).data,
    tied: model.tiedEmbeddings,
    hidden: sizeOf("hidden", model.sizes),
    embeddingGram: (await tokenMoments(passage.backend, source, model.embedding)).gram,
  });
  if (basis?.read === undefined) throw new Error("the stream is not rotated");
  return { ...basis, read: basis.read };
}

/** All rows of a matrix. */
async function whole({ blocks }: MatrixRows): Promise<Float32Array> {
  const values: number[] = [];
  for await (const block of blocks()) values.push(...block);
  return Float32Array.from(values);
}

/** A model in another basis of as many channels. */
async function rotated(passage: Passage, original: ModelTensors): Promise<ModelTensors> {
  const { model, source } = original;
  const basis = await basisOf(passage, original);
  const start = rotatedStart({ backend: passage.backend, model, within: source, basis });
  const values = new Map<string, Float32Array>();
  for (const matrix of start.embeddings()) values.set(matrix.name, await whole(matrix));
  const stream = await ResidualStream.before(passage, original);
  const scaleAt = (step: Parameters<typeof projectedScale>[2]) => projectedScale(passage, stream, step, basis.write);
  try {
    for (const step of model.steps) {
      for (const [name, data] of await start.step(step, await scaleAt(step))) values.set(name, data);
      const weights = stream.weightsOf(step.parameters);
      await stream.run(step, weights.get);
      weights.free();
    }
    const { values: last, headMap } = start.last(await scaleAt(undefined));
    for (const [name, data] of last) values.set(name, data);
    if (headMap !== undefined)
      values.set(model.head, await whole(rowsTimes(passage.backend, source, model.head, headMap)));
    return changed(original, (name, data) => data.set(values.get(name)!));
  } finally {
    stream.free();
  }
}

/** diag(gain) applied to what reads the stream from the right. */
function withGain({ data, ...matrix }: Matrix, gain: Float32Array): Matrix {
  return { ...matrix, data: data.map((value, i) => value * gain[i % gain.length]!) };
}

describe.each(composedTestBackends)("on %s", (_, options) => {
  const { backend } = openAlgebraBackend(options);
  const passage = passageOver(backend, fixtureTokens.calibration);

  it("a model with a head of its own computes the same in the rotated basis", async () => {
    const original = opened("untied");
    const before = await logitsOf(backend, original, fixtureTokens.evaluation);
    const after = await logitsOf(backend, await rotated(passage, original), fixtureTokens.evaluation);
    // all but for epsilon in the norms, beside which the rescaled stream is larger or smaller
    expect(relativeDifference(after, before)).toBeLessThan(1e-4);
  });

  it("a model whose head is its embedding does where final gains differ in their signs alone", async () => {
    const tied = opened("tied");
    const { gain } = tied.model.finalNorm!;
    const original = changed(tied, (name, data) => {
      if (name === gain) data.set(data.map((value) => 0.7 * Math.sign(value)));
    });
    expect(readMatrix(original.source, gain).data.some((value) => value < 0)).toBe(true);
    const before = await logitsOf(backend, original, fixtureTokens.evaluation);
    const after = await logitsOf(backend, await rotated(passage, original), fixtureTokens.evaluation);
    expect(relativeDifference(after, before)).toBeLessThan(1e-4);
  });

  it("every matrix reads a rotated stream as it read the original's, whatever the final gains", async () => {
    const original = opened("tied");
    const { model, source } = original;
    const basis = await basisOf(passage, original);
    const start = rotatedStart({ backend, model, within: source, basis });
    const step = model.steps[0]!;
    const values = await start.step(step, 1);
    for (const { name } of step.readers) {
      const matrix = readMatrix(source, name);
      const wanted = withGain(matrix, readMatrix(source, step.norm!.gain).data);
      // a norm's gain is even in the rotated model
      const data = values.get(name)!.map((value) => value * values.get(step.norm!.gain)![0]!);
      const read = await multiply(backend, { ...matrix, data }, basis.write, { transposeB: true });
      expect(relativeDifference(read.data, wanted.data)).toBeLessThan(1e-5);
    }
    const embedding = await whole(start.embeddings()[0]!);
    const { values: last } = start.last(1);
    const stored = readMatrix(source, model.embedding);
    const head = withGain({ ...stored, data: embedding }, last.get(model.finalNorm!.gain)!);
    const read = await multiply(backend, head, basis.write, { transposeB: true });
    const wanted = withGain(stored, readMatrix(source, model.finalNorm!.gain).data);
    expect(relativeDifference(read.data, wanted.data)).toBeLessThan(1e-5);
  });
});

describe("a model with other parts that write into the stream", () => {
  it("is not rotated: a projector of images would write in another basis", () => {
    const { model, source } = openCheckpoint(path.join(fixtures, "../models/llama-1"));
    const carried = {
      ...source,
      tensors: new Map([["multi_modal_projector.linear_2.bias", { dtype: "f32", shape: [8] }]]),
    };
    const wrapped = { ...model, config: { model_type: "mistral3", text_config: model.config } };
    expect(whyNotRotated({ model, source }, 8)).toBeUndefined();
    expect(whyNotRotated({ model: wrapped, source, carried } as ModelTensors, 8)).toMatch(/other parts of the model/);
  });
});
