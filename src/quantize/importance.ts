import path from "node:path";
import { checkOwner, openSafetensors, readTensor, writeSafetensors } from "../checkpoint/index.js";
import { checkVocabulary, type Sequences } from "../data/index.js";
import { type CalibrationOptions, spreadBatches } from "../evaluate/batches.js";
import { overflowError } from "../evaluate/finite.js";
import { toFloat32 } from "../ggml/convert.js";
import type { Backend } from "../ggml/device.js";
import { bytesOf } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import { axisSize, type Model, type ModelWeights, type ParameterSpec, type Tap } from "../models/index.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";

/**
 * How much each input of each matrix matters: its mean squared activation, by parameter name, one number per column. Rounding a
 * weight changes the output in proportion to it (llama.cpp's "importance matrix").
 */
export type Importance = ReadonlyMap<string, Float32Array>;

const multiplied = (model: Model): (ParameterSpec & { readonly input: string })[] =>
  model.parameters.flatMap((spec) => (spec.input === undefined ? [] : [{ ...spec, input: spec.input }]));

const columnsOf = (model: Model, spec: ParameterSpec): number => axisSize(spec.axes.at(-1) ?? "", model.sizes);

/** Measures importances on calibration data, in one pass, forward only. */
export async function measureImportance(
  backend: Backend,
  weights: ModelWeights,
  sequences: Sequences,
  options: CalibrationOptions,
): Promise<Importance> {
  const { model } = weights;
  checkVocabulary(sequences.stream, model.vocabSize);
  const specs = multiplied(model);
  const widths = new Map(specs.map((spec) => [spec.input, columnsOf(model, spec)]));
  const store = new TensorStore(backend, widths.size);
  for (const [tap, width] of widths) store.add(tap, [1, width], "f32");
  store.allocate();
  const batches = spreadBatches(sequences, options.samples, options.batchSize);
  const size = batches[0]?.length ?? 1;
  const g = new Graph(backend, { computeType: options.computeType });
  const missing = new Set(widths.keys());
  const tap: Tap = (name, activation) => {
    if (!missing.delete(name)) return;
    const sums = store.get(name);
    g.effect(ops.assign(g, ops.add(g, squaresOfColumns(g, activation), sums), sums));
  };
  const tokens = g.input("tokens", "i32", [size, sequences.length]);
  const { hidden } = model.forward(g, weights.get, tokens, { tap });
  g.effect(hidden);
  const [unnamed] = missing;
  if (unnamed !== undefined) throw new CoppiceError(`${model.architecture} has no activation ${unnamed}`);
  try {
    for (const [i, numbers] of batches.entries()) {
      g.write(tokens, sequences.batch(numbers).tokens);
      await g.run();
      options.onProgress?.((i + 1) * size, batches.length * size);
    }
    const count = batches.length * size * sequences.length;
    const importance = new Map(
      specs.map(({ name, input }) => [name, store.read(store.get(input)).map((sum) => sum / count)]),
    );
    for (const [name, values] of importance)
      if (!values.every(Number.isFinite))
        throw await overflowError(`the inputs of ${name} are not finite: the model`, {
          backend,
          weights,
          tokens: sequences.batch(batches[0] ?? []).tokens,
          batch: size,
          computeType: options.computeType,
        });
    return importance;
  } finally {
    g.free();
    store.free();
  }
}

/** Σ over rows of x²: [rows, columns] -> [1, columns]. */
const squaresOfColumns = (g: Graph, x: Tensor): Tensor => ops.sumRows(g, ops.square(g, x));

/**
 * Keeps importances in a safetensors file, one tensor per matrix.
 * @param identity what the model contains that they are of
 */
export function saveImportance(file: string, importance: Importance, identity?: string): void {
  const tensors = [...importance].map(([name, values]) => ({
    ...{ name, dtype: "f32" as const, shape: [values.length] },
    chunks: () => [bytesOf(values)],
  }));
  writeSafetensors(path.resolve(file), tensors, {
    kind: "coppice importance matrix",
    ...(identity !== undefined && { model: identity }),
  });
}

/**
 * Reads saved importances.
 * @param identity what the model contains; models of the same sizes are told apart by it
 * @throws FormatError when they are another model's
 */
export function loadImportance(file: string, model: Model, identity?: string): Importance {
  const source = openSafetensors(file);
  checkOwner(source, identity, "importances");
  return new Map(
    multiplied(model).map((spec) => {
      const info = source.tensors.get(spec.name);
      if (info?.shape.join() !== String(columnsOf(model, spec)))
        throw new FormatError(
          `${file} has no ${columnsOf(model, spec)} importances for ${spec.name}: it is another model's`,
        );
      return [spec.name, toFloat32(loadFunctions(), readTensor(source, spec.name), info.dtype).slice()];
    }),
  );
}
