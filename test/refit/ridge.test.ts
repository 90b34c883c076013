import { describe, expect, it } from "vitest";
import { type Matrix, meanDiagonal, transpose } from "../../src/linear-algebra/index.js";
import { DAMPING, Ridge } from "../../src/refit/ridge.js";
import { Random } from "../../src/system/random.js";
import { composedTestBackends } from "../devices.js";
import { openAlgebraBackend } from "../linear-algebra/backend.js";

const random = new Random(9);
const matrix = (rows: number, columns: number, value = () => random.normal()): Matrix => ({
  rows,
  columns,
  data: Float32Array.from({ length: rows * columns }, value),
});

/** aᵀ b in f64 sums. */
const products = (a: Matrix, b: Matrix): Matrix => ({
  rows: a.columns,
  columns: b.columns,
  data: Float32Array.from({ length: a.columns * b.columns }, (_, i) => {
    const [row, column] = [Math.floor(i / b.columns), i % b.columns];
    let sum = 0;
    for (let k = 0; k < a.rows; k++) sum += a.data[k * a.columns + row]! * b.data[k * b.columns + column]!;
    return sum;
  }),
});

/** ‖X Wᵀ - Y‖² + λ ‖W - W0‖². */
function objective(x: Matrix, y: Matrix, start: Matrix, ridge: number, w: Matrix): number {
  let sum = 0;
  for (let row = 0; row < x.rows; row++)
    for (let output = 0; output < w.rows; output++) {
      let value = -y.data[row * y.columns + output]!;
      for (let i = 0; i < w.columns; i++) value += x.data[row * x.columns + i]! * w.data[output * w.columns + i]!;
      sum += value ** 2;
    }
  return sum + ridge * w.data.reduce((total, value, i) => total + (value - start.data[i]!) ** 2, 0);
}

const [INPUTS, OUTPUTS] = [20, 7];

describe.each(composedTestBackends)("a regression on %s", (_, options) => {
  const { backend } = openAlgebraBackend(options);

  it.each([
    ["many rows", matrix(80, INPUTS)],
    ["fewer rows than inputs", matrix(5, INPUTS)],
    ["an input that is always zero", matrix(80, INPUTS, () => random.normal())],
    ["rows that are all alike", { rows: 30, columns: INPUTS, data: new Float32Array(30 * INPUTS).fill(0.5) }],
  ])("is at the least of its objective with %s", async (name, x) => {
    if (name.includes("zero")) for (let row = 0; row < x.rows; row++) x.data[row * INPUTS + 3] = 0;
    const [y, start] = [matrix(x.rows, OUTPUTS), matrix(OUTPUTS, INPUTS)];
    const gram = products(x, x);
    const regression = await Ridge.of(backend, gram);
    const fitted = await regression.solve(products(y, x), start);
    regression.free();
    const ridge = DAMPING * meanDiagonal(gram);
    const least = objective(x, y, start, ridge, fitted);
    expect(least).toBeLessThanOrEqual(objective(x, y, start, ridge, start));
    for (let i = 0; i < 20; i++) {
      const data = fitted.data.map((value) => value + 0.03 * random.normal());
      expect(objective(x, y, start, ridge, { ...fitted, data })).toBeGreaterThan(least);
    }
  });

  it("stays where it started when its inputs are all zero, and so does an objective that is met", async () => {
    const [x, start] = [matrix(40, INPUTS), matrix(OUTPUTS, INPUTS)];
    const nothing = await Ridge.of(
      backend,
      matrix(INPUTS, INPUTS, () => 0),
    );
    expect(
      await nothing.solve(
        matrix(OUTPUTS, INPUTS, () => 0),
        start,
      ),
    ).toEqual(start);
    nothing.free();
    const gram = products(x, x);
    const targets = products(transpose(start), gram);
    const met = await Ridge.of(backend, gram);
    const fitted = await met.solve(targets, start);
    met.free();
    fitted.data.forEach((value, i) => {
      expect(value).toBeCloseTo(start.data[i]!, 4);
    });
  });
});
