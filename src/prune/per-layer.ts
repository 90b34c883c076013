import {
  axisSize,
  countParameters,
  type DimensionName,
  dimensionsOf,
  type Model,
  type ResidualStep,
} from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { FormatError, UsageError } from "../system/errors.js";
import { cheapestWithin } from "../system/knapsack.js";
import { divisorOf, parametersAt, type SearchSpace } from "./candidates.js";
import { keptIndices, planFor, sizesByAxis } from "./plan.js";
import type { Scores } from "./scores.js";
import type { AxisSizes } from "./sizes.js";
import { keptOnAxis } from "./surgery.js";

/** Axes whose sizes can be chosen for each layer: of the feed-forward networks, and of attention in whole key-value groups. */
const LAYER_AXES: readonly string[] = ["ffn", "kvHeads"];
/** How many sizes each layer may take, and the largest share that may be cut from it. */
const SIZES = 8;
const LARGEST_CUT = 0.7;

/** The sizes that a step of a layer may take. */
export interface StepSizes {
  readonly step: ResidualStep;
  readonly dimension: DimensionName;
  /** Largest first: the step as it is. The last may be 0, a layer without the step. */
  readonly sizes: readonly number[];
  /** The whole model's parameters with each of the sizes in this layer alone. */
  readonly parameters: readonly number[];
}

/**
 * The sizes that each layer's steps may take where each has its own.
 * @throws UsageError when the family's configuration has no list of sizes, or no axis of the space can be chosen for each layer
 */
export function layerSizes(model: Model, space: SearchSpace): StepSizes[] {
  const axes = model.axes.filter(({ name }) => LAYER_AXES.includes(name) && space.axes.includes(name));
  if (axes.length === 0)
    throw new UsageError(
      `sizes for each layer can be chosen of ${LAYER_AXES.join(" and ")}, of which this model and --axes (${space.axes.join(", ")}) have none: add --axes ffn`,
    );
  return axes.flatMap((axis) =>
    axis.dimensions.flatMap((dimension): StepSizes[] => {
      const before = model.sizes[dimension] ?? 0;
      if (before === 0) return [];
      const smaller = spread(multiples(before, divisorOf(axis, before, space), space.maxWidthCut ?? LARGEST_CUT));
      checkListed(model, dimension, smaller.at(-1) ?? before);
      // in llama.cpp, the first layer has the sizes that are the whole model's
      const canSkip = axis.isOptional && space.maxWidthCut === undefined && dimension !== axis.dimensions[0];
      const sizes = canSkip ? [...smaller, 0] : smaller;
      const parameters = sizes.map((size) => parametersAt(model, { [dimension]: size }));
      return [{ step: stepOf(model, dimension), dimension, sizes, parameters }];
    }),
  );
}

/** @throws UsageError when one layer cannot have a size of its own */
function checkListed(model: Model, dimension: DimensionName, size: number): void {
  const { sizes, keptLayers } = planFor(model, { [dimension]: size }, []);
  try {
    model.resized(sizes, keptLayers);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    throw new UsageError(
      `sizes cannot differ from layer to layer: ${error.message}. Do without --per-layer; all layers are cut alike then`,
    );
  }
}

/** The size itself and all smaller multiples of the divisor down to the largest cut, largest first. */
function multiples(size: number, divisor: number, largestCut: number): number[] {
  const smallest = Math.max(1, Math.ceil(size * (1 - largestCut) - 1e-9));
  const found = [size];
  for (let value = Math.ceil(size / divisor - 1) * divisor; value >= smallest; value -= divisor) found.push(value);
  return found;
}

/** At most {@link SIZES} of them, spread evenly from first to last. */
function spread(values: readonly number[]): number[] {
  const count = Math.min(SIZES, values.length);
  return Array.from({ length: count }, (_, i) =>
    elementAt(values, Math.round((i * (values.length - 1)) / Math.max(1, count - 1))),
  );
}

function stepOf(model: Model, dimension: DimensionName): ResidualStep {
  const members = model.groups.filter(({ groupedBy }) => groupedBy === dimension).map((group) => group.dimension);
  const step = model.steps.find(({ writer: { axes } }) =>
    axes.slice(1).some((axis) => dimensionsOf(axis).some((name) => name === dimension || members.includes(name))),
  );
  if (step === undefined) throw new UsageError(`${dimension} cannot be chosen for each layer: no step writes from it`);
  return step;
}

/** What a step's writing matrix multiplies with each of its sizes, as ascending columns. */
export function keptColumns(model: Model, { step, dimension, sizes }: StepSizes, scores: Scores): Uint32Array[] {
  const axis = elementAt(step.writer.axes, 1);
  const all = Uint32Array.from({ length: axisSize(axis, model.sizes) }, (_, i) => i);
  return sizes.map((size) => {
    const kept = keptIndices(model, planFor(model, { [dimension]: size }, []), scores);
    return keptOnAxis(axis, model, kept) ?? all;
  });
}

/**
 * Chooses a size for each step, with the smallest sum of costs, so that the model has at most so many parameters.
 * @param costs for each step, that of each of its sizes
 * @returns undefined when even the smallest sizes make more parameters
 */
export async function cheapestSizes(
  model: Model,
  steps: readonly StepSizes[],
  costs: readonly (readonly number[])[],
  parameters: number,
): Promise<AxisSizes | undefined> {
  const items = steps.map((each, i) => {
    const smallest = Math.min(...each.parameters);
    return each.parameters.map((count, j) => ({ size: count - smallest, cost: elementAt(elementAt(costs, i), j) }));
  });
  const chosen = await cheapestWithin(items, parameters - leastParameters(model, steps));
  if (chosen === undefined) return undefined;
  const sizes = new Map(steps.map(({ dimension, sizes: all }, i) => [dimension, elementAt(all, elementAt(chosen, i))]));
  const { sizes: planned } = planFor(model, Object.fromEntries(sizes), []);
  return sizesByAxis(model, planned);
}

/** The model's parameters with all steps at their smallest sizes. */
export function leastParameters(model: Model, steps: readonly StepSizes[]): number {
  const whole = countParameters(model.parameters, model.sizes);
  return steps.reduce((sum, { parameters }) => sum + Math.min(...parameters) - whole, whole);
}
