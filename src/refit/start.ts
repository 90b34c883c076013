import type { TensorSource } from "../checkpoint/index.js";
import type { Backend } from "../ggml/device.js";
import { type Matrix, multiply } from "../linear-algebra/index.js";
import type { Model, ResidualStep, RmsNorm } from "../models/index.js";
import { readMatrix } from "../prune/matrices.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import type { Basis } from "./basis.js";
import { type MatrixRows, rowsTimes, storedRows } from "./matrix-rows.js";

/** Values of parameters by name, f32. */
export type Values = Map<string, Float32Array>;

/** A cut model before its refit, part by part. */
export interface Start {
  /** The embeddings. */
  embeddings(): readonly MatrixRows[];
  /** A step's parameters. @param scale rms of the projected, normalized stream that the step's norm reads; see `streamScale` */
  step(step: ResidualStep, scale: number): Promise<Values>;
  /**
   * What comes after the layers, without the head where that is a matrix of its own. `headMap` [hidden, narrower hidden] is what the
   * original's head would be multiplied by, unless that only selects channels.
   */
  last(scale: number): { readonly values: Values; readonly headMap: Matrix | undefined };
}

/** A model with some channels of every axis cut off. @param source its tensors */
export function cutStart(model: Model, source: TensorSource): Start {
  const read = (names: readonly string[]): Values =>
    new Map(names.map((name) => [name, readMatrix(source, name).data]));
  return {
    embeddings: () => embeddingNames(model).map((name) => storedRows(source, name)),
    step: async ({ parameters }) => read(parameters.map(({ name }) => name)),
    last: () => ({ values: read(lastNames(model)), headMap: undefined }),
  };
}

export interface RotatedInputs {
  readonly backend: Backend;
  /** The cut model. */
  readonly model: Model;
  /** Its tensors before the width is cut: see `cutWithinLayers`. */
  readonly within: TensorSource;
  readonly basis: Basis & { readonly read: Matrix };
}

/** A model in another basis of the residual stream. */
export function rotatedStart({ backend, model, within, basis }: RotatedInputs): Start {
  const matrixOf = (name: string): Matrix => readMatrix(within, name);
  /** diag(gain) R: what is to read the stream after a norm, which keeps the mean size of its gain, is multiplied by it. */
  const readMap = (gain: Float32Array, scale: number): Matrix => {
    const size = rootMeanSquare(gain);
    return scaledRows(
      basis.read,
      gain.map((value) => (size === 0 ? 0 : (value * scale) / size)),
    );
  };
  const gainOf = ({ gain, offset }: RmsNorm): Float32Array => matrixOf(gain).data.map((value) => value + offset);
  const evenGain = ({ gain, offset }: RmsNorm, value: number): readonly [string, Float32Array] => [
    gain,
    new Float32Array(basis.write.columns).fill(value - offset),
  ];
  const finalNorm = normOf(model.finalNorm);
  return {
    embeddings: () => embeddingNames(model).map((name) => rowsTimes(backend, within, name, basis.write)),
    step: async (step, scale) => {
      const norm = normOf(step.norm);
      const gain = gainOf(norm);
      const values: Values = new Map([evenGain(norm, rootMeanSquare(gain))]);
      const map = readMap(gain, scale);
      for (const { name } of step.readers) values.set(name, (await multiply(backend, matrixOf(name), map)).data);
      for (const { name } of [step.writer, step.writerBias].filter((spec) => spec !== undefined)) {
        const isBias = name === step.writerBias?.name;
        const written = isBias
          ? await multiply(backend, matrixOf(name), basis.write)
          : await multiply(backend, basis.write, matrixOf(name), { transposeA: true });
        values.set(name, written.data);
      }
      for (const { name } of step.parameters) if (!values.has(name)) values.set(name, matrixOf(name).data);
      return values;
    },
    last: (scale) => {
      const gain = gainOf(finalNorm);
      if (!model.tiedEmbeddings)
        return { values: new Map([evenGain(finalNorm, rootMeanSquare(gain))]), headMap: readMap(gain, scale) };
      // the head is the embedding E R, and both R's have the stream's factor
      const [name, values] = evenGain(finalNorm, scale / basis.scale ** 2);
      for (let i = 0; i < basis.negative; i++)
        values[i] = -(elementAt(values, i) + finalNorm.offset) - finalNorm.offset;
      return { values: new Map([[name, values]]), headMap: undefined };
    },
  };
}

const embeddingNames = ({ embedding, positions }: Model): string[] =>
  [embedding, positions].filter((name) => name !== undefined);

/** The parameters outside of the layers that are neither embeddings nor the head. */
const lastNames = (model: Model): string[] =>
  model.parameters
    .filter(({ layer, name }) => layer === undefined && name !== model.head && !embeddingNames(model).includes(name))
    .map(({ name }) => name);

function normOf(norm: RmsNorm | undefined): RmsNorm {
  if (norm === undefined) throw new CoppiceError("a norm that subtracts a mean cannot be rotated");
  return norm;
}

const rootMeanSquare = (values: Float32Array): number =>
  Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);

/** Multiplies each row by a factor. */
function scaledRows({ rows, columns, data }: Matrix, factors: Float32Array): Matrix {
  const result = new Float32Array(data.length);
  for (let row = 0; row < rows; row++) {
    const factor = factors[row] as number;
    for (let i = row * columns; i < (row + 1) * columns; i++) result[i] = (data[i] as number) * factor;
  }
  return { rows, columns, data: result };
}
