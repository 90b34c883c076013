import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { multiply } from "../../src/linear-algebra/index.js";
import { ShapeError } from "../../src/system/errors.js";
import { composedTestBackends } from "../devices.js";
import { openAlgebraBackend } from "./backend.js";
import { norm, product, randomMatrix } from "./reference.js";

describe.each(composedTestBackends)("multiply on %s", (_, options) => {
  const { backend } = openAlgebraBackend(options);

  it("computes a b, a bᵀ, aᵀ b and aᵀ bᵀ", async () => {
    const size = fc.integer({ min: 1, max: 70 });
    await fc.assert(
      fc.asyncProperty(
        fc.tuple(size, size, size),
        fc.boolean(),
        fc.boolean(),
        async (sizes, transposeA, transposeB) => {
          const [rows, inner, columns] = sizes;
          const a = transposeA ? randomMatrix(inner, rows, 1) : randomMatrix(rows, inner, 1);
          const b = transposeB ? randomMatrix(columns, inner, 2) : randomMatrix(inner, columns, 2);
          const transposes = { transposeA, transposeB };
          const result = await multiply(backend, a, b, transposes);
          expect([result.rows, result.columns]).toEqual([rows, columns]);
          const error = norm(product(a, b, transposes).map((value, i) => value - (result.data[i] ?? 0)));
          expect(error).toBeLessThan(1e-6 * norm(a.data) * norm(b.data));
        },
      ),
      { numRuns: options.device === "vulkan" ? 3 : 20 },
    );
  });

  it.each([false, true])("computes more rows than it takes at once (transposed: %s)", async (transposeA) => {
    const a = transposeA ? randomMatrix(2, 2049, 1) : randomMatrix(2049, 2, 1);
    const b = randomMatrix(2, 3, 2);
    const result = await multiply(backend, a, b, { transposeA });
    const expected = product(a, b, { transposeA });
    expect(norm(expected.map((value, i) => value - (result.data[i] ?? 0)))).toBeLessThan(1e-6 * norm(expected));
  });

  it("refuses inner sizes that differ", async () => {
    const [a, b] = [randomMatrix(2, 3, 0), randomMatrix(2, 3, 0)];
    await expect(multiply(backend, a, b)).rejects.toThrow(ShapeError);
    await expect(multiply(backend, a, b)).rejects.toThrow("inner sizes are 3 and 2");
    expect((await multiply(backend, a, b, { transposeB: true })).rows).toBe(2);
  });
});
