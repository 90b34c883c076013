import { overBatches } from "../evaluate/residual-stream.js";
import { leads } from "../evaluate/team.js";
import { Cholesky, type Matrix, meanDiagonal, multiply, zeroMatrix } from "../linear-algebra/index.js";
import { type ModelWeights, type RmsNorm, shapeOf, type Weights } from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { type Tensor, TensorStore } from "../tensor/index.js";
import type { RefitInputs, Streams } from "./inputs.js";
import { type MatrixRows, rowsTimes } from "./matrix-rows.js";
import { Moments } from "./moments.js";
import { Ridge } from "./ridge.js";
import { projectedScale } from "./scale.js";
import type { Values } from "./start.js";
import type { PartContent } from "./step-files.js";
import { tokenMoments } from "./token-moments.js";

/** The weight of the final gain's starting point, as a share of the mean diagonal. */
const GAIN_DAMPING = 0.01;

/**
 * Refits what turns the last stream into logits: the head, where it is a matrix of its own; else the final gain.
 * @returns the final norm and the head, at the leader of a team
 */
export async function refitHead(inputs: RefitInputs, streams: Streams): Promise<PartContent> {
  const { passage, student, basis, start } = inputs;
  const scale = basis?.read === undefined ? 1 : await projectedScale(passage, streams.dense, undefined, basis.write);
  const { values, headMap } = start.last(scale);
  const { finalNorm, tiedEmbeddings } = student;
  if (tiedEmbeddings && finalNorm === undefined) return { values }; // a norm with a bias, and a head that is the embedding
  const moments = await lastMoments(inputs, streams, values);
  if (!leads(passage.team)) return {};
  if (tiedEmbeddings && finalNorm !== undefined) {
    values.set(finalNorm.gain, await refitGain(inputs, finalNorm, gainOf(values, finalNorm), moments));
    return { values };
  }
  const gained = finalNorm === undefined ? moments : withGain(moments, gainOf(values, finalNorm));
  return { values, matrices: [await refitMatrix(inputs, headMap, gained)] };
}

/** Moments of the student's last states n, before the gain where there is only a gain, and the original's h. */
interface LastMoments {
  /** Σ n nᵀ, [student's hidden, student's hidden]. */
  readonly inputs: Matrix;
  /** Σ h nᵀ, [hidden, student's hidden]. */
  readonly targets: Matrix;
}

const gainOf = (values: Values, { gain, offset }: RmsNorm): Float32Array =>
  (values.get(gain) as Float32Array).map((value) => value + offset);

async function lastMoments(inputs: RefitInputs, streams: Streams, values: Values): Promise<LastMoments> {
  const { passage, dense, student } = inputs;
  const { finalNorm } = student;
  const isNorm = ({ layer, name }: { readonly layer?: number | undefined; readonly name: string }) =>
    layer === undefined &&
    name !== dense.model.head &&
    name !== dense.model.embedding &&
    name !== dense.model.positions;
  // first, because only it is large
  const moments = new Moments(passage.backend, "the final norm", [streams.student.width, streams.dense.width]);
  const norms = student.parameters.filter(isNorm);
  const store = new TensorStore(passage.backend, norms.length);
  for (const spec of norms) store.add(spec.name, shapeOf(spec, student.sizes), "f32");
  let denseWeights: ModelWeights | undefined;
  try {
    store.allocate();
    const original = streams.dense.weightsOf(dense.model.parameters.filter(isNorm));
    denseWeights = original;
    for (const { name } of norms) {
      const data = values.get(name) as Float32Array;
      // a gain of one leaves the normalized states, to which the gain is linear
      const isGain = finalNorm?.gain === name;
      store.write(store.get(name), isGain ? new Float32Array(data.length).fill(1 - finalNorm.offset) : data);
    }
    const weights: Weights = (name): Tensor => store.get(name);
    await overBatches(passage, (g) => {
      const [larger, smaller] = [streams.dense.input(g, "original"), streams.student.input(g, "student")];
      const surroundings = { g, layout: passage.layout, tap: () => {} };
      const { hidden } = student.finish({ ...surroundings, weights }, smaller[0]);
      const { hidden: target } = dense.model.finish({ ...surroundings, weights: original.get }, larger[0]);
      moments.add(g, hidden, target);
      return { reads: [larger, smaller] };
    });
    await moments.sumOver(passage.team, 0);
    return { inputs: moments.inputs.matrix(), targets: moments.targets };
  } finally {
    denseWeights?.free();
    store.free();
    moments.free();
  }
}

/**
 * The final gain w whose logits are nearest to the original's: argmin Σ ‖E_c (w · n) - E h‖² + λ ‖w - w0‖², E_c the student's embeddings
 * less their mean, because a constant on all logits changes nothing: w solves (E_cᵀE_c ∘ Σ n nᵀ + λ I) w = diag(E_cᵀE Σ h nᵀ) + λ w0.
 * @returns the values as they are stored
 */
async function refitGain(
  { passage: { backend }, dense, basis }: RefitInputs,
  { offset }: RmsNorm,
  gain: Float32Array,
  { inputs, targets }: LastMoments,
): Promise<Float32Array> {
  const centred = (await tokenMoments(backend, dense.source, dense.model.embedding)).centred;
  const cross = basis === undefined ? centred : await multiply(backend, basis.write, centred, { transposeA: true });
  const gram = basis === undefined ? centred : await multiply(backend, cross, basis.write);
  const system: Matrix = { ...inputs, data: inputs.data.map((value, i) => value * elementAt(gram.data, i)) };
  const ridge = GAIN_DAMPING * meanDiagonal(system);
  if (ridge === 0) return gain.map((value) => value - offset); // states or embeddings that are all zero tell nothing
  const right = zeroMatrix(1, gain.length);
  for (let i = 0; i < gain.length; i++) {
    let sum = ridge * elementAt(gain, i);
    for (let j = 0; j < targets.rows; j++)
      sum += (cross.data[i * targets.rows + j] as number) * (targets.data[j * targets.columns + i] as number);
    right.data[i] = sum;
  }
  const factor = await Cholesky.factor(backend, system, { ridge });
  try {
    return (await factor.solve(right)).data.map((value) => value - offset);
  } finally {
    factor.free();
  }
}

/** The moments of w · n instead of n. */
const withGain = ({ inputs, targets }: LastMoments, gain: Float32Array): LastMoments => ({
  inputs: {
    ...inputs,
    data: inputs.data.map(
      (value, i) => value * elementAt(gain, Math.floor(i / gain.length)) * elementAt(gain, i % gain.length),
    ),
  },
  targets: {
    ...targets,
    data: targets.data.map((value, i) => value * elementAt(gain, i % targets.columns)),
  },
});

/** The original's head times the map from the student's last states to its own that a regression finds. */
async function refitMatrix(
  { passage: { backend }, student, within, basis }: RefitInputs,
  headMap: Matrix | undefined,
  { inputs, targets }: LastMoments,
): Promise<MatrixRows> {
  const ridge = await Ridge.of(backend, inputs);
  try {
    const map = await ridge.solve(targets, headMap ?? basis?.write ?? identity(targets.rows));
    return rowsTimes(backend, within, student.head, map);
  } finally {
    ridge.free();
  }
}

function identity(size: number): Matrix {
  const matrix = zeroMatrix(size, size);
  for (let i = 0; i < size; i++) matrix.data[i * (size + 1)] = 1;
  return matrix;
}
