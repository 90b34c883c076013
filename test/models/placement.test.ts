import path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { modelFromConfig, openCheckpoint, placesOf, shapeOf } from "../../src/models/index.js";
import { elementCount } from "../../src/tensor/index.js";

const fixtures = path.resolve(import.meta.dirname, "../fixtures/models");
const { config } = openCheckpoint(path.join(fixtures, "llama-2-tied-gqa"));
const modelOf = (layers: number) => modelFromConfig({ ...config, num_hidden_layers: layers });

describe("places of a model's parameters on several devices", () => {
  it("are whole layers in their order, with the embedding where the first is and the last norm where the last is", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 12 }),
        fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 5 }),
        (layers, room) => {
          const total = room.reduce((a, b) => a + b);
          const model = modelOf(layers);
          const placeOf = placesOf(
            model,
            room.map((part) => part / total),
          );
          const places = model.parameters.map((spec) => ({ spec, place: placeOf(spec) }));
          for (const { place } of places) expect(place).toBeGreaterThanOrEqual(0);
          for (const { place } of places) expect(place).toBeLessThan(room.length);
          const byLayer = Array.from({ length: layers }, (_, layer) => [
            ...new Set(places.filter(({ spec }) => spec.layer === layer).map(({ place }) => place)),
          ]);
          for (const those of byLayer) expect(those).toHaveLength(1);
          const order = byLayer.flat();
          expect(order).toEqual(order.toSorted((a, b) => a - b));
          expect(places[0]?.place).toBe(order[0]);
          expect(places.at(-1)?.place).toBe(order.at(-1));
        },
      ),
    );
  });

  it("give each device its share, to within a layer", () => {
    const model = modelOf(24);
    const shares = [0.5, 0.2, 0.3];
    const placeOf = placesOf(model, shares);
    const count = (which: typeof model.parameters) =>
      which.reduce((sum, spec) => sum + elementCount(shapeOf(spec, model.sizes)), 0);
    const all = count(model.parameters);
    const layer = count(model.parameters.filter((spec) => spec.layer === 3));
    const embedding = count(model.parameters.filter((spec) => spec.layer === undefined));
    for (const [place, share] of shares.entries()) {
      const held = count(model.parameters.filter((spec) => placeOf(spec) === place));
      expect(Math.abs(held - share * all)).toBeLessThanOrEqual(layer + embedding);
    }
  });
});
