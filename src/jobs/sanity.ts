import type { Corpus, TokenStream } from "../data/index.js";
import type { TrainOptions } from "../distill/index.js";
import type { Model } from "../models/index.js";
import { UsageError } from "../system/errors.js";
import { realPath } from "../system/places.js";

/** Whoever hears what a person should know. */
interface Listener {
  readonly onNote?: ((note: string) => void) | undefined;
}

/**
 * Refuses sequences that a model has never seen the like of: what it says beyond its positions means nothing.
 * @param what people call the model
 */
export function checkLength(
  length: number | undefined,
  { maxPositions }: Pick<Model, "maxPositions">,
  what = "the model",
  option = "--sequence-length",
): void {
  if (length !== undefined && length > maxPositions)
    throw new UsageError(
      `${option} ${length} is more than the ${maxPositions} positions that ${what} was made for (max_position_embeddings): give ${maxPositions} at most`,
    );
}

/** More passes over the same text gain little (arXiv 2305.16264: up to 4 are nearly as good as new text). */
const MOST_PASSES = 16;

/** Says what of a training run looks like a mistake. */
export function noteTraining(
  { tokens }: Pick<TrainOptions, "tokens">,
  data: Pick<TokenStream, "length">,
  { onNote }: Listener,
): void {
  const passes = tokens / data.length;
  if (passes > MOST_PASSES)
    onNote?.(
      `${tokens} tokens are ${Math.round(passes)} passes over the data, which has ${data.length}: more data would teach more`,
    );
}

/** Says where models would be judged by what they were trained on. */
export function noteOverlap(train: Corpus, validation: Corpus, { onNote }: Listener): void {
  const trained = new Set(train.files.map(realPath));
  const same = train.train.id === validation.train.id; // copies
  const both = same ? validation.files : validation.files.filter((file) => trained.has(realPath(file)));
  if (both.length > 0)
    onNote?.(
      `the validation data is training data, too (${both.slice(0, 3).join(", ")}): a loss on it says nothing of other texts`,
    );
}
