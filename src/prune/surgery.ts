import { type TensorInfo, type TensorSource, tensorInfo } from "../checkpoint/index.js";
import { floatSource, rowBytes } from "../checkpoint/tensor-source.js";
import { DTYPE_BYTES, type FloatDType } from "../ggml/dtype.js";
import { type Axis, factorsOf, type Model, type ParameterSpec, shapeOf } from "../models/index.js";
import { checkTensors } from "../models/weights.js";
import { FormatError } from "../system/errors.js";
import { type KeptIndices, originalDimension, type PrunePlan } from "./plan.js";

/** A pruned model: its description and its tensors, cut from the original's as they are read. */
export interface PrunedModel {
  readonly model: Model;
  readonly source: TensorSource<FloatDType>;
}

/**
 * Cuts a model. Generic over architectures: every parameter is sliced along the dimensions it names. Elements are copied bit
 * by bit, and nothing is read before the result is, so a checkpoint of any size is pruned in little memory. Quantized tensors
 * are expanded first.
 * @throws FormatError when the source is not this model's
 */
export function prune(model: Model, original: TensorSource, plan: PrunePlan, kept: KeptIndices): PrunedModel {
  const source = floatSource(original);
  checkTensors(model, source);
  const smaller = model.resized(plan.sizes);
  const originals = new Map(model.parameters.map((spec) => [spec.name, spec]));
  const cuts = new Map<string, Cut>();
  const tensors = new Map<string, TensorInfo<FloatDType>>();
  for (const spec of smaller.parameters) {
    const before = originals.get(originalParameter(plan, spec.name));
    if (before === undefined) throw new FormatError(`${spec.name} has no counterpart in the original`);
    const info = tensorInfo(source, before.name);
    cuts.set(spec.name, cutOf(before, model, kept));
    tensors.set(spec.name, { dtype: info.dtype, shape: shapeOf(spec, smaller.sizes) });
  }
  return { model: smaller, source: new PrunedSource(source, cuts, tensors) };
}

/** The original's name of a parameter of the smaller model: the layer's number is the original one. */
const originalParameter = (plan: PrunePlan, name: string): string =>
  name.replace(/layers\.\d+/, (layer) => originalDimension(plan, `${layer}.x`).replace(/\.x$/, ""));

/** What stays of one parameter: rows of its first axis, and elements within each row; all where undefined. */
interface Cut {
  readonly name: string;
  readonly rows: Uint32Array | undefined;
  readonly columns: Uint32Array | undefined;
}

function cutOf(spec: ParameterSpec, model: Model, kept: KeptIndices): Cut {
  if (spec.axes.length > 2)
    throw new FormatError(`${spec.name} has ${spec.axes.length} axes; only vectors and matrices are cut`);
  const [first, second] = spec.axes.map((axis) => keptOnAxis(axis, model, kept));
  return { name: spec.name, rows: first, columns: second };
}

/** The kept indices of an axis that is a product of dimensions, outermost first. */
export function keptOnAxis(axis: Axis, model: Model, kept: KeptIndices): Uint32Array | undefined {
  const factors = factorsOf(axis);
  if (!factors.some((name) => kept.has(name))) return undefined;
  let indices = Uint32Array.of(0);
  for (const name of factors) {
    const size = model.sizes[name] ?? 1;
    const choices = kept.get(name) ?? Uint32Array.from({ length: size }, (_, i) => i);
    const next = new Uint32Array(indices.length * choices.length);
    indices.forEach((outer, i) => {
      choices.forEach((inner, j) => {
        next[i * choices.length + j] = outer * size + inner;
      });
    });
    indices = next;
  }
  return indices;
}

class PrunedSource implements TensorSource<FloatDType> {
  constructor(
    private readonly source: TensorSource<FloatDType>,
    private readonly cuts: ReadonlyMap<string, Cut>,
    readonly tensors: ReadonlyMap<string, TensorInfo<FloatDType>>,
  ) {}

  private cut(name: string): Cut {
    const cut = this.cuts.get(name);
    if (cut === undefined) throw new FormatError(`the pruned model has no tensor ${name}`);
    return cut;
  }

  readRows(name: string, from: number, to: number): Uint8Array {
    const { name: original, rows, columns } = this.cut(name);
    if (rows === undefined && columns === undefined) return this.source.readRows(original, from, to);
    const info = tensorInfo(this, name);
    const target = new Uint8Array((to - from) * rowBytes(info));
    for (const run of runsOf(rows, from, to)) {
      const bytes = this.source.readRows(original, run.source, run.source + run.count);
      const offset = run.target * rowBytes(info);
      if (columns === undefined) target.set(bytes, offset);
      else gatherColumns(bytes, tensorInfo(this.source, original), columns, target.subarray(offset), run.count);
    }
    return target;
  }

  releaseRows(name: string, from: number, to: number): void {
    const { name: original, rows } = this.cut(name);
    if (to > from) this.source.releaseRows(original, rows?.[from] ?? from, (rows?.[to - 1] ?? to - 1) + 1);
  }
}

/** Consecutive rows of the original that stay, among the kept rows [from, to). */
function* runsOf(rows: Uint32Array | undefined, from: number, to: number) {
  for (let start = from; start < to; ) {
    const source = rows?.[start] ?? start;
    let end = start + 1;
    while (end < to && (rows?.[end] ?? end) === source + (end - start)) end++;
    yield { source, target: start - from, count: end - start };
    start = end;
  }
}

/** Copies the kept elements of each row. */
function gatherColumns(
  bytes: Uint8Array,
  info: TensorInfo<FloatDType>,
  columns: Uint32Array,
  target: Uint8Array,
  rows: number,
): void {
  const width = (info.shape[1] ?? 1) * (DTYPE_BYTES[info.dtype] / 2);
  const aligned = bytes.byteOffset % 2 === 0 ? bytes : bytes.slice();
  // 16-bit units serve both element sizes; an f32 element is two of them
  const from = new Uint16Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 2);
  const into = new Uint16Array(target.buffer, target.byteOffset, (rows * columns.length * DTYPE_BYTES[info.dtype]) / 2);
  let position = 0;
  if (DTYPE_BYTES[info.dtype] === 2) {
    for (let row = 0; row < rows; row++) {
      const start = row * width;
      for (let i = 0; i < columns.length; i++) into[position++] = from[start + (columns[i] as number)] as number;
    }
    return;
  }
  for (let row = 0; row < rows; row++) {
    const start = row * width;
    for (let i = 0; i < columns.length; i++) {
      const at = start + 2 * (columns[i] as number);
      into[position++] = from[at] as number;
      into[position++] = from[at + 1] as number;
    }
  }
}
