import { mkdtempSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { SavedStreams } from "../../src/evaluate/saved-streams.js";
import { openCheckpoint, shapeOf } from "../../src/models/index.js";
import { prune } from "../../src/prune/index.js";
import { readMatrix } from "../../src/prune/matrices.js";
import { type SurgeonProgress, surgeonScores } from "../../src/prune/surgeon-scores.js";
import { oneTestBackend } from "../devices.js";
import { openAlgebraBackend } from "../linear-algebra/backend.js";
import { logitsOf, models, relativeDifference } from "../models/architectures.js";
import { temporaryDirectory } from "../temporary.js";
import { cutBySurgeon, divergence, passageOver, planOf, randomTokens } from "./cuts.js";

const temporary = temporaryDirectory();
const newDirectory = () => mkdtempSync(path.join(temporary, "parts-"));

/** On one set of kernels alone: what devices compute is compared in properties.test.ts and peer.test.ts. */
describe.each(oneTestBackend)("families on %s", (_, options) => {
  const { backend } = openAlgebraBackend(options);

  it.each(models)("a cut of nothing changes nothing of $name, and a refit mends one", async ({ directory }) => {
    const original = openCheckpoint(directory);
    const { model } = original;
    const [calibration, evaluation] = [randomTokens(model, 32, 16), randomTokens(model, 4, 16, 4)];
    const data = passageOver(backend, calibration, { batch: 16 });
    const statistics = await surgeonScores(data, original);
    const refitted = (wanted: Record<string, number>) =>
      cutBySurgeon({ passage: data, original, wanted, directory: newDirectory(), statistics });
    const reference = await logitsOf(backend, original, evaluation);
    expect(relativeDifference(await logitsOf(backend, await refitted({}), evaluation), reference)).toBeLessThan(1e-5);
    const wide = model.axes.some(({ name }) => name === "hidden");
    for (const wanted of [{ ffn: 42 }, ...(wide ? [{ hidden: 24 }] : [])]) {
      const { plan, kept } = await planOf({ passage: data, original, wanted, directory: temporary, statistics });
      const mended = await refitted(wanted);
      for (const spec of mended.model.parameters)
        expect(mended.source.tensors.get(spec.name)?.shape, spec.name).toEqual(shapeOf(spec, mended.model.sizes));
      const [before, after] = [
        await logitsOf(backend, prune(original, plan, kept), evaluation),
        await logitsOf(backend, mended, evaluation),
      ];
      expect(divergence(reference, after, model.vocabSize), Object.keys(wanted).join()).toBeLessThan(
        divergence(reference, before, model.vocabSize),
      );
    }
  });

  it.each(models)(
    "a refit of $name that was stopped goes on from its streams, to the same values",
    async ({ directory }) => {
      const original = openCheckpoint(directory);
      const data = passageOver(backend, randomTokens(original.model, 32, 16), { batch: 16 });
      const saved = new SavedStreams(path.join(newDirectory(), "streams.safetensors"), 0);
      const statistics = await surgeonScores(data, original);
      let known: SurgeonProgress | undefined;
      const onStep = (progress: SurgeonProgress) => {
        if (progress.steps > 1) throw new Error("stopped");
        known = { ...progress, scores: new Map(progress.scores) };
      };
      await expect(surgeonScores(data, original, { savedStreams: saved, onStep })).rejects.toThrow("stopped");
      expect(await surgeonScores(data, original, { known, savedStreams: saved })).toEqual(statistics);
      const cut = { passage: data, original, wanted: { ffn: 42 }, statistics, saveEverySeconds: 0 };
      const valuesOf = async (inputs: Omit<typeof cut, "onProgress"> & { readonly directory: string }) => {
        const { model, source } = await cutBySurgeon(inputs);
        return model.parameters.map(({ name }) => readMatrix(source, name).data);
      };
      const wanted = await valuesOf({ ...cut, directory: newDirectory() });
      const place = newDirectory();
      const onProgress = (done: number) => {
        if (done === 2) throw new Error("stopped");
      };
      await expect(cutBySurgeon({ ...cut, directory: place, onProgress })).rejects.toThrow("stopped");
      expect(await valuesOf({ ...cut, directory: place })).toEqual(wanted);
    },
  );
});
