import {
  DISTILLATION_DEFAULTS,
  type DistillationOptions,
  type SparseTargets,
  sampledTargets,
  topKTargets,
} from "../distill/index.js";
import { UsageError } from "../system/errors.js";

/** How the student gets the teacher's predictions. */
export interface TeacherOptions {
  /** Use only the teacher's k most probable tokens. */
  readonly topK?: number | undefined;
  /** Use this many samples of the teacher's distribution at each position, an unbiased estimate of forward KL; true for 32. */
  readonly sampledLogits?: number | true | undefined;
  /** Compute the one or the other once and keep it on disk; the 64 most probable tokens by default. */
  readonly cache?: boolean | undefined;
}

const DEFAULT_TOP_K = 64;
/** Samples of a position: about 12 distinct tokens of text, which arXiv 2503.16870 finds to be enough, in 36 bytes. */
const DEFAULT_SAMPLES = 32;

/** What to keep of the teacher's distributions; undefined to use them whole. */
export function sparseTargetsOf(
  { topK, sampledLogits, cache }: TeacherOptions,
  { divergence, temperature, vocabSize, seed }: DistillationOptions & { vocabSize: number; seed: number },
): SparseTargets | undefined {
  if (sampledLogits !== undefined) {
    const samples = sampledLogits === true ? DEFAULT_SAMPLES : sampledLogits;
    return sampledTargets({ samples, temperature, seed, vocabSize });
  }
  const k = topK ?? (cache || divergence === "top-k" ? DEFAULT_TOP_K : undefined);
  return k === undefined ? undefined : topKTargets({ k: Math.min(k, vocabSize), temperature });
}

/**
 * Checks that the ways of getting the teacher's predictions go together, before anything that takes long.
 * @param matchesStates whether intermediate states are matched, too
 * @throws UsageError saying what does not
 */
export function checkTeacherOptions(
  { topK, sampledLogits, cache }: TeacherOptions,
  { divergence = DISTILLATION_DEFAULTS.divergence, intermediate = [] }: Partial<DistillationOptions>,
  matchesStates = intermediate.length > 0,
): void {
  for (const [name, value] of [
    ["--top-k", topK],
    ["--sampled-logits", sampledLogits],
  ] as const)
    if (typeof value === "number" && !(Number.isInteger(value) && value >= 1))
      throw new UsageError(`${name} must be a whole number from 1 up, not ${value}`);
  if (topK !== undefined && sampledLogits !== undefined)
    throw new UsageError("--top-k and --sampled-logits cannot be combined: give one of them");
  if (sampledLogits !== undefined && divergence !== "forward-kl")
    throw new UsageError(
      `samples of the teacher's distribution estimate forward-kl only: --sampled-logits cannot be combined with --loss ${divergence}`,
    );
  const isSparse = topK !== undefined || sampledLogits !== undefined || cache === true;
  if (isSparse && divergence !== "forward-kl" && divergence !== "top-k")
    throw new UsageError(
      `${divergence} needs the teacher's whole distribution: it cannot be used with top-k or cached logits`,
    );
  if ((isSparse || divergence === "top-k") && matchesStates)
    throw new UsageError(
      "intermediate states need the whole teacher: they cannot be combined with top-k, sampled or cached logits",
    );
}
