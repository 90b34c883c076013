import path from "node:path";
import { describe, expect, it } from "vitest";
import { openCheckpoint } from "../../src/models/index.js";
import { readMatrix } from "../../src/prune/matrices.js";
import { tokenMoments } from "../../src/refit/token-moments.js";
import { testBackends } from "../devices.js";
import { openAlgebraBackend } from "../linear-algebra/backend.js";

describe.each(testBackends)("moments of embeddings in bf16 on %s", (_, options) => {
  const { backend } = openAlgebraBackend(options);

  it("are exact but for the rounding of sums, with and without their mean", async () => {
    const { model, source } = openCheckpoint(path.resolve(import.meta.dirname, "../../examples/tiny-teacher"));
    expect(source.tensors.get(model.embedding)?.dtype).toBe("bf16");
    const { rows, columns, data } = readMatrix(source, model.embedding);
    const { gram, centred } = await tokenMoments(backend, source, model.embedding);
    const mean = Float64Array.from({ length: columns }, (_unused, i) => {
      let sum = 0;
      for (let row = 0; row < rows; row++) sum += data[row * columns + i]!;
      return sum / rows;
    });
    for (let i = 0; i < columns; i++)
      for (let j = 0; j < columns; j++) {
        let [sum, size] = [0, 0];
        for (let row = 0; row < rows; row++) {
          sum += data[row * columns + i]! * data[row * columns + j]!;
          size += Math.abs(data[row * columns + i]! * data[row * columns + j]!);
        }
        const tolerance = 1e-5 * size + 1e-9;
        expect(Math.abs(gram.data[i * columns + j]! - sum)).toBeLessThan(tolerance);
        expect(Math.abs(centred.data[i * columns + j]! - (sum - rows * mean[i]! * mean[j]!))).toBeLessThan(
          2 * tolerance,
        );
      }
  });
});
