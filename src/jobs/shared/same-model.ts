import { closeSync, existsSync, openSync, readSync, statSync } from "node:fs";
import path from "node:path";
import { adapterScales, isGguf, splitAdapters } from "../../checkpoint/index.js";
import { type Checkpoint, openCheckpoint } from "../../models/index.js";
import { CoppiceError } from "../../system/errors.js";
import { hashBytes } from "../../system/files.js";

/** Where a model is, and what it is: processes may have different ones under one path. */
export interface NamedModel {
  readonly path: string;
  /** Of its content. */
  readonly identity: string;
}

/** Opens the leader's model at a follower. @throws CoppiceError where there is another under the same path, or none */
export function openShared({ path: model, identity }: NamedModel): Checkpoint {
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
const identities = new Map<
  string,
  { readonly files: readonly string[]; readonly stamp: string; readonly identity: string }
>();

const stampOf = (files: readonly string[]): string =>
  JSON.stringify(
    files.map((file) => {
      const { size, mtimeMs } = statSync(file, { throwIfNoEntry: false }) ?? {};
      return [file, size, mtimeMs];
    }),
  );

/** The leader's model, as followers are told of it. */
export const namedModel = (model: string): NamedModel => ({ path: model, identity: identityOf(model) });

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
