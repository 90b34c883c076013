import type { Backend } from "../ggml/device.js";
import type { FloatDType } from "../ggml/dtype.js";
import { CoppiceError } from "../system/errors.js";
import { formatBytes } from "../system/format.js";
import { freeMemory } from "../system/memory.js";
import type { Model } from "./architecture.js";
import type { ModelTensors } from "./checkpoint.js";
import { bytesOnDevice, checkTensors, loadWeights, type ModelWeights, typesOn } from "./weights.js";

/** Parameters that do not fit on a device together: a pass over data loads those of one part of the model after the other. */
export class StreamedWeights {
  readonly model: Model;

  /**
   * @param dtype of matrices on the device
   * @param statesBytes of hidden states between parts of the model that are kept in memory; more go to disk
   */
  constructor(
    readonly tensors: ModelTensors,
    readonly dtype: FloatDType,
    readonly statesBytes: number,
  ) {
    this.model = tensors.model;
  }

  /** Nothing is kept between passes. */
  free(): void {}
}

/** Weights that passes over data read. Free them after use. */
export type PassWeights = ModelWeights | StreamedWeights;

export interface PassWeightsOptions {
  /** Of matrices on the device. */
  readonly dtype: FloatDType;
  /** Memory that weights and activations may take; by default what the device has free. */
  readonly memoryBytes?: number | undefined;
}

/** The share of the memory that weights take at most: the rest is for activations. */
const WEIGHTS_SHARE = 0.8;
/** The share that hidden states between parts of a streamed model take. */
export const STATES_SHARE = 0.2;

/** A model's weights to be read: loaded as a whole where they fit. @throws FormatError for missing tensors */
export function openWeights(backend: Backend, tensors: ModelTensors, options: PassWeightsOptions): PassWeights {
  const { model, source } = tensors;
  const streamed = streamedIfLarge(backend, tensors, options);
  return streamed ?? loadWeights(backend, model, source, { dtype: options.dtype, trainable: false });
}

/** A model's weights to be streamed; undefined where they fit as a whole. @throws FormatError for missing tensors */
export function streamedIfLarge(
  backend: Backend,
  tensors: ModelTensors,
  { dtype, memoryBytes = backend.freeBytes() }: PassWeightsOptions,
): StreamedWeights | undefined {
  const { model, source } = tensors;
  if (bytesOnDevice(model, source, typesOn(backend, dtype)) <= WEIGHTS_SHARE * memoryBytes) return undefined;
  return streamedWeights(backend, tensors, { dtype, memoryBytes });
}

/** A model's weights to be streamed, whether or not they fit as a whole. @throws FormatError for missing tensors */
export function streamedWeights(
  backend: Backend,
  tensors: ModelTensors,
  { dtype, memoryBytes = backend.freeBytes() }: PassWeightsOptions,
): StreamedWeights {
  checkTensors(tensors.model, tensors.source);
  const hostBytes = backend.device.kind === "cpu" ? memoryBytes : Math.min(memoryBytes, freeMemory());
  return new StreamedWeights(tensors, dtype, STATES_SHARE * hostBytes);
}

/**
 * Weights that are on the device as a whole.
 * @param what needs that, for the message
 * @throws CoppiceError where they are streamed
 */
export function wholeWeights(weights: PassWeights, what: string): ModelWeights {
  if (!(weights instanceof StreamedWeights)) return weights;
  const { model, tensors, dtype } = weights;
  throw new CoppiceError(
    `${what} needs the whole model in memory, ${formatBytes(bytesOnDevice(model, tensors.source, { dtype, keepsQuantized: false }))}: do without it, or give it more (--memory)`,
  );
}
