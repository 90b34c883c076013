import { describe, expect, it } from "vitest";

import type { Backend } from "../../src/ggml/index.js";
import { Gram } from "../../src/prune/gram.js";
import { removalLosses } from "../../src/prune/obs.js";
import { Random } from "../../src/system/random.js";
import { composedTestBackends } from "../devices.js";
import { openBackend } from "../tensor/backend.js";

const random = new Random(7);
const matrix = (rows: number, columns: number, value = () => random.normal()) => ({
  rows,
  columns,
  data: Float32Array.from({ length: rows * columns }, value),
});

/** The second moments of random activations with correlated channels. */
function momentsOf(inputs: number, samples = 4 * inputs) {
  const mixing = matrix(inputs, inputs);
  const sources = matrix(samples, inputs);
  const x = matrix(samples, inputs, () => 0);
  for (let s = 0; s < samples; s++)
    for (let i = 0; i < inputs; i++)
      for (let k = 0; k < inputs; k++)
        x.data[s * inputs + i]! += (sources.data[s * inputs + k]! * mixing.data[k * inputs + i]!) / (1 + k);
  const moments = matrix(inputs, inputs, () => 0);
  for (let s = 0; s < samples; s++)
    for (let i = 0; i < inputs; i++)
      for (let j = 0; j < inputs; j++)
        moments.data[i * inputs + j]! += x.data[s * inputs + i]! * x.data[s * inputs + j]!;
  return moments;
}

/** The losses of removal, by sums on the device. */
async function lossesOf(backend: Backend, moments: Dense, weight: Dense, groupSize: number): Promise<Float32Array> {
  const sums = new Gram(backend, "test", moments.rows);
  try {
    sums.write(moments.data);
    return await removalLosses(backend, sums, weight, { groupSize });
  } finally {
    sums.free();
  }
}

/** Subtracts a multiple of a row from another, from a place on. */
function subtract(row: Float64Array, factor: number, other: Float64Array, from = 0): void {
  for (let i = from; i < row.length; i++) row[i]! -= factor * other[i]!;
}

/** Solves a x = b by Gaussian elimination with pivots, f64. a: [n, n], b: [n, m] */
function solve(a: readonly ArrayLike<number>[], b: readonly ArrayLike<number>[]): number[][] {
  const n = a.length;
  const rows = a.map((row, i) => Float64Array.from([...Array.from(row), ...Array.from(b[i]!)]));
  for (let k = 0; k < n; k++) {
    const pivot = rows
      .slice(k)
      .reduce((best, row, i) => (Math.abs(row[k]!) > Math.abs(rows[best]![k]!) ? k + i : best), k);
    [rows[k], rows[pivot]] = [rows[pivot]!, rows[k]!];
    for (let i = 0; i < n; i++) {
      if (i === k) continue;
      subtract(rows[i]!, rows[i]![k]! / rows[k]![k]!, rows[k]!, k);
    }
  }
  return rows.map((row, k) => Array.from(row.subarray(n), (value) => value / row[k]!));
}

type Dense = ReturnType<typeof matrix>;
const at = ({ columns, data }: Dense, i: number, j: number): number => data[i * columns + j]!;

/**
 * The least damped squared error with which the inputs `kept` can give the outputs that all give: the closed form of a regression,
 * min over V of tr((W - V) H (W - V)ᵀ) with V zero outside of `kept`.
 */
function leastError(h: number[][], w: Dense, kept: readonly number[]): number {
  const outputs = Array.from({ length: w.rows }, (_, o) => o);
  const inputs = h.map((_, i) => i);
  const right = kept.map((i) => outputs.map((o) => inputs.reduce((sum, j) => sum + h[i]![j]! * at(w, o, j), 0)));
  const v = solve(
    kept.map((i) => kept.map((j) => h[i]![j]!)),
    right,
  );
  const difference = outputs.map((o) => {
    const row = inputs.map((j) => at(w, o, j));
    for (const [k, i] of kept.entries()) row[i]! -= v[k]![o]!;
    return row;
  });
  return difference.reduce(
    (sum, d) => sum + inputs.reduce((a, i) => a + inputs.reduce((b, j) => b + d[i]! * h[i]![j]! * d[j]!, 0), 0),
    0,
  );
}

function damped(moments: Dense): number[][] {
  const n = moments.rows;
  const mean = Array.from({ length: n }, (_, i) => at(moments, i, i)).reduce((a, b) => a + b, 0) / n;
  return Array.from({ length: n }, (_, i) =>
    Array.from({ length: n }, (__, j) => at(moments, i, j) + (i === j ? 0.01 * mean : 0)),
  );
}

/** aᵀ b. */
function product(a: Dense, b: Dense): Dense {
  const sums = matrix(a.columns, b.columns, () => 0);
  const rows = Array.from({ length: a.columns }, () => new Float64Array(b.columns));
  for (let s = 0; s < a.rows; s++) {
    const other = Float64Array.from(b.data.subarray(s * b.columns, (s + 1) * b.columns));
    rows.forEach((row, i) => {
      subtract(row, -at(a, s, i), other);
    });
  }
  rows.forEach((row, i) => {
    sums.data.set(row, i * b.columns);
  });
  return sums;
}

/** Takes the groups of inputs with the least losses out, so many at a time, by elimination of one after the other. f64 */
function eliminated(
  moments: Dense,
  weight: Dense,
  { atOnce, count, groupSize = 1 }: { atOnce: number; count: number; groupSize?: number },
): Map<number, number> {
  const n = moments.rows;
  const identity = Array.from({ length: n }, (_, i) => Array.from({ length: n }, (__, j) => (i === j ? 1 : 0)));
  const inverse = solve(damped(moments), identity).map((row) => Float64Array.from(row));
  const w = Array.from({ length: n }, (_, i) => Array.from({ length: weight.rows }, (__, o) => at(weight, o, i)));
  const left = new Set(Array.from({ length: n / groupSize }, (_, i) => i));
  const result = new Map<number, number>();
  const inputsOf = (group: number) => Array.from({ length: groupSize }, (_, i) => group * groupSize + i);
  while (result.size < count) {
    const loss = (group: number): number => {
      const inputs = inputsOf(group);
      const block = inputs.map((i) => inputs.map((j) => inverse[i]![j]!));
      const solved = solve(
        block,
        inputs.map((i) => w[i]!),
      );
      return inputs.reduce((sum, i, k) => sum + w[i]!.reduce((part, value, o) => part + value * solved[k]![o]!, 0), 0);
    };
    const order = [...left].map((group) => [group, loss(group)] as const).sort((a, b) => a[1] - b[1]);
    for (const [group, value] of order.slice(0, atOnce)) {
      result.set(group, Math.max(value, ...result.values()));
      left.delete(group);
      for (const input of inputsOf(group)) eliminate(inverse, w, input);
    }
  }
  return result;
}

/** Takes an input out of an inverse and of the weights, [inputs, outputs], of which the others make up for it. */
function eliminate(inverse: Float64Array[], w: number[][], input: number): void {
  const row = inverse[input]!.map((v) => v / inverse[input]![input]!);
  const removed = [...w[input]!];
  for (let i = 0; i < inverse.length; i++) {
    const factor = inverse[i]![input]!;
    if (factor === 0) continue;
    for (let o = 0; o < removed.length; o++) w[i]![o]! -= row[i]! * removed[o]!;
    if (i !== input) subtract(inverse[i]!, factor, row);
  }
  inverse[input]!.fill(0);
  for (const other of inverse) other[input] = 0;
}

interface Elimination {
  readonly moments: Dense;
  readonly weight: Dense;
  readonly expected: Map<number, number>;
}

const large = new Map<number, Elimination>();

/** Losses of an elimination of most inputs, which takes seconds. */
function largeElimination(groupSize: number): Elimination {
  const known = large.get(groupSize);
  if (known !== undefined) return known;
  const [inputs, outputs] = [720, 3];
  const x = matrix(900, inputs);
  const moments = product(x, x);
  for (let i = 0; i < inputs; i++) moments.data[i * (inputs + 1)]! += 90 * i; // well conditioned, and none like another
  const weight = matrix(outputs, inputs, () => random.normal() * Math.exp(3 * random.normal()));
  const expected = eliminated(moments, weight, { atOnce: groupSize === 1 ? 8 : 1, count: 544 / groupSize, groupSize });
  large.set(groupSize, { moments, weight, expected });
  return { moments, weight, expected };
}

describe.each(composedTestBackends)("removal losses on %s", (_, options) => {
  const { backend } = openBackend(options);
  it.each([1, 4])("are what a regression on the other inputs loses, in groups of %i", async (groupSize) => {
    const [inputs, outputs] = [12 * groupSize, 6];
    const moments = momentsOf(inputs);
    const weight = matrix(outputs, inputs);
    const losses = await lossesOf(backend, moments, weight, groupSize);
    const h = damped(moments);
    const groups = Array.from({ length: inputs / groupSize }, (_unused, i) => i);
    const without = (removed: readonly number[]) =>
      leastError(
        h,
        weight,
        h.map((_unused, i) => i).filter((i) => !removed.includes(Math.floor(i / groupSize))),
      );
    const first = groups.toSorted((a, b) => losses[a]! - losses[b]!)[0]!;
    const each = groups.map((group) => without([group]));
    expect(losses[first]).toBeCloseTo(Math.min(...each), 3);
    expect(first).toBe(each.indexOf(Math.min(...each)));
  });

  it("take groups out in the order of what each loses beyond those before", async () => {
    const groupSize = 2;
    const moments = momentsOf(16);
    const weight = matrix(5, 16);
    const losses = await lossesOf(backend, moments, weight, groupSize);
    const h = damped(moments);
    const order = [...losses.keys()].sort((a, b) => losses[a]! - losses[b]!);
    const removed: number[] = [];
    for (const group of order.slice(0, 6)) {
      const left = order.filter((other) => !removed.includes(other));
      const costs = left.map((other) =>
        leastError(
          h,
          weight,
          h.map((_unused, i) => i).filter((i) => ![...removed, other].includes(Math.floor(i / groupSize))),
        ),
      );
      expect(left[costs.indexOf(Math.min(...costs))]).toBe(group);
      removed.push(group);
    }
  });

  it.each([1, 4])("are those of an elimination in f64 where many are taken out, in groups of %i", async (groupSize) => {
    const { moments, weight, expected } = largeElimination(groupSize);
    const losses = await lossesOf(backend, moments, weight, groupSize);
    const errors = [...expected].map(([group, loss]) => Math.abs(losses[group]! / loss - 1));
    expect(expected.size).toBe(544 / groupSize);
    expect(Math.max(...errors)).toBeLessThan(0.01);
  });

  it("of inputs that have nothing to do with each other are those of each alone, however many are taken out", async () => {
    const inputs = 1800; // what is left is moved together several times
    const moments = matrix(inputs, inputs, () => 0);
    for (let i = 0; i < inputs; i++) moments.data[i * (inputs + 1)] = 1 + ((i * 7919) % inputs) / inputs;
    const weight = matrix(1, inputs);
    const losses = await lossesOf(backend, moments, weight, 1);
    const damping = 0.01 * (1 + (inputs - 1) / 2 / inputs);
    losses.forEach((loss, i) => {
      const alone = (moments.data[i * (inputs + 1)]! + damping) * weight.data[i]! ** 2;
      expect(Math.abs(loss - alone)).toBeLessThan(2e-3 * alone + 1e-6);
    });
  });

  it.each([1, 4])("are zero where no input ever is more than zero, in groups of %i", async (groupSize) => {
    const nothing = { rows: 16, columns: 16, data: new Float32Array(256) };
    expect([...(await lossesOf(backend, nothing, matrix(5, 16), groupSize))]).toEqual(
      Array.from({ length: 16 / groupSize }, () => 0),
    );
  });
});
