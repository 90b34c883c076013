import { loadVectors, saveVectors } from "../checkpoint/vectors.js";
import type { Sequences } from "../data/index.js";
import type { CalibrationOptions } from "../evaluate/batches.js";
import { type ActivationStatistics, calibrationStatistics } from "../evaluate/calibration.js";
import type { Backend } from "../ggml/device.js";
import { bytesOf } from "../ggml/dtype.js";
import { type Activation, axisSize, type Model, type ParameterSpec, type PassWeights } from "../models/index.js";
import { hashBytes } from "../system/files.js";
import { type Graph, ops, TensorStore } from "../tensor/index.js";

/**
 * How much each input of each matrix matters: its mean squared activation, by parameter name, one number per column. The error
 * that rounding a weight causes in the output is proportional to it (llama.cpp's "importance matrix").
 */
export type Importance = ReadonlyMap<string, Float32Array>;

/** Identifies importances: equal texts mean equal values. */
export const importanceIdentity = (importance: Importance): string =>
  hashBytes(JSON.stringify([...importance].map(([name, values]) => [name, hashBytes(bytesOf(values))])));

/** A parameter that activations are multiplied with, and the name of those activations. */
type Matrix = ParameterSpec & { readonly input: string };

const matricesOf = (model: Model): Matrix[] =>
  model.parameters.flatMap((spec) => (spec.input === undefined ? [] : [{ ...spec, input: spec.input }]));

const columnsOf = (model: Model, spec: ParameterSpec): number => axisSize(spec.axes.at(-1) ?? "", model.sizes);

/**
 * Measures importances on calibration data, in one pass, forward only.
 * @throws CoppiceError when the data is of another tokenizer, or an importance is not finite
 */
export const measureImportance = (
  backend: Backend,
  weights: PassWeights,
  sequences: Sequences,
  options: CalibrationOptions,
): Promise<Importance> =>
  calibrationStatistics({
    backend,
    weights,
    sequences,
    options,
    statisticsOf: (batch) => new SquareSums(backend, weights.model, batch * sequences.length),
    describe: (name) => `the inputs of ${name}`,
  });

/** Running sums of squared activations on the device, one for each input of a matrix. */
class SquareSums implements ActivationStatistics {
  readonly missing: Set<string>;
  private readonly matrices: readonly Matrix[];
  readonly sums: TensorStore;

  /** @param rows of a batch's activations */
  constructor(
    backend: Backend,
    model: Model,
    private readonly rows: number,
  ) {
    this.matrices = matricesOf(model);
    const widths = new Map(this.matrices.map((matrix) => [matrix.input, columnsOf(model, matrix)]));
    this.sums = new TensorStore(backend, widths.size);
    for (const [input, width] of widths) this.sums.add(input, [1, width], "f32");
    this.sums.allocate();
    this.missing = new Set(widths.keys());
  }

  /** Adds an activation [rows, columns] to its sums: Σ over rows of x². */
  readonly tap = (g: Graph, { name, tensor }: Activation): void => {
    if (!this.missing.delete(name)) return;
    const sums = this.sums.get(name);
    g.effect(ops.assign(g, ops.add(g, ops.sumRows(g, ops.square(g, tensor)), sums), sums));
  };

  read(batches: number): Map<string, Float32Array> {
    const count = batches * this.rows;
    return new Map(
      this.matrices.map(({ name, input }) => [name, this.sums.read(this.sums.get(input)).map((sum) => sum / count)]),
    );
  }

  free(): void {
    this.sums.free();
  }
}

/**
 * Writes importances to a safetensors file, one tensor per matrix.
 * @param identity of the model's content; models of the same sizes are told apart by it
 */
export const saveImportance = (file: string, importance: Importance, identity?: string): void =>
  saveVectors(file, importance, "coppice importance matrix", identity);

/**
 * Reads the importances of a model.
 * @param identity of the model's content; models of the same sizes are told apart by it
 * @throws FormatError when they are another model's
 */
export function loadImportance(file: string, model: Model, identity?: string): Importance {
  const lengths = matricesOf(model).map((matrix) => [matrix.name, columnsOf(model, matrix)] as const);
  return loadVectors(file, lengths, "importances", identity);
}
