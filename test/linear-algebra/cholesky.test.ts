import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { GROUP, PANEL } from "../../src/linear-algebra/factor.js";
import { Cholesky, type Matrix, readElements, transpose } from "../../src/linear-algebra/index.js";
import { CoppiceError, ShapeError } from "../../src/system/errors.js";
import { composedTestBackends } from "../devices.js";
import { openAlgebraBackend } from "./backend.js";
import { norm, plusRidge, positiveDefinite, product, randomMatrix } from "./reference.js";

/** The unit roundoff of f32. */
const EPSILON = 2 ** -24;

const meanDiagonal = ({ rows, data }: Matrix): number =>
  data.reduce((sum, value, i) => (i % (rows + 1) === 0 ? sum + value / rows : sum), 0);

const difference = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  norm(Array.from(a, (value, i) => value - (b[i] ?? 0)));

/** ‖A x − b‖ / (‖A‖ ‖x‖ + ‖b‖), in units of roundoff (Rigal & Gaches 1967, in Frobenius norms). */
const backwardError = (a: Matrix, x: Matrix, b: Matrix): number =>
  difference(product(a, x), b.data) / (norm(a.data) * norm(x.data) + norm(b.data)) / EPSILON;

/** The same of an inverse: ‖A Z − I‖ / (‖A‖ ‖Z‖). */
const inverseError = (a: Matrix, z: Matrix): number => {
  const identity = a.data.map((_, i) => (i % (a.rows + 1) === 0 ? 1 : 0));
  return difference(product(a, z), identity) / (norm(a.data) * norm(z.data)) / EPSILON;
};

const identity = (size: number): Matrix => ({
  rows: size,
  columns: size,
  data: Float32Array.from({ length: size * size }, (_, i) => (i % (size + 1) === 0 ? 1 : 0)),
});

describe.each(composedTestBackends)("Cholesky on %s", (_, options) => {
  const { backend, freeLater } = openAlgebraBackend(options);
  const inverseOf = async (a: Matrix, ridge?: number): Promise<Matrix> => {
    const tensor = await (await factor(a, ridge)).invert();
    const inverse = { rows: a.rows, columns: a.rows, data: new Float32Array(a.rows ** 2) };
    readElements(backend, tensor, 0, inverse.data);
    return inverse;
  };
  /** x with a x = b. */
  const solve = async (cholesky: Cholesky, b: Matrix): Promise<Matrix> => transpose(await cholesky.solve(transpose(b)));
  const factor = async (a: Matrix, ridge?: number): Promise<Cholesky> => {
    const result = await Cholesky.factor(backend, a, { ridge });
    freeLater(result);
    return result;
  };

  it("solves and inverts to within a few roundings, whatever the size and the condition", async () => {
    const sizes = fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: PANEL - 2, max: PANEL + 40 }));
    await fc.assert(
      fc.asyncProperty(
        fc.record({ size: sizes, columns: fc.integer({ min: 1, max: 5 }), digits: fc.integer({ min: 0, max: 6 }) }),
        fc.integer(),
        async ({ size, columns, digits }, seed) => {
          const a = positiveDefinite(size, 10 ** digits, seed);
          const ridge = 0.01 * meanDiagonal(a);
          const b = randomMatrix(size, columns, seed);
          const cholesky = await factor(a, ridge);
          expect(cholesky.size).toBe(size);
          const whole = plusRidge(a, ridge);
          expect(backwardError(whole, await solve(cholesky, b), b)).toBeLessThan(2);
          expect(inverseError(whole, await inverseOf(a, ridge))).toBeLessThan(3);
        },
      ),
      { numRuns: options.device === "vulkan" ? 3 : 8 },
    );
  });

  it.each([1, PANEL - 1, PANEL, PANEL + 1, 2 * PANEL + 3, GROUP, GROUP + 1, GROUP + PANEL + 3])(
    "factors %i rows",
    async (size) => {
      const a = positiveDefinite(size, 1e3, size);
      const b = randomMatrix(size, 3, 1);
      const cholesky = await factor(a);
      expect(backwardError(a, await solve(cholesky, b), b)).toBeLessThan(2);
      const inverse = await inverseOf(a);
      expect(inverseError(a, inverse)).toBeLessThan(3);
      const mirrored = transpose(inverse).data;
      expect(inverse.data.findIndex((value, i) => value !== mirrored[i])).toBe(-1);
    },
  );

  it("solves for more right-hand sides than it takes at once", async () => {
    const a = positiveDefinite(3, 10, 5);
    const b = randomMatrix(3, 2049, 6);
    expect(backwardError(a, await solve(await factor(a), b), b)).toBeLessThan(2);
  });

  it("reads the lower triangle only", async () => {
    const size = PANEL + 2;
    const a = positiveDefinite(size, 10, 1);
    const b = randomMatrix(size, 1, 2);
    const before = await solve(await factor(a), b);
    const lower = { ...a, data: a.data.map((value, i) => (i % size > i / size ? Number.NaN : value)) };
    expect((await solve(await factor(lower), b)).data).toEqual(before.data);
  });

  it("says how far it is", async () => {
    const calls: [number, number][] = [];
    const onProgress = (done: number, total: number) => calls.push([done, total]);
    freeLater(await Cholesky.factor(backend, identity(PANEL + 1), { onProgress }));
    expect(calls).toEqual([
      [1, 2],
      [2, 2],
    ]);
  });

  it("names the pivot where a matrix is not positive definite", async () => {
    const a = identity(PANEL + 10);
    const row = PANEL + 4;
    a.data[row * a.rows + row] = -0.5;
    await expect(factor(a, 0.25)).rejects.toThrow(
      new RegExp(`not positive definite: pivot ${row} of ${a.rows} is -0\\.25.* ridge of 0\\.25\\. Use a larger ridge`),
    );
    expect((await factor(a, 1)).size).toBe(a.rows);
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY])("says where a matrix holds %d", async (value) => {
    const a = identity(5);
    a.data[3 * 5 + 1] = value;
    await expect(factor(a)).rejects.toThrow("holds a number that is not finite (NaN or infinite) in row 3, column 1");
  });

  it("refuses sizes that do not fit, and ridges that are none", async () => {
    await expect(factor(randomMatrix(2, 3, 0))).rejects.toThrow(ShapeError);
    await expect(factor({ rows: 2, columns: 2, data: new Float32Array(3) })).rejects.toThrow("3 numbers");
    await expect(factor(identity(2), -1)).rejects.toThrow(CoppiceError);
    await expect(factor(identity(2), Number.NaN)).rejects.toThrow("not NaN");
    await expect((await factor(identity(2))).solve(randomMatrix(1, 3, 0))).rejects.toThrow("must have 2 columns");
  });
});
