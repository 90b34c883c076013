import type { Corpus, TokenStream } from "../data/index.js";
import type { TrainOptions } from "../distill/index.js";
import type { Model } from "../models/index.js";
import { UsageError } from "../system/errors.js";
import { realPath } from "../system/places.js";
import type { JobOptions } from "./job.js";

type NoteOptions = Pick<JobOptions, "onNote">;

/**
 * Checks a sequence length against a model's positions, beyond which its outputs are meaningless.
 * @param what the model is called in the message
 * @throws UsageError when sequences are longer than the model's positions
 */
export function checkLength(
  length: number | undefined,
  { maxPositions }: Pick<Model, "maxPositions">,
  what = "the model",
  option = "--sequence-length",
): void {
  if (length !== undefined && length > maxPositions)
    throw new UsageError(
      `${option} ${length} is more than the ${maxPositions} positions that ${what} was made for (max_position_embeddings): give at most ${maxPositions}`,
    );
}

/** More passes over the same text gain little (arXiv 2305.16264: up to 4 are nearly as good as new text). */
const MAX_PASSES = 16;

/** Notes a training run with so many passes over its data that it looks like a mistake. */
export function noteTraining(
  { tokens }: Pick<TrainOptions, "tokens">,
  data: Pick<TokenStream, "length">,
  { onNote }: NoteOptions,
): void {
  const passes = tokens / data.length;
  if (passes > MAX_PASSES)
    onNote?.(
      `${tokens} tokens are ${Math.round(passes)} passes over the data, which has ${data.length}: more data would teach more`,
    );
}

/** Notes that a model would be validated on its own training data. */
export function noteOverlap(train: Corpus, validation: Corpus, { onNote }: NoteOptions): void {
  const trained = new Set(train.files.map(realPath));
  const isCopy = train.train.id === validation.train.id;
  const shared = isCopy ? validation.files : validation.files.filter((file) => trained.has(realPath(file)));
  if (shared.length > 0)
    onNote?.(
      `the validation data is training data, too (${shared.slice(0, 3).join(", ")}): a loss on it says nothing about other texts`,
    );
}
