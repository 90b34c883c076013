import { TokenStream } from "../../data/index.js";
import { type Backend, type DeviceChoice, deviceChoice } from "../../ggml/index.js";
import type { PassWeights } from "../../models/index.js";
import type { Ranks } from "../../ranks/index.js";
import type { ComputeType } from "../../tensor/index.js";
import { type JobOptions, onDevice } from "../job.js";
import { weightsFor } from "../model-memory.js";
import { type NamedModel, namedModel, openShared } from "./same-model.js";

/** A model that all ranks open, and what they compute with it. */
export interface SharedModel extends NamedModel {
  readonly computeType: ComputeType;
  readonly device: DeviceChoice;
  readonly memoryBytes?: number | undefined;
}

export const sharedModel = (
  model: string,
  computeType: ComputeType,
  options: DeviceChoice & Pick<JobOptions, "memoryBytes">,
): SharedModel => ({
  ...namedModel(model),
  computeType,
  device: deviceChoice(options),
  memoryBytes: options.memoryBytes,
});

/** A follower's part of some work on a model. */
export function withModel<T>(
  ranks: Ranks,
  shared: SharedModel,
  work: (backend: Backend, weights: PassWeights) => Promise<T>,
): Promise<T> {
  const { computeType, device, memoryBytes } = shared;
  return onDevice({ ...device, ranks }, async (backend) => {
    const weights = weightsFor(backend, openShared(shared), computeType, { memoryBytes, ranks });
    try {
      return await work(backend, weights);
    } finally {
      weights.free();
    }
  });
}

/** The tokens of the sequences [from, to) of a stream, and the one that follows. */
export function idsOf(stream: TokenStream, length: number, [from, to]: readonly [number, number]): Int32Array {
  const ids = new Int32Array(Math.min(stream.length, to * length + 1) - from * length);
  stream.copy(from * length, ids.length, ids, 0);
  return ids;
}

export function streamOf(ids: Int32Array, beginToken: number | undefined): TokenStream {
  const stream = TokenStream.of(ids, "a part");
  return beginToken === undefined ? stream : stream.beginningWith(beginToken);
}

/** A model that is measured on a text. */
export interface MeasuredModel {
  readonly backend: Backend;
  readonly weights: PassWeights;
  /** Where the weights come from. */
  readonly path: string;
  readonly computeType: ComputeType;
  readonly options: JobOptions;
}
