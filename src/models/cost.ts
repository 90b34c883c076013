import { FormatError } from "../system/errors.js";
import type { Model } from "./architecture.js";
import { type DimensionName, layerDimension, shapeOf, sizeOf } from "./dimensions.js";

/** Elements of the matrices that a token is multiplied by. @param head whether to include the output head */
export function activeWeights(model: Model, { head = true } = {}): number {
  return model.parameters
    .filter(({ input, layer }) => input !== undefined && (head || layer !== undefined))
    .reduce((sum, spec) => sum + shapeOf(spec, model.sizes).reduce((a, b) => a * b, 1), 0);
}

/**
 * Floating-point operations of one token's forward pass: two for each weight of a matrix it is multiplied by, and those of causal
 * attention, which reads half of the positions on average (Kaplan et al. 2020, table 1, with the output head included unless
 * `head` is false). A training step takes three times as many.
 */
export const forwardFlopsPerToken = (
  model: Model,
  sequenceLength: number,
  options: { head?: boolean | undefined } = {},
): number => 2 * activeWeights(model, options) + model.cost(sequenceLength / 2).operations;

/** Bytes of an element of a key or value, which caches hold in 16 bits. */
export const CACHE_ELEMENT_BYTES = 2;

/** Bytes of the keys and values of one sequence of `tokens` tokens, in 16 bits each, as llama.cpp keeps them. */
export const cacheBytes = (model: Model, tokens: number): number =>
  CACHE_ELEMENT_BYTES * model.cost(tokens, { hasWindows: hasWindowsInLlamaCpp(model) }).cacheElements;

const windowsInLlamaCpp = new WeakMap<Model, boolean>();

/** Whether llama.cpp computes a model's windows: only where files have them (not Mistral's, Phi-3's, Qwen 2's). */
export function hasWindowsInLlamaCpp(model: Model): boolean {
  const known = windowsInLlamaCpp.get(model) ?? filesHaveWindows(model);
  windowsInLlamaCpp.set(model, known);
  return known;
}

function filesHaveWindows(model: Model): boolean {
  try {
    return model.gguf().metadata.some(([key]) => key.endsWith(".attention.sliding_window"));
  } catch (error) {
    if (error instanceof FormatError) return true; // it computes nothing of such a model
    throw error;
  }
}

/** A dimension's size in each layer that has it; a single one for a dimension of the whole model. */
export function sizesOfAxis(model: Model, name: DimensionName): number[] {
  if (name in model.sizes) return [sizeOf(name, model.sizes)];
  return Array.from({ length: model.layerCount }, (_, i) => model.sizes[layerDimension(i, name)]).filter(
    (size) => size !== undefined,
  );
}

/** The largest size that a dimension has in any layer; 0 where none has it. */
export const largestSize = (model: Model, name: DimensionName): number => Math.max(0, ...sizesOfAxis(model, name));
