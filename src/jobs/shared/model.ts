import { closeSync, existsSync, openSync, readSync, statSync } from "node:fs";
import path from "node:path";
import { adapterScales, isGguf, splitAdapters } from "../../checkpoint/index.js";
import { TokenStream } from "../../data/index.js";
import { type Backend, type DeviceChoice, deviceChoice } from "../../ggml/index.js";
import { type Checkpoint, openCheckpoint, type PassWeights } from "../../models/index.js";
import type { Ranks } from "../../ranks/index.js";
import { CoppiceError } from "../../system/errors.js";
import { hashBytes } from "../../system/files.js";
import type { ComputeType } from "../../tensor/index.js";
import { type JobOptions, onDevice } from "../job.js";
import { weightsFor } from "../model-memory.js";

/** A model that all ranks open, and what they compute with it. */
export interface SharedModel {
  readonly path: string;
  /** Of its content, by which a rank knows that it has the same. */
  readonly identity: string;
  readonly computeType: ComputeType;
  readonly device: DeviceChoice;
  readonly memoryBytes?: number | undefined;
}

export const sharedModel = (
  model: string,
  computeType: ComputeType,
  options: DeviceChoice & Pick<JobOptions, "memoryBytes">,
): SharedModel => ({
  path: model,
  identity: identityOf(model),
  computeType,
  device: deviceChoice(options),
  memoryBytes: options.memoryBytes,
});

/** Opens the leader's model at a follower. @throws CoppiceError where there is another under the same path, or none */
export function openShared({ path: model, identity }: Pick<SharedModel, "path" | "identity">): Checkpoint {
  const advice =
    "all processes must see the leader's files, the model that it writes to --out among them, under the same paths";
  let checkpoint: Checkpoint;
  try {
    checkpoint = openCheckpoint(model);
  } catch (error) {
    throw new CoppiceError(`${error instanceof Error ? error.message : error}: ${advice}`);
  }
  if (sampledIdentity(checkpoint) !== identity)
    throw new CoppiceError(`${model} is not the model that the leader has there: ${advice}`);
  return checkpoint;
}

/** Places in each file that are compared, and the bytes of each. */
const [SAMPLES, SAMPLE_BYTES] = [64, 4096];

/** Identities, by the path of the model: it is the same as long as its files are. */
const identities = new Map<string, { readonly files: readonly string[]; readonly stamp: string; identity: string }>();

const stampOf = (files: readonly string[]): string =>
  JSON.stringify(
    files.map((file) => {
      const { size, mtimeMs } = statSync(file, { throwIfNoEntry: false }) ?? {};
      return [file, size, mtimeMs];
    }),
  );

/** Identifies the leader's model. */
function identityOf(model: string): string {
  const known = identities.get(model);
  if (known !== undefined && known.stamp === stampOf(known.files)) return known.identity;
  const checkpoint = openCheckpoint(model);
  const files = identifyingFiles(checkpoint);
  const identity = sampledIdentity(checkpoint);
  identities.set(model, { files, stamp: stampOf(files), identity });
  return identity;
}

/** The files of a model's weights, and what says how they are computed with: copies may have other templates and settings beside them. */
function identifyingFiles({ files, directory, path: model }: Checkpoint): string[] {
  const { base, adapters } = splitAdapters(model);
  const described = [
    ...(isGguf(base) ? [] : [path.join(directory, "config.json")]),
    ...adapters.map(({ name }) => path.join(name, "adapter_config.json")),
  ];
  return [...files, ...described.filter((file) => existsSync(file))];
}

/** Identifies a model by the sizes of its files and parts of them, which takes no time to speak of. */
function sampledIdentity(checkpoint: Checkpoint): string {
  const files = identifyingFiles(checkpoint).map((file) => {
    const { size } = statSync(file);
    const parts: Buffer[] = [];
    const descriptor = openSync(file, "r");
    try {
      for (let i = 0; i < SAMPLES; i++) {
        const part = Buffer.alloc(Math.min(SAMPLE_BYTES, size));
        readSync(descriptor, part, 0, part.length, Math.floor(((size - part.length) * i) / (SAMPLES - 1)));
        parts.push(part);
      }
    } finally {
      closeSync(descriptor);
    }
    return [path.basename(file), size, hashBytes(Buffer.concat(parts))];
  });
  return hashBytes(JSON.stringify([files, adapterScales(checkpoint.path)])).slice(0, 32);
}

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
