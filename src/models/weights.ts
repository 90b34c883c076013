import {
  blocks,
  EXPANDED_DTYPE,
  rowBytes,
  type TensorInfo,
  type TensorSource,
  tensorInfo,
} from "../checkpoint/tensor-source.js";
import { fromFloat32, toFloat32 } from "../ggml/convert.js";
import type { Backend } from "../ggml/device.js";
import { DTYPE_BYTES, type DType, dataBytes, type FloatDType, isQuantized, type StoredDType } from "../ggml/dtype.js";
import { FormatError } from "../system/errors.js";
import { Random } from "../system/random.js";
import { elementCount, type Tensor, TensorStore } from "../tensor/index.js";
import type { Model } from "./architecture.js";
import { describeAxis, type Initialization, type ParameterSpec, shapeOf } from "./dimensions.js";
import { placesOf } from "./placement.js";

/** A model's parameters on a device. */
export class ModelWeights {
  constructor(
    readonly model: Model,
    readonly store: TensorStore,
  ) {}

  /** Looks up a parameter by its name; pass it to `model.forward`. */
  readonly get = (name: string): Tensor => this.store.get(name);

  /** The parameters that training changes: all but constants, in the order of the model's parameters. */
  get trained(): Tensor[] {
    return this.model.parameters.filter(({ fixed }) => !fixed).map(({ name }) => this.store.get(name));
  }

  /** The current weights, as a source to write to a checkpoint. They must be f32. */
  source(): TensorSource {
    const tensors = new Map<string, TensorInfo>();
    for (const spec of this.model.parameters)
      tensors.set(spec.name, { dtype: "f32", shape: shapeOf(spec, this.model.sizes) });
    const f = this.store.backend.functions;
    return {
      tensors,
      readRows: (name, from, to) => {
        const width = rowBytes(tensorInfo({ tensors }, name));
        const bytes = new Uint8Array((to - from) * width);
        f.ggml_backend_tensor_get(this.store.get(name).handle, bytes, from * width, bytes.byteLength);
        return bytes;
      },
      releaseRows: () => {},
    };
  }

  free(): void {
    this.store.free();
  }
}

export interface LoadOptions {
  /** Type on the device. Training needs f32; bf16 halves the memory of a model that is only read. */
  readonly dtype: FloatDType;
  readonly trainable: boolean;
  /**
   * Whether quantized weights that are only read stay so, and are multiplied by activations of 8 bits, as they are where the model is
   * deployed. By default only on devices without our kernels, which are two to ten times as fast on plain floats.
   */
  readonly keepsQuantized?: boolean | undefined;
  /** Only these parameters, for work on a part of a model; all by default. */
  readonly only?: readonly ParameterSpec[] | undefined;
}

function declare(
  backend: Backend,
  model: Model,
  { dtype, trainable, only = model.parameters, keepsQuantized = typesOn(backend, dtype).keepsQuantized }: LoadOptions,
  tensors?: TensorSource["tensors"],
): TensorStore {
  const store = new TensorStore(backend, only.length);
  // parts of a model come and go: they stay together
  const placeOf = only === model.parameters ? placesOf(model, backend.shares) : () => undefined;
  for (const spec of only) {
    const stored = trainable ? undefined : tensors?.get(spec.name)?.dtype;
    const shape = spec.axes.length === 0 ? [1] : shapeOf(spec, model.sizes);
    const type = typeOnDevice(spec, { dtype, keepsQuantized }, stored);
    store.add(spec.name, shape, type, { trainable: trainable && !spec.fixed, place: placeOf(spec) });
  }
  return store;
}

/** How matrices are kept on a device. */
export interface MatrixTypes {
  readonly dtype: FloatDType;
  readonly keepsQuantized: boolean;
}

/** How matrices that are only read are kept on a device. Memory decides nothing here: it must not change results. */
export const typesOn = ({ kernels }: Pick<Backend, "kernels">, dtype: FloatDType): MatrixTypes => ({
  dtype,
  keepsQuantized: kernels === undefined,
});

/** Gains and biases stay f32: they are small, and ggml adds and multiplies only f32. */
function typeOnDevice(
  { axes }: ParameterSpec,
  { dtype, keepsQuantized }: MatrixTypes,
  stored: StoredDType | undefined,
): DType {
  if (axes.length < 2) return "f32";
  if (stored === undefined || !isQuantized(stored)) return dtype;
  if (keepsQuantized) return stored;
  return dtype === "f32" ? EXPANDED_DTYPE : dtype;
}

/** The memory that a model's parameters take on a device, to be read. */
export const bytesOnDevice = (model: Model, { tensors }: TensorSource, types: MatrixTypes): number =>
  model.parameters.reduce((sum, spec) => {
    const type = typeOnDevice(spec, types, tensors.get(spec.name)?.dtype);
    return sum + dataBytes(type, elementCount(shapeOf(spec, model.sizes)));
  }, 0);

/**
 * Checks that a source has every parameter of a model, in the right shape.
 * @throws FormatError naming what is missing or of another shape
 */
export function checkTensors(model: Model, source: TensorSource): void {
  const missing = model.parameters.filter(({ name }) => !source.tensors.has(name)).map(({ name }) => name);
  if (missing.length > 0)
    throw new FormatError(
      `the checkpoint lacks ${missing.length} of ${model.parameters.length} tensors that its config.json requires: ` +
        `${missing.slice(0, 3).join(", ")}${missing.length > 3 ? ", ..." : ""}`,
    );
  for (const spec of model.parameters) {
    const { shape } = tensorInfo(source, spec.name);
    const expected = shapeOf(spec, model.sizes);
    if (shape.join() !== expected.join())
      throw new FormatError(
        `${spec.name} has the shape [${shape.join(", ")}], by config.json it is [${expected.join(", ")}] (${spec.axes.map(describeAxis).join(", ")})`,
      );
  }
}

/** Loads a model's parameters onto a device, converting block by block. @throws FormatError for missing tensors */
export function loadWeights(backend: Backend, model: Model, source: TensorSource, options: LoadOptions): ModelWeights {
  if (options.only === undefined) checkTensors(model, source);
  const store = declare(backend, model, options, source.tensors).allocate();
  try {
    for (const tensor of store) fill(backend, tensor, source);
    return new ModelWeights(model, store);
  } catch (error) {
    store.free();
    throw error;
  }
}

function fill({ functions: f }: Backend, tensor: Tensor, source: TensorSource): void {
  const { dtype } = tensorInfo(source, tensor.name);
  const width = dataBytes(tensor.dtype, elementCount(tensor.shape.slice(1)));
  for (const { row, bytes } of blocks(source, tensor.name)) {
    const converted =
      dtype === tensor.dtype ? bytes : fromFloat32(f, toFloat32(f, bytes, dtype), tensor.dtype as FloatDType);
    f.ggml_backend_tensor_set(tensor.handle, converted, row * width, converted.byteLength);
  }
}

/** A model whose f32 weights are zeros, to be trained when they have been written. */
export const blankWeights = (backend: Backend, model: Model): ModelWeights =>
  new ModelWeights(model, declare(backend, model, { dtype: "f32", trainable: true }).allocate());

/** A model whose weights have their place, but no values: to plan graphs with them. */
export const reservedWeights = (
  backend: Backend,
  model: Model,
  options: LoadOptions,
  tensors?: TensorSource["tensors"],
): ModelWeights => new ModelWeights(model, declare(backend, model, options, tensors).reserve());

/** Standard deviation of initial weights (GPT-2's and Llama's). */
const INITIAL_DEVIATION = 0.02;

const fillOf = (initialization: Exclude<Initialization, "normal">): number =>
  typeof initialization === "string" ? { ones: 1, zeros: 0 }[initialization] : initialization.constant;

/** A model with random weights: normally distributed matrices, gains of one. The same seed gives the same weights. */
export function initialize(
  backend: Backend,
  model: Model,
  seed: number,
  options: LoadOptions = { dtype: "f32", trainable: true },
): ModelWeights {
  const store = declare(backend, model, options).allocate();
  const block = new Float32Array(2 ** 18);
  model.parameters.forEach((spec, index) => {
    const tensor = store.get(spec.name);
    const random = new Random(seed, index + 1);
    const count = elementCount(tensor.shape);
    const dtype = tensor.dtype as FloatDType;
    // block by block: a large table would be in memory twice
    for (let from = 0; from < count; from += block.length) {
      const values = block.subarray(0, Math.min(block.length, count - from));
      if (spec.initialization === "normal")
        for (let i = 0; i < values.length; i++) values[i] = INITIAL_DEVIATION * random.normal();
      else values.fill(fillOf(spec.initialization));
      const bytes = fromFloat32(backend.functions, values, dtype);
      backend.functions.ggml_backend_tensor_set(tensor.handle, bytes, from * DTYPE_BYTES[dtype], bytes.byteLength);
    }
  });
  return new ModelWeights(model, store);
}
