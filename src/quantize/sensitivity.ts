import { existsSync } from "node:fs";
import { z } from "zod";
import { readJsonObject } from "../checkpoint/json.js";
import { blocks, type TensorSource, tensorInfo } from "../checkpoint/tensor-source.js";
import type { Sequences } from "../data/index.js";
import type { BatchOptions } from "../evaluate/batches.js";
import { DivergenceMeter } from "../evaluate/divergence.js";
import { fromFloat32, toFloat32 } from "../ggml/convert.js";
import type { Backend } from "../ggml/device.js";
import { blockSize, DTYPE_ID, dataBytes, isQuantized, type QuantizedDType } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import type { Model, ModelWeights } from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { writeJson } from "../system/files.js";
import { elementCount } from "../tensor/index.js";
import { ggufShapes } from "./content.js";
import { convertRows } from "./convert.js";
import type { Importance } from "./importance.js";
import { isQuantizable } from "./tensor-types.js";

/** The cost of storing a tensor in a type. */
export interface TypeCost {
  readonly dtype: QuantizedDType;
  readonly bytes: number;
  /** Mean divergence from the unquantized model, in nats per token, when only this tensor has the type. */
  readonly loss: number;
}

/** The costs of each tensor's types, by the tensor's name in GGUF. */
export type Sensitivity = ReadonlyMap<string, readonly TypeCost[]>;

/** Types tried by default for rows that fill their blocks: those on the frontier of size and error. */
export const CANDIDATE_TYPES: readonly QuantizedDType[] = [
  "q8_0",
  "q6_k",
  "q5_k",
  "q4_k",
  "iq4_xs",
  "q3_k",
  "iq3_s",
  "iq3_xxs",
  "q2_k",
  "iq2_s",
  "iq2_xs",
  "iq2_xxs",
];
/** Types tried for other rows. */
const SMALL_BLOCK_TYPES: readonly QuantizedDType[] = ["q8_0", "q5_1", "q5_0", "q4_1", "iq4_nl", "q4_0"];

export interface SensitivityOptions extends BatchOptions {
  readonly importance: Importance;
  readonly types?: readonly QuantizedDType[] | undefined;
  /**
   * Measure one type of each tensor, and scale its divergence by the weighted squared error for the others, because the divergence
   * grows with the square of a small error: one measurement per tensor instead of one per type.
   */
  readonly probe?: boolean | undefined;
  /** Keeps finished measurements, so that an interrupted run continues. */
  readonly file?: string | undefined;
  readonly onProgress?: ((done: number, total: number, name: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

const costsSchema = z.record(z.string(), z.array(z.object({ dtype: z.string(), bytes: z.number(), loss: z.number() })));

/** Measures what each type costs each tensor, one tensor at a time. The weights are restored before it returns. */
export async function measureSensitivity(
  backend: Backend,
  weights: ModelWeights,
  source: TensorSource,
  sequences: Sequences,
  options: SensitivityOptions,
): Promise<Sensitivity> {
  const { model } = weights;
  const sensitivity = new Map<string, readonly TypeCost[]>(options.file === undefined ? [] : readCosts(options.file));
  const tensors = quantizableTensors(model);
  const meter = await DivergenceMeter.prepare(backend, weights, sequences, options);
  const variant = meter.of(weights);
  try {
    for (const [i, tensor] of tensors.entries()) {
      options.signal?.throwIfAborted();
      if (!sensitivity.has(tensor.name)) {
        const types = candidatesOf(tensor, options);
        const importance = options.importance.get(tensor.parameter);
        const trial = new TensorTrial({ backend, weights, source, tensor, importance });
        try {
          sensitivity.set(tensor.name, await costsOf(trial, types, variant.measure, options.probe === true));
        } finally {
          trial.restore();
        }
        if (options.file !== undefined) writeJson(options.file, Object.fromEntries(sensitivity));
      }
      options.onProgress?.(i + 1, tensors.length, tensor.name);
    }
    return sensitivity;
  } finally {
    variant.free();
    meter.free();
  }
}

function readCosts(file: string): [string, TypeCost[]][] {
  if (!existsSync(file)) return [];
  const parsed = costsSchema.safeParse(readJsonObject(file));
  if (!parsed.success) throw new FormatError(`${file} is not a file of measured types: delete it`);
  return Object.entries(parsed.data) as [string, TypeCost[]][];
}

/** What each tensor may take, before any cost is known, where all importances will be. */
export function possibleSizes(
  model: Model,
  types: readonly QuantizedDType[] | undefined,
): { readonly sizes: Sensitivity; readonly importance: Importance } {
  const tensors = quantizableTensors(model);
  const importance: Importance = new Map(tensors.map(({ parameter }) => [parameter, new Float32Array()]));
  const sizes = new Map(
    tensors.map((tensor) => {
      const bytesIn = (dtype: QuantizedDType) => dataBytes(dtype, elementCount(tensor.shape));
      const possible = candidatesOf(tensor, { types, importance });
      return [tensor.name, possible.map((dtype) => ({ dtype, bytes: bytesIn(dtype), loss: 0 }))];
    }),
  );
  return { sizes, importance };
}

interface QuantizableTensor {
  /** In GGUF. */
  readonly name: string;
  readonly parameter: string;
  readonly shape: readonly number[];
}

/** A model's tensors that can be quantized. */
function quantizableTensors(model: Model): QuantizableTensor[] {
  const shapes = new Map(ggufShapes(model).map((tensor) => [tensor.name, tensor.shape]));
  return model.gguf().parameters.flatMap(({ name, parameter }) => {
    const shape = shapes.get(name) ?? [];
    return isQuantizable({ name, shape }) ? [{ name, parameter, shape }] : [];
  });
}

function candidatesOf(
  { parameter, shape }: QuantizableTensor,
  { types, importance }: Pick<SensitivityOptions, "types" | "importance">,
): QuantizedDType[] {
  const columns = shape.at(-1) ?? 1;
  const f = loadFunctions();
  const possible = (dtype: QuantizedDType) =>
    columns % blockSize(dtype) === 0 &&
    (importance.has(parameter) || !f.ggml_quantize_requires_imatrix(DTYPE_ID[dtype]));
  const wanted = types ?? (columns % 256 === 0 ? CANDIDATE_TYPES : SMALL_BLOCK_TYPES);
  const fitting = wanted.filter(possible);
  if (fitting.length > 0) return fitting;
  const smallBlocks = SMALL_BLOCK_TYPES.filter(possible);
  if (smallBlocks.length === 0)
    throw new CoppiceError(
      `${parameter}: rows of ${columns} elements fill no quantized type's blocks; it cannot be targeted by size`,
    );
  return smallBlocks;
}

interface TrialInputs {
  readonly backend: Backend;
  /** The loaded weights, of which the tensor's are replaced. */
  readonly weights: ModelWeights;
  /** The original values. */
  readonly source: TensorSource;
  readonly tensor: QuantizableTensor;
  readonly importance: Float32Array | undefined;
}

/** Tries a tensor in other types. */
class TensorTrial {
  private readonly columns: number;

  constructor(private readonly inputs: TrialInputs) {
    this.columns = inputs.tensor.shape.at(-1) ?? 1;
  }

  bytes(dtype: QuantizedDType): number {
    return dataBytes(dtype, elementCount(this.inputs.tensor.shape));
  }

  /** Gives the tensor the values that it would have in a type. @returns the squared error, weighted by importance */
  async apply(dtype: QuantizedDType): Promise<number> {
    const { columns } = this;
    const { source, tensor, importance } = this.inputs;
    const { parameter, name } = tensor;
    const from = tensorInfo(source, parameter).dtype;
    const f = loadFunctions();
    let error = 0;
    for (const { row, bytes } of blocks(source, parameter)) {
      const quantized = await convertRows(bytes, { name, from, to: dtype, columns, importance });
      const values = toFloat32(f, quantized, dtype);
      error += weightedError(toFloat32(f, bytes, from), values, columns, importance);
      this.write(row, values);
    }
    return error;
  }

  restore(): void {
    const { source, tensor } = this.inputs;
    const { dtype } = tensorInfo(source, tensor.parameter);
    for (const { row, bytes } of blocks(source, tensor.parameter))
      this.write(row, toFloat32(loadFunctions(), bytes, dtype));
  }

  private write(row: number, values: Float32Array): void {
    const { backend, weights, tensor } = this.inputs;
    const target = weights.get(tensor.parameter);
    if (isQuantized(target.dtype) || target.dtype === "i32")
      throw new CoppiceError(`${tensor.parameter} is held quantized; types are tried on unquantized weights`);
    const bytes = fromFloat32(loadFunctions(), values, target.dtype);
    const offset = row * dataBytes(target.dtype, this.columns);
    backend.functions.ggml_backend_tensor_set(target.handle, bytes, offset, bytes.byteLength);
  }
}

function weightedError(
  a: Float32Array,
  b: Float32Array,
  columns: number,
  importance: Float32Array | undefined,
): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = (a[i] as number) - (b[i] as number);
    sum += difference * difference * (importance?.[i % columns] ?? 1);
  }
  return sum;
}

async function costsOf(
  trial: TensorTrial,
  types: readonly QuantizedDType[],
  measure: () => Promise<number>,
  probe: boolean,
): Promise<TypeCost[]> {
  const costs: { readonly dtype: QuantizedDType; readonly error: number; readonly loss: number | undefined }[] = [];
  // a type from the middle: its divergence is well above rounding and still in proportion to the error
  const probed = types[Math.floor(types.length / 2)];
  for (const dtype of types) {
    const error = await trial.apply(dtype);
    costs.push({ dtype, error, loss: !probe || dtype === probed ? await measure() : undefined });
  }
  const measured = costs.find(({ loss }) => loss !== undefined);
  const lossPerError = measured?.loss === undefined ? 0 : measured.loss / Math.max(measured.error, Number.MIN_VALUE);
  const losses = costs.map(({ error, loss = lossPerError * error }) => ({ error, loss }));
  const smoothed = inOrderOfErrors(losses);
  return costs.map(({ dtype }, i) => ({ dtype, bytes: trial.bytes(dtype), loss: elementAt(smoothed, i) }));
}

/** A share of the typical loss for an error that each error costs at least: well below what is measured. */
const LEAST_SHARE = 0.01;
const LEAST_LOSS_PER_ERROR = 1e-12;

/**
 * Losses that grow with the error: few tokens measure a small one with noise, or as 0, and a worse type would be taken for a better one.
 * @returns in the order of what is given
 */
export function inOrderOfErrors(measured: readonly { readonly error: number; readonly loss: number }[]): number[] {
  const ratios = measured.filter(({ error }) => error > 0).map(({ error, loss }) => loss / error);
  const typical = ratios.sort((a, b) => a - b)[Math.floor(ratios.length / 2)] ?? 0;
  const least = Math.max(LEAST_LOSS_PER_ERROR, LEAST_SHARE * typical);
  const losses: number[] = [];
  let largest = 0;
  for (const i of [...measured.keys()].sort((a, b) => elementAt(measured, a).error - elementAt(measured, b).error)) {
    const { error, loss } = elementAt(measured, i);
    largest = Math.max(largest, loss, least * error);
    losses[i] = largest;
  }
  return losses;
}
