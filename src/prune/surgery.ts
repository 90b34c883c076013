import { type TensorInfo, type TensorSource, tensorInfo } from "../checkpoint/index.js";
import { floatSource, rowBytes } from "../checkpoint/tensor-source.js";
import { DTYPE_BYTES, type FloatDType } from "../ggml/dtype.js";
import {
  type Axis,
  axisSize,
  dimensionsOf,
  type Model,
  type ModelTensors,
  type ParameterSpec,
  sizeOf,
} from "../models/index.js";
import { checkTensors } from "../models/weights.js";
import { carriedAxes } from "../models/wrappers.js";
import { FormatError } from "../system/errors.js";
import type { KeptIndices, PrunePlan } from "./plan.js";

/** A pruned model, whose tensors are cut from the original's as they are read. */
export interface PrunedModel extends ModelTensors {
  readonly source: TensorSource<FloatDType>;
}

/**
 * Cuts a model of any architecture: every parameter is sliced along the dimensions it names. Elements are copied bit for bit,
 * and only as the result is read, so a checkpoint of any size is pruned in little memory. Quantized tensors are expanded first.
 * @throws FormatError when the tensors do not match the model, or a tensor that is carried along has an axis that is cut
 */
export function prune(original: ModelTensors, plan: PrunePlan, kept: KeptIndices): PrunedModel {
  const { model, carried, prefixes } = original;
  const smaller = model.resized(plan.sizes, plan.keptLayers);
  return {
    model: smaller,
    source: cutParameters(original, smaller, plan, kept),
    carried: carried && cutCarried(model, carried, kept),
    prefixes,
  };
}

/**
 * The parameters of a smaller model before its width is cut, under its names: `hidden` axes are as long as the original's.
 */
export function cutWithinLayers(original: ModelTensors, plan: PrunePlan, kept: KeptIndices): TensorSource<FloatDType> {
  const smaller = original.model.resized(plan.sizes, plan.keptLayers);
  return cutParameters(original, smaller, plan, new Map([...kept].filter(([dimension]) => dimension !== "hidden")));
}

function cutParameters(
  { model, source: stored }: ModelTensors,
  smaller: Model,
  plan: PrunePlan,
  kept: KeptIndices,
): PrunedSource {
  const source = floatSource(stored);
  checkTensors(model, source);
  const originals = new Map(model.parameters.map((spec) => [localKey(spec.layer, spec.local), spec]));
  const cuts = new Map<string, Cut>();
  const tensors = new Map<string, TensorInfo<FloatDType>>();
  for (const spec of smaller.parameters) {
    const layer = spec.layer === undefined ? undefined : plan.keptLayers[spec.layer];
    const before = originals.get(localKey(layer, spec.local));
    if (before === undefined) throw new FormatError(`${spec.name} has no counterpart in the original`);
    const cut = cutOf(before, model, kept);
    const { dtype, shape } = tensorInfo(source, before.name);
    cuts.set(spec.name, cut);
    tensors.set(spec.name, { dtype, shape: shape.map((size, i) => [cut.rows, cut.columns][i]?.length ?? size) });
  }
  return new PrunedSource(source, cuts, tensors);
}

/** Identifies a parameter by its layer and its name within it, which is the same before and after layers are renumbered. */
const localKey = (layer: number | undefined, local: string): string => `${layer} ${local}`;

/**
 * Cuts the tensors that are carried along on the axes they share with the language model.
 * @throws FormatError for an unknown tensor that may have such an axis
 */
function cutCarried(model: Model, carried: TensorSource, kept: KeptIndices): TensorSource<FloatDType> {
  const source = floatSource(carried);
  const cuts = new Map<string, Cut>();
  const tensors = new Map<string, TensorInfo<FloatDType>>();
  const hidden = sizeOf("hidden", model.sizes);
  for (const [name, info] of source.tensors) {
    const axes = carriedAxes(model.config, name);
    const [rows, columns] = axes?.map((axis) => (axis === undefined ? undefined : kept.get(axis))) ?? [];
    if (axes === undefined && kept.has("hidden") && info.shape.includes(hidden))
      throw new FormatError(
        `${name} belongs to no parameter of the language model and has an axis as long as the hidden size (${hidden}), which is to be cut: cut other axes (--axes ffn), or take the tensor out of the checkpoint`,
      );
    cuts.set(name, { name, rows, columns });
    tensors.set(name, { ...info, shape: info.shape.map((size, i) => [rows, columns][i]?.length ?? size) });
  }
  return new PrunedSource(source, cuts, tensors);
}

/** What stays of a parameter: indices of its first axis, and of its second within each row; undefined keeps all. */
interface Cut {
  readonly name: string;
  readonly rows: Uint32Array | undefined;
  readonly columns: Uint32Array | undefined;
}

function cutOf(spec: ParameterSpec, model: Model, kept: KeptIndices): Cut {
  if (spec.axes.length > 2)
    throw new FormatError(`${spec.name} has ${spec.axes.length} axes; only vectors and matrices are cut`);
  const [rows, columns] = spec.axes.map((axis) => keptOnAxis(axis, model, kept));
  return { name: spec.name, rows, columns };
}

/** The indices of an axis that stay; undefined when all do. */
export function keptOnAxis(axis: Axis, model: Model, kept: KeptIndices): Uint32Array | undefined {
  return dimensionsOf(axis).some((name) => kept.has(name)) ? keptWithin(axis, model, kept) : undefined;
}

function keptWithin(axis: Axis, model: Model, kept: KeptIndices): Uint32Array {
  if (typeof axis === "string")
    return kept.get(axis) ?? Uint32Array.from({ length: sizeOf(axis, model.sizes) }, (_, i) => i);
  if ("concat" in axis) {
    let offset = 0;
    const parts = axis.concat.map((part) => {
      const indices = keptWithin(part, model, kept).map((i) => offset + i);
      offset += axisSize(part, model.sizes);
      return indices;
    });
    return Uint32Array.from(parts.flatMap((part) => [...part]));
  }
  return axis.product.reduce((outer, factor) => {
    const size = axisSize(factor, model.sizes);
    const inner = keptWithin(factor, model, kept);
    const next = new Uint32Array(outer.length * inner.length);
    outer.forEach((before, i) => {
      inner.forEach((index, j) => {
        next[i * inner.length + j] = before * size + index;
      });
    });
    return next;
  }, Uint32Array.of(0));
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

/** Splits the kept rows [from, to) into runs that are consecutive in the original. */
function* runsOf(rows: Uint32Array | undefined, from: number, to: number) {
  for (let start = from; start < to; ) {
    const source = rows?.[start] ?? start;
    let end = start + 1;
    while (end < to && (rows?.[end] ?? end) === source + (end - start)) end++;
    yield { source, target: start - from, count: end - start };
    start = end;
  }
}

/** Copies the kept columns of each row. */
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
