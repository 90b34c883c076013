import { existsSync, mkdtempSync, readdirSync } from "node:fs";
import path from "node:path";
import { describe, expect, it, vi } from "vitest";
import { readTensor, type TensorSource, tensorInfo } from "../../src/checkpoint/index.js";
import { SavedStreams } from "../../src/evaluate/saved-streams.js";
import { fromFloat32, loadFunctions } from "../../src/ggml/index.js";
import { type ModelTensors, openCheckpoint } from "../../src/models/index.js";
import { prune } from "../../src/prune/index.js";
import { readMatrix } from "../../src/prune/matrices.js";
import { type SurgeonProgress, surgeonScores } from "../../src/prune/surgeon-scores.js";
import { required } from "../../src/system/errors.js";
import { composedTestBackends } from "../devices.js";
import { openAlgebraBackend } from "../linear-algebra/backend.js";
import { logitsOf } from "../models/architectures.js";
import { temporaryDirectory } from "../temporary.js";
import { changed, cutBySurgeon, divergence, fixtures, fixtureTokens, observed, passageOver, planOf } from "./cuts.js";

const temporary = temporaryDirectory();
const newDirectory = () => mkdtempSync(path.join(temporary, "parts-"));

/** Every parameter's bytes, by name. */
const bytesOf = ({ model, source }: ModelTensors) =>
  new Map(model.parameters.map(({ name }) => [name, Buffer.from(readTensor(source, name)).toString("base64")]));

function expectNear(values: Float32Array, expected: Float32Array, tolerance: number): void {
  const norm = (of: Float32Array) => Math.sqrt(of.reduce((sum, value) => sum + value * value, 0));
  expect(norm(expected.map((value, i) => value - values[i]!))).toBeLessThan(tolerance * norm(expected));
}

/** A model's tensors in bf16. */
function roundedSource({ model, source }: ModelTensors): TensorSource {
  const values = new Map(
    model.parameters.map(({ name }) => [
      name,
      {
        ...tensorInfo(source, name),
        dtype: "bf16" as const,
        bytes: fromFloat32(loadFunctions(), readMatrix(source, name).data, "bf16").slice(),
      },
    ]),
  );
  return {
    tensors: values,
    readRows: (name, from, to) => {
      const { shape, bytes } = required(values.get(name), name);
      const width = bytes.length / (shape[0] as number);
      return bytes.subarray(from * width, to * width);
    },
    releaseRows: () => {},
  };
}

describe.each(composedTestBackends)("on %s", (_, options) => {
  const { backend } = openAlgebraBackend(options);
  const tied = openCheckpoint(path.join(fixtures, "tied"));
  const passage = passageOver(backend, fixtureTokens.calibration);
  const both = { hidden: 24, ffn: 36 };

  it("a refit that was stopped goes on to the same bits", async () => {
    const whole = newDirectory();
    const wanted = bytesOf(await cutBySurgeon({ passage, original: tied, wanted: both, directory: whole }));
    for (const last of [1, 2, 4]) {
      const directory = newDirectory();
      const onProgress = (done: number) => {
        if (done === last) throw new Error("stopped");
      };
      const cut = { passage, original: tied, wanted: both, directory };
      await expect(cutBySurgeon({ ...cut, onProgress })).rejects.toThrow("stopped");
      const finished = readdirSync(directory);
      expect(finished.length).toBe(last + 1);
      expect(bytesOf(await cutBySurgeon(cut))).toEqual(wanted);
    }
  });

  it("a refit in bf16 finds what one in f32 does", async () => {
    const statistics = await surgeonScores(passage, tied);
    const cut = { original: tied, wanted: both, statistics };
    const coarse = { ...passage, computeType: "bf16" as const };
    const [exact, rounded] = [
      await cutBySurgeon({ ...cut, passage, directory: newDirectory() }),
      await cutBySurgeon({ ...cut, passage: coarse, directory: newDirectory() }),
    ];
    const { streamMoments } = await surgeonScores(coarse, tied);
    expectNear(streamMoments.data, statistics.streamMoments.data, 0.01);
    for (const { name } of exact.model.parameters)
      expectNear(readMatrix(rounded.source, name).data, readMatrix(exact.source, name).data, 0.05);
  });

  it("the parts of a cut that will be written in bf16 are kept so, and used so", async () => {
    const halved = { ...tied, source: roundedSource(tied) };
    const cut = { passage, original: halved, wanted: both };
    const whole = newDirectory();
    const wanted = await cutBySurgeon({ ...cut, directory: whole });
    expect([...wanted.source.tensors.values()].map(({ dtype }) => dtype)).toEqual(
      wanted.model.parameters.map(() => "bf16"),
    );
    const stopped = newDirectory();
    const onProgress = (done: number) => {
      if (done === 2) throw new Error("stopped");
    };
    await expect(cutBySurgeon({ ...cut, directory: stopped, onProgress })).rejects.toThrow("stopped");
    expect(bytesOf(await cutBySurgeon({ ...cut, directory: stopped }))).toEqual(bytesOf(wanted));
  });

  it("a refit whose streams are saved goes on from them, to the same bits, without what came before", async () => {
    const statistics = await surgeonScores(passage, tied);
    const cut = { passage, wanted: both, statistics, saveEverySeconds: 0 };
    const wanted = bytesOf(await cutBySurgeon({ ...cut, original: tied, directory: newDirectory() }));
    const directory = newDirectory();
    const onProgress = (done: number) => {
      if (done === 3) throw new Error("stopped");
    };
    await expect(cutBySurgeon({ ...cut, original: tied, directory, onProgress })).rejects.toThrow("stopped");
    const { tensors, read } = observed(tied);
    expect(bytesOf(await cutBySurgeon({ ...cut, original: tensors, directory }))).toEqual(wanted);
    const [first, second, third, fourth] = tied.model.steps.map(({ writer }) => writer.name);
    expect([first, second, third, fourth].map((name) => read.has(name!))).toEqual([false, false, false, true]);
    expect(readdirSync(directory)).not.toContain("streams.safetensors");
  });

  it("a refit of other data is not gone on with", async () => {
    const statistics = await surgeonScores(passage, tied);
    const cut = { original: tied, wanted: both, statistics, saveEverySeconds: 0 };
    const other = passageOver(backend, fixtureTokens.calibration.slice(0, 4));
    const directory = newDirectory();
    const onProgress = (done: number) => {
      if (done === 1) throw new Error("stopped");
    };
    await expect(cutBySurgeon({ ...cut, passage: other, directory, onProgress })).rejects.toThrow("stopped");
    await expect(cutBySurgeon({ ...cut, passage, directory })).rejects.toThrow(/fitted to other scores or data/);
  });

  it.each([1, 3, 4])("statistics go on from the streams of step %i, to the same bits", async (stopped) => {
    const file = path.join(newDirectory(), "streams.safetensors");
    const wanted = await surgeonScores(passage, tied);
    let known: SurgeonProgress | undefined;
    const savedStreams = new SavedStreams(file, 0);
    const stop = (progress: SurgeonProgress) => {
      if (progress.steps > stopped) throw new Error("stopped");
      known = { ...progress, scores: new Map(progress.scores) };
    };
    const first = surgeonScores(passage, tied, { savedStreams, onStep: stop });
    if (stopped < tied.model.steps.length) await expect(first).rejects.toThrow("stopped");
    else await first;
    const { tensors, read } = observed(tied);
    const { scores, streamMoments } = await surgeonScores(passage, tensors, { known, savedStreams });
    expect([...scores]).toEqual([...wanted.scores]);
    expect(streamMoments).toEqual(wanted.streamMoments);
    expect(tied.model.steps.map(({ writer }) => read.has(writer.name))).toEqual(
      tied.model.steps.map((_unused, i) => i >= stopped),
    );
  });

  it("layers are left out", async () => {
    const statistics = await surgeonScores(passage, tied);
    const reference = await logitsOf(backend, tied, fixtureTokens.evaluation);
    for (const layer of [0, 1]) {
      const cut = { passage, original: tied, wanted: { ffn: 36, layers: 1 }, layerOrder: [layer], statistics };
      const { plan, kept } = await planOf({ ...cut, directory: temporary });
      expect(plan.keptLayers).toEqual([1 - layer]);
      const refitted = await cutBySurgeon({ ...cut, directory: newDirectory() });
      expect(refitted.model.layerCount).toBe(1);
      const [before, after] = [
        await logitsOf(backend, prune(tied, plan, kept), fixtureTokens.evaluation),
        await logitsOf(backend, refitted, fixtureTokens.evaluation),
      ];
      expect(divergence(reference, after, tied.model.vocabSize)).toBeLessThan(
        divergence(reference, before, tied.model.vocabSize),
      );
    }
  });

  it.each([
    ["a feed-forward network", { "layers.0.ffn": 0 }],
    ["attention", { "layers.0.kvHeads": 0 }],
    ["attention and some width", { "layers.1.kvHeads": 0, hidden: 24, ffn: 36 }],
  ])("what is left makes up for a layer without %s", async (_what, wanted) => {
    const statistics = await surgeonScores(passage, tied);
    const cut = { passage, original: tied, wanted, statistics };
    const { plan, kept } = await planOf({ ...cut, directory: temporary });
    const reference = await logitsOf(backend, tied, fixtureTokens.evaluation);
    const losses: number[] = [];
    for (const model of [await cutBySurgeon({ ...cut, directory: newDirectory() }), prune(tied, plan, kept)])
      losses.push(
        divergence(reference, await logitsOf(backend, model, fixtureTokens.evaluation), tied.model.vocabSize),
      );
    expect(losses[0]).toBeLessThan(0.9 * losses[1]!);
  });

  it("a finished part of another cut is refused", async () => {
    const directory = newDirectory();
    await cutBySurgeon({ passage, original: tied, wanted: { ffn: 36 }, directory });
    const refused = /\.safetensors is of another cut, or was fitted to other scores or data: begin anew/;
    await expect(cutBySurgeon({ passage, original: tied, wanted: { ffn: 40 }, directory })).rejects.toThrow(refused);
    // of the same sizes
    const { scores, streamMoments } = await surgeonScores(passage, tied);
    const reversed = new Map([...scores].map(([name, values]) => [name, values.map((value) => -value)]));
    const statistics = { scores: reversed, streamMoments };
    const wanted = { ffn: 36 };
    await expect(cutBySurgeon({ passage, original: tied, wanted, directory, statistics })).rejects.toThrow(refused);
    const other = passageOver(backend, fixtureTokens.evaluation);
    await expect(cutBySurgeon({ passage: other, original: tied, wanted, directory })).rejects.toThrow(refused);
  });

  it("nothing is left on disk of a cut that fails", async () => {
    const scratch = newDirectory();
    vi.stubEnv("TMPDIR", scratch);
    try {
      const onDisk = passageOver(backend, fixtureTokens.calibration, { memoryBytes: 0 });
      for (const parameter of [tied.model.embedding, "model.layers.1.mlp.down_proj.weight"]) {
        const damaged = changed(tied, (name, data) => {
          if (name === parameter) data[3] = Number.NaN;
        });
        const cut = { passage: onDisk, original: damaged, wanted: both, directory: newDirectory() };
        await expect(cutBySurgeon(cut)).rejects.toThrow(`${parameter} holds NaN`);
        expect(readdirSync(scratch)).toEqual([]);
      }
    } finally {
      vi.unstubAllEnvs();
    }
  });

  it("a model's hidden states take no more memory than they may", async () => {
    const bytes = 512 * 32 * 4; // of the stream at one place
    try {
      for (const memoryBytes of [3 * bytes, 3 * bytes - 1]) {
        const cache = newDirectory();
        vi.stubEnv("COPPICE_CACHE", cache);
        await cutBySurgeon({
          passage: passageOver(backend, fixtureTokens.calibration, { memoryBytes }),
          original: tied,
          wanted: { ffn: 36 },
          directory: newDirectory(),
        });
        const scratch = path.join(cache, "scratch");
        expect(existsSync(scratch)).toBe(memoryBytes < 3 * bytes);
        if (existsSync(scratch)) expect(readdirSync(scratch)).toEqual([]);
      }
    } finally {
      vi.unstubAllEnvs();
    }
  });

  it("hidden states on disk give the same bits as in memory", async () => {
    const cut = { original: tied, wanted: both };
    const inMemory = await cutBySurgeon({ ...cut, passage, directory: newDirectory() });
    const onDisk = passageOver(backend, fixtureTokens.calibration, { memoryBytes: 0 });
    expect(bytesOf(await cutBySurgeon({ ...cut, passage: onDisk, directory: newDirectory() }))).toEqual(
      bytesOf(inMemory),
    );
  });
});
