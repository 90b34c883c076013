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
import { CoppiceError, FormatError } from "../system/errors.js";
import { writeJson } from "../system/files.js";
import { elementCount } from "../tensor/index.js";
import { ggufShapes } from "./content.js";
import { convertRows } from "./convert.js";
import type { Importance } from "./importance.js";
import { isQuantizable } from "./recipes.js";

/** What a type costs a tensor. */
export interface TypeCost {
  readonly dtype: QuantizedDType;
  readonly bytes: number;
  /** Mean divergence from the unquantized model, in nats per token, when this tensor alone has the type. */
  readonly loss: number;
}

/** The costs of each tensor's types, by the tensor's name in GGUF. */
export type Sensitivity = ReadonlyMap<string, readonly TypeCost[]>;

/** Types tried by default, where rows fill their blocks: those on the frontier of size and error. */
export const CANDIDATE_TYPES: readonly QuantizedDType[] = [
  ...([
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
  ] as const),
];
/** And where they do not. */
const SMALL_BLOCK_TYPES: readonly QuantizedDType[] = ["q8_0", "q5_1", "q5_0", "q4_1", "iq4_nl", "q4_0"];

export interface SensitivityOptions extends BatchOptions {
  readonly importance: Importance;
  readonly types?: readonly QuantizedDType[] | undefined;
  /**
   * Measure one type of each tensor and scale by the weighted squared error for the others: as many forward passes as tensors. The
   * divergence grows with the square of a small error.
   */
  readonly probe?: boolean | undefined;
  /** Where finished measurements are kept, so that a run that was stopped goes on. */
  readonly file?: string | undefined;
  readonly onProgress?: ((done: number, total: number, name: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

const storedSchema = z.record(
  z.string(),
  z.array(z.object({ dtype: z.string(), bytes: z.number(), loss: z.number() })),
);

/** Measures what each type costs each tensor, each alone. The weights are as before when it returns. */
export async function measureSensitivity(
  backend: Backend,
  weights: ModelWeights,
  source: TensorSource,
  sequences: Sequences,
  options: SensitivityOptions,
): Promise<Sensitivity> {
  const { model } = weights;
  const found = new Map<string, readonly TypeCost[]>(options.file === undefined ? [] : stored(options.file));
  const tensors = namedTensors(model);
  const meter = await DivergenceMeter.prepare(backend, weights, sequences, options);
  const variant = meter.of(weights);
  try {
    for (const [i, tensor] of tensors.entries()) {
      options.signal?.throwIfAborted();
      if (!found.has(tensor.name)) {
        const types = candidatesOf(tensor, options);
        const trial = new Trial(backend, weights, source, tensor, options.importance.get(tensor.parameter));
        try {
          found.set(tensor.name, await costsOf(trial, types, variant.measure, options.probe === true));
        } finally {
          trial.restore();
        }
        if (options.file !== undefined) writeJson(options.file, Object.fromEntries(found));
      }
      options.onProgress?.(i + 1, tensors.length, tensor.name);
    }
    return found;
  } finally {
    variant.free();
    meter.free();
  }
}

function stored(file: string): [string, TypeCost[]][] {
  if (!existsSync(file)) return [];
  const parsed = storedSchema.safeParse(readJsonObject(file));
  if (!parsed.success) throw new FormatError(`${file} holds no measurements of types; remove it`);
  return Object.entries(parsed.data) as [string, TypeCost[]][];
}

interface NamedTensor {
  readonly name: string;
  readonly parameter: string;
  readonly shape: readonly number[];
}

/** The tensors that are ever quantized. */
function namedTensors(model: Model): NamedTensor[] {
  const shapes = new Map(ggufShapes(model).map((tensor) => [tensor.name, tensor.shape]));
  return model.gguf().parameters.flatMap(({ name, parameter }) => {
    const shape = shapes.get(name) ?? [];
    return isQuantizable({ name, shape }) ? [{ name, parameter, shape }] : [];
  });
}

function candidatesOf({ parameter, shape }: NamedTensor, { types, importance }: SensitivityOptions): QuantizedDType[] {
  const columns = shape.at(-1) ?? 1;
  const f = loadFunctions();
  const possible = (dtype: QuantizedDType) =>
    columns % blockSize(dtype) === 0 &&
    (importance.has(parameter) || !f.ggml_quantize_requires_imatrix(DTYPE_ID[dtype]));
  const wished = types ?? (columns % 256 === 0 ? CANDIDATE_TYPES : SMALL_BLOCK_TYPES);
  const fitting = wished.filter(possible);
  if (fitting.length > 0) return fitting;
  const others = SMALL_BLOCK_TYPES.filter(possible);
  if (others.length === 0)
    throw new CoppiceError(
      `${parameter}: rows of ${columns} elements fill no quantized type's blocks; it cannot be targeted by size`,
    );
  return others;
}

/** One tensor, tried in other types. */
class Trial {
  private readonly columns: number;

  constructor(
    private readonly backend: Backend,
    private readonly weights: ModelWeights,
    private readonly source: TensorSource,
    private readonly tensor: NamedTensor,
    private readonly importance: Float32Array | undefined,
  ) {
    this.columns = tensor.shape.at(-1) ?? 1;
  }

  bytes(dtype: QuantizedDType): number {
    return dataBytes(dtype, elementCount(this.tensor.shape));
  }

  /** Gives the tensor the values it would have in a type. @returns the squared error, weighted by importance */
  async apply(dtype: QuantizedDType): Promise<number> {
    const { parameter, name } = this.tensor;
    const from = tensorInfo(this.source, parameter).dtype;
    const f = loadFunctions();
    let error = 0;
    for (const { row, bytes } of blocks(this.source, parameter)) {
      const { columns, importance } = this;
      const quantized = await convertRows(bytes, { name, from, to: dtype, columns, importance });
      const values = toFloat32(f, quantized, dtype);
      error += weightedError(toFloat32(f, bytes, from), values, columns, importance);
      this.write(row, values);
    }
    return error;
  }

  restore(): void {
    const { dtype } = tensorInfo(this.source, this.tensor.parameter);
    for (const { row, bytes } of blocks(this.source, this.tensor.parameter))
      this.write(row, toFloat32(loadFunctions(), bytes, dtype));
  }

  private write(row: number, values: Float32Array): void {
    const target = this.weights.get(this.tensor.parameter);
    if (isQuantized(target.dtype) || target.dtype === "i32")
      throw new CoppiceError(`${this.tensor.parameter} is held quantized; types are tried on unquantized weights`);
    const bytes = fromFloat32(loadFunctions(), values, target.dtype);
    const offset = row * dataBytes(target.dtype, this.columns);
    this.backend.functions.ggml_backend_tensor_set(target.handle, bytes, offset, bytes.byteLength);
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
  trial: Trial,
  types: readonly QuantizedDType[],
  measure: () => Promise<number>,
  probe: boolean,
): Promise<TypeCost[]> {
  const costs: (TypeCost & { readonly error: number })[] = [];
  // a middling type: its divergence is well above rounding and still in proportion to the error
  const probed = types[Math.floor(types.length / 2)];
  for (const dtype of types) {
    const error = await trial.apply(dtype);
    const loss = !probe || dtype === probed ? await measure() : Number.NaN;
    costs.push({ dtype, bytes: trial.bytes(dtype), loss, error });
  }
  const known = costs.find(({ loss }) => !Number.isNaN(loss));
  const perError = (known?.loss ?? 0) / Math.max(known?.error ?? 1, Number.MIN_VALUE);
  return costs.map(({ dtype, bytes, loss, error }) => ({
    dtype,
    bytes,
    loss: Number.isNaN(loss) ? perError * error : loss,
  }));
}
