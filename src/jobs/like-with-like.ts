import { storedTensors } from "../devices/predict.js";
import { isQuantized } from "../ggml/index.js";
import type { Checkpoint, Model } from "../models/index.js";
import type { FileKind } from "../quantize/index.js";

/** Bytes of a model's tensors in files of some kinds. */
export type BytesByKind = Readonly<Partial<Record<FileKind, number>>>;

/**
 * The kinds in which models' sizes are compared: those that are wanted, or f16 where a teacher is quantized, beside which a student in
 * 16 bits would look as if it had grown.
 */
export function comparedKinds(wanted: readonly FileKind[], teacher: Pick<Checkpoint, "source">): readonly FileKind[] {
  if (wanted.length > 0) return wanted;
  return [...teacher.source.tensors.values()].some(({ dtype }) => isQuantized(dtype)) ? ["f16"] : [];
}

/** How large models are in files of the same kinds, whatever each is stored in. */
export const bytesByKind = (
  models: Readonly<Record<string, Model>>,
  kinds: readonly FileKind[],
): Readonly<Record<string, BytesByKind>> =>
  Object.fromEntries(
    Object.entries(models).map(([role, model]) => [
      role,
      Object.fromEntries(
        kinds.map((kind) => [kind, storedTensors(model, kind).reduce((sum, { bytes }) => sum + bytes, 0)]),
      ),
    ]),
  );
