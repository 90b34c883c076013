import { storedTensors } from "../devices/predict.js";
import { isQuantized } from "../ggml/index.js";
import type { Checkpoint, Model } from "../models/index.js";
import type { FileKind } from "../quantize/index.js";
import { refusalOf } from "./open-model.js";

/** The bytes of a model's tensors in each kind of file. */
export type BytesByKind = Readonly<Partial<Record<FileKind, number>>>;

/**
 * The kinds of files in which models' sizes are compared: the wanted ones, or f16 if the teacher is quantized, since a student stored
 * in 16 bits would seem to have grown beside it.
 */
export function comparedKinds(wanted: readonly FileKind[], teacher: Pick<Checkpoint, "source">): readonly FileKind[] {
  if (wanted.length > 0) return wanted;
  return holdsQuantized(teacher) ? ["f16"] : [];
}

/** Whether some of a model's tensors are stored in quantized types. */
export const holdsQuantized = ({ source }: Pick<Checkpoint, "source">): boolean =>
  [...source.tensors.values()].some(({ dtype }) => isQuantized(dtype));

/** The sizes of models in files of the same kinds, whatever types each is stored in; none where llama.cpp has no graph for one of them. */
export const bytesByKind = (
  models: Readonly<Record<string, Model>>,
  wanted: readonly FileKind[],
): Readonly<Record<string, BytesByKind>> => {
  const kinds = Object.values(models).every((model) => refusalOf(model) === undefined) ? wanted : [];
  return Object.fromEntries(
    Object.entries(models).map(([role, model]) => [
      role,
      Object.fromEntries(
        kinds.map((kind) => [kind, storedTensors(model, kind).reduce((sum, { bytes }) => sum + bytes, 0)]),
      ),
    ]),
  );
};
