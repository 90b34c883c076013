import { describe, expect, it } from "vitest";
import { buildCase, inputsOf, OP_CASES, type OpCase, resultAndGradients } from "../../src/check/op-cases.js";
import { testBackends } from "../devices.js";
import { openBackend } from "./backend.js";

type Opened = ReturnType<typeof openBackend>;
type Values = readonly Float32Array[];

/** Richardson's extrapolation of central differences: the error is of fourth order in the step. */
async function finiteDifferences({ backend, freeLater }: Opened, test: OpCase): Promise<Values> {
  const { g, store, inputs, loss } = buildCase(backend, test);
  freeLater(g, store);
  g.output(loss);
  const step = 1 / 64;
  const values = inputsOf(test);
  const differences: Float32Array[] = [];
  for (const [which, input] of inputs.entries()) {
    const lossAt = async (i: number, offset: number) => {
      const moved = values[which]!.slice();
      moved[i]! += offset;
      store.write(input, moved);
      await g.run();
      return g.read(loss)[0]!;
    };
    const own = new Float32Array(values[which]!.length);
    for (const i of own.keys()) {
      const coarse = ((await lossAt(i, 2 * step)) - (await lossAt(i, -2 * step))) / (4 * step);
      const fine = ((await lossAt(i, step)) - (await lossAt(i, -step))) / (2 * step);
      own[i] = (4 * fine - coarse) / 3;
    }
    store.write(input, values[which]!);
    differences.push(own);
  }
  return differences;
}

const largestOf = (values: Float32Array) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

/** @param tolerance for differences: absolute, and relative to the largest expected number */
function expectClose(actual: Values, expected: Values, [absolute, relative]: readonly [number, number]): void {
  expect(actual.map(({ length }) => length)).toEqual(expected.map(({ length }) => length));
  for (const [which, values] of actual.entries()) {
    const limit = absolute + relative * largestOf(expected[which]!);
    const far = values.findIndex((value, i) => !(Math.abs(value - expected[which]![i]!) < limit));
    expect(far, `tensor ${which}: ${values[far]} is not ${expected[which]![far]}`).toBe(-1);
  }
}

const [[referenceName, referenceOptions], ...otherBackends] = testBackends as [
  (typeof testBackends)[0],
  ...typeof testBackends,
];
const reference = openBackend({ ...referenceOptions, threads: 1 });
const onReference = new Map<string, Promise<Values>>();

function referenceOf(name: string): Promise<Values> {
  const known = onReference.get(name) ?? resultAndGradients(reference.backend, OP_CASES[name]!, reference.freeLater);
  onReference.set(name, known);
  return known;
}

// differences are taken on one backend, where they cost least; on the others results and gradients must be equal to that one's
describe(`on ${referenceName}`, () => {
  it.each(Object.keys(OP_CASES))("the gradient of %s is that of finite differences", async (name) => {
    const [, ...analytic] = await referenceOf(name);
    expectClose(await finiteDifferences(reference, OP_CASES[name]!), analytic, [2e-3, 4e-3]);
  });
});

describe.each(otherBackends)("on %s", (_, options) => {
  const opened = openBackend({ ...options, threads: 2 });

  it.each(Object.keys(OP_CASES))(`the result and the gradient of %s are those on ${referenceName}`, async (name) => {
    expectClose(
      await resultAndGradients(opened.backend, OP_CASES[name]!, opened.freeLater),
      await referenceOf(name),
      [1e-6, 1e-4],
    );
  });
});
