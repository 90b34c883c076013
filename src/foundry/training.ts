import { CORRECTION_SHARE } from "../jobs/compression.js";
import type { TrainSettings } from "../jobs/index.js";
import { trainOptionsFor } from "../jobs/training.js";
import { modelFromConfig } from "../models/index.js";
import type { CompressSpec } from "./specification.js";

/** The training settings that a specification names; the model decides on the others. */
export function trainSettings({ tokens, seed, ...spec }: CompressSpec): TrainSettings {
  const optional = {
    sequenceLength: spec.sequence_length,
    batchSize: spec.batch_size,
    learningRate: spec.learning_rate,
    seed,
  };
  return { tokens, ...Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined)) };
}

/**
 * How many tokens a job trains on, in whole steps, those of the teacher's correction included.
 * @param config the model's configuration, where it is known
 * @throws UsageError for settings that do not suit the model
 */
export function trainedTokens(spec: CompressSpec, config: Readonly<Record<string, unknown>> | undefined): number {
  const settings = trainSettings(spec);
  const { sequenceLength = 1, batchSize = 1 } =
    config === undefined ? settings : trainOptionsFor(modelFromConfig(config), settings);
  const inSteps = (tokens: number) => Math.ceil(tokens / (sequenceLength * batchSize)) * sequenceLength * batchSize;
  const correction = spec.teacher_correction ? inSteps(Math.ceil(spec.tokens * CORRECTION_SHARE)) : 0;
  return inSteps(spec.tokens) + correction;
}
