import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type EigenOptions, type Matrix, symmetricEigen } from "../../src/linear-algebra/index.js";
import { lapackEigen } from "../../src/linear-algebra/lapack.js";
import { CoppiceError, ShapeError } from "../../src/system/errors.js";
import { product, randomMatrix } from "./reference.js";

const libraries: EigenOptions["library"][] = ["ml-matrix"];
if (lapackEigen() === undefined)
  console.warn("skipped with LAPACK: it is not installed (on Debian: apt-get install libopenblas0)");
else libraries.push("lapack");

const symmetric = (size: number, seed: number): Matrix => {
  const a = randomMatrix(size, size, seed);
  for (let i = 0; i < size; i++) for (let j = 0; j < i; j++) a.data[j * size + i] = a.data[i * size + j] ?? 0;
  return a;
};

describe.each(libraries)("symmetricEigen by %s", (library) => {
  it("finds orthonormal vectors with A v = λ v, the largest values first", async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 40 }), fc.integer(), async (size, seed) => {
        const a = symmetric(size, seed);
        const { values, vectors } = await symmetricEigen(a, { library });
        expect([...values]).toEqual([...values].sort((x, y) => y - x));
        const transformed = product(vectors, a); // row i: vᵢᵀ A
        const gram = product(vectors, vectors, { transposeB: true });
        for (let i = 0; i < size; i++)
          for (let j = 0; j < size; j++) {
            const k = i * size + j;
            expect(transformed[k]).toBeCloseTo((values[i] ?? 0) * (vectors.data[k] ?? 0), 5);
            expect(gram[k]).toBeCloseTo(i === j ? 1 : 0, 6);
          }
      }),
      { numRuns: 8 },
    );
  });

  it("reads the lower triangle only", async () => {
    const a = symmetric(6, 1);
    const { values } = await symmetricEigen(a, { library });
    a.data[1] = Number.NaN;
    expect((await symmetricEigen(a, { library })).values).toEqual(values);
  });

  it("finds the values of a known matrix", async () => {
    // second differences: 2 − 2 cos(k π / (n + 1))
    const data = Float32Array.of(2, -1, 0, -1, 2, -1, 0, -1, 2);
    const { values } = await symmetricEigen({ rows: 3, columns: 3, data }, { library });
    [2 + Math.SQRT2, 2, 2 - Math.SQRT2].forEach((value, i) => {
      expect(values[i]).toBeCloseTo(value, 12);
    });
  });
});

describe("symmetricEigen", () => {
  it("refuses matrices that are not square, and numbers that are not finite", async () => {
    await expect(symmetricEigen(randomMatrix(2, 3, 0))).rejects.toThrow(ShapeError);
    const a = symmetric(3, 0);
    a.data[7] = Number.NaN;
    await expect(symmetricEigen(a)).rejects.toThrow(CoppiceError);
    await expect(symmetricEigen(a)).rejects.toThrow("NaN in row 2, column 1");
  });
});
