import path from "node:path";
import { describe, expect, it } from "vitest";
import { openCheckpoint, type ResidualStep } from "../../src/models/index.js";
import { planFor, prune } from "../../src/prune/index.js";
import { removalCosts } from "../../src/refit/index.js";
import { composedTestBackends } from "../devices.js";
import { openAlgebraBackend } from "../linear-algebra/backend.js";
import { logitsOf } from "../models/architectures.js";
import { changed, divergence, fixtures, fixtureTokens, passageOver } from "./cuts.js";

const feedForward = (layer: number) => (step: ResidualStep) =>
  step.layer === layer && step.writer.local.startsWith("mlp.");

describe.each(composedTestBackends)("the cost of cutting a step, on %s", (_, options) => {
  const { backend } = openAlgebraBackend(options);
  const tied = openCheckpoint(path.join(fixtures, "tied"));
  const inputsOf = (step: ResidualStep): number => tied.model.sizes[`layers.${step.layer}.ffn`] ?? 0;

  /** Costs of keeping the first neurons, so many of each layer. */
  async function costs(original: typeof tied | ReturnType<typeof changed>, sizes: readonly number[]) {
    const passage = passageOver(backend, fixtureTokens.calibration);
    const found = await removalCosts({
      passage,
      measured: passageOver(backend, fixtureTokens.calibration.slice(0, 8)),
      original,
      keptOf: (step) =>
        step.writer.local.startsWith("mlp.")
          ? sizes.map((size) => Uint32Array.from({ length: Math.min(size, inputsOf(step)) }, (__, i) => i))
          : undefined,
    });
    return (layer: number) => [...found].find(([step]) => feedForward(layer)(step))![1];
  }

  it("is nothing for the whole step, and grows with what is cut", async () => {
    const whole = tied.model.sizes["layers.0.ffn"]!;
    const sizes = [whole, Math.round(0.8 * whole), Math.round(0.6 * whole), Math.round(0.4 * whole)];
    const costOf = await costs(tied, sizes);
    for (let layer = 0; layer < tied.model.layerCount; layer++) {
      expect(costOf(layer)[0]).toBe(0);
      expect([...costOf(layer)].sort((a, b) => a - b)).toEqual(costOf(layer));
      expect(costOf(layer)[3]).toBeGreaterThan(0);
    }
  });

  it("is, for a step that goes altogether, the divergence of the model without it", async () => {
    const evaluated = fixtureTokens.calibration.slice(0, 8);
    const dense = await logitsOf(backend, tied, evaluated);
    const costOf = await costs(tied, [inputsOf(tied.model.steps[1]!), 24, 0]);
    for (let layer = 0; layer < tied.model.layerCount; layer++) {
      const without = prune(tied, planFor(tied.model, { [`layers.${layer}.ffn`]: 0 }, []), new Map());
      const measured = divergence(dense, await logitsOf(backend, without, evaluated), tied.model.vocabSize);
      expect(costOf(layer)[2]! / measured).toBeCloseTo(1, 2);
      expect(costOf(layer)[1]).toBeLessThan(measured);
    }
  });

  it("is nothing where what is cut was not used", async () => {
    const half = tied.model.sizes["layers.0.ffn"]! / 2;
    const unused = changed(tied, (name, data, columns) => {
      if (/layers\.1\.mlp\.down_proj/.test(name))
        for (let i = 0; i < data.length; i++) if (i % columns >= half) data[i] = 0;
    });
    const costOf = await costs(unused, [half]);
    expect(costOf(1)[0]).toBeLessThan(1e-3 * costOf(0)[0]!);
    expect(costOf(0)[0]).toBeGreaterThan(0);
  });
});
