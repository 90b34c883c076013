import { storedType } from "../checkpoint/stored-type.js";
import type { Passage } from "../evaluate/residual-stream.js";
import { leads } from "../evaluate/team.js";
import { bytesOf } from "../ggml/dtype.js";
import type { Matrix } from "../linear-algebra/index.js";
import { type ModelTensors, sizeOf } from "../models/index.js";
import { type KeptIndices, type PrunedModel, type PrunePlan, prune } from "../prune/index.js";
import { readMatrix } from "../prune/matrices.js";
import { cutWithinLayers } from "../prune/surgery.js";
import { hashBytes } from "../system/files.js";
import { type Basis, rotationBasis, selectionBasis, whyNotRotated } from "./basis.js";
import { partsOf, refit } from "./refit.js";
import { cutStart, rotatedStart, type Start } from "./start.js";
import { StepFiles } from "./step-files.js";
import { tokenMoments } from "./token-moments.js";

export interface CutInputs {
  readonly passage: Passage;
  readonly original: ModelTensors;
  readonly plan: PrunePlan;
  readonly kept: KeptIndices;
  /** Second moments of the normalized stream, to rotate it where its width is cut; without them channels are selected. */
  readonly streamMoments: Matrix | undefined;
}

/** What a cut takes out, and how it is mended. */
export interface PreparedCut extends Pick<CutInputs, "original" | "plan" | "kept"> {
  /** Undefined where the width is not cut. */
  readonly basis: Basis | undefined;
  /** Of all this, and of the data. */
  readonly identity: string;
}

export interface RefitOptions {
  /** The path of a file for finished parts, by its name. A cut that was stopped goes on with the files that are there. */
  readonly place: (name: string) => string;
  /** Streams are saved that often, 20 by default. */
  readonly saveEverySeconds?: number | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** Cuts a model and mends what is left in closed form: see {@link refit}. */
export async function cutAndRefit(inputs: CutInputs & RefitOptions): Promise<PrunedModel> {
  return refitCut(await prepareCut(inputs), inputs.passage, inputs);
}

export const prepareCut = async (inputs: CutInputs): Promise<PreparedCut> => ({
  original: inputs.original,
  plan: inputs.plan,
  kept: inputs.kept,
  basis: await basisFor(inputs),
  identity: identityOf(inputs),
});

/** Mends a cut. @returns the cut model with its new tensors; in a team only the leader has these */
export async function refitCut(
  { original, plan, kept, basis, identity }: PreparedCut,
  passage: Passage,
  { place, saveEverySeconds, onProgress }: RefitOptions,
): Promise<PrunedModel> {
  const pruned = prune(original, plan, kept);
  const within = cutWithinLayers(original, plan, kept);
  const start: Start =
    basis?.read === undefined
      ? cutStart(pruned.model, pruned.source)
      : rotatedStart({ backend: passage.backend, model: pruned.model, within, basis: { ...basis, read: basis.read } });
  const files = new StepFiles(place, pruned.model, {
    identity,
    // as the cut model will be written, unless f16 might not hold what the refit finds
    dtype: storedType(original.source) === "bf16" ? "bf16" : "f32",
    saveEverySeconds,
  });
  await refit({
    passage,
    dense: original,
    student: pruned.model,
    keptLayers: plan.keptLayers,
    start,
    within,
    basis,
    files,
    onProgress,
  });
  return leads(passage.team) ? { ...pruned, source: files.source(partsOf(pruned.model)) } : pruned;
}

/** Identifies what a cut takes out, and what it is mended on. */
const identityOf = ({ plan, kept, passage, streamMoments }: CutInputs): string =>
  hashBytes(
    JSON.stringify([
      plan.sizes,
      plan.keptLayers,
      [...kept].map(([dimension, indices]) => [dimension, hashBytes(bytesOf(indices))]),
      passage.batches.map((batch) => hashBytes(bytesOf(batch))),
      streamMoments && hashBytes(bytesOf(streamMoments.data)),
    ]),
  );

async function basisFor({ passage, original, kept, plan, streamMoments }: CutInputs): Promise<Basis | undefined> {
  const channels = kept.get("hidden");
  if (channels === undefined) return undefined;
  const { model, source } = original;
  const selection = selectionBasis(sizeOf("hidden", model.sizes), channels);
  const { finalNorm } = model;
  if (streamMoments === undefined || finalNorm === undefined || whyNotRotated(original, channels.length) !== undefined)
    return selection;
  const rotation = await rotationBasis({
    backend: passage.backend,
    moments: streamMoments,
    gain: readMatrix(source, finalNorm.gain).data.map((value) => value + finalNorm.offset),
    tied: model.tiedEmbeddings,
    hidden: sizeOf("hidden", plan.sizes),
    embeddingGram: (await tokenMoments(passage.backend, source, model.embedding)).gram,
  });
  return rotation ?? selection;
}
