import { loadVectors, saveVectors } from "../checkpoint/vectors.js";
import { type DimensionName, type Model, sizeOf } from "../models/index.js";

/**
 * How much each index of each dimension contributes: `hidden`, `layers.3.ffn`, `layers.3.heads`, `layers.3.kvHeads`, and
 * `layers` with the Block Influence of each layer.
 */
export type Scores = ReadonlyMap<DimensionName, Float32Array>;

/**
 * Writes scores to a safetensors file, one tensor per dimension.
 * @param identity of the model's content; models of the same sizes are told apart by it
 */
export const saveScores = (file: string, scores: Scores, identity?: string): void =>
  saveVectors(file, scores, "coppice importance scores", identity);

/**
 * Reads the scores of a model.
 * @param identity of the model's content; models of the same sizes are told apart by it
 * @throws FormatError when they are another model's
 */
export function loadScores(file: string, model: Model, identity?: string): Scores {
  const dimensions = new Set([
    ...model.scoredBy.map(({ dimension }) => dimension),
    ...model.groups.map(({ groupedBy }) => groupedBy),
    "layers",
  ]);
  const lengths = [...dimensions].map((dimension) => [dimension, sizeOf(dimension, model.sizes)] as const);
  return loadVectors(file, lengths, "scores", identity);
}
