import { remoteTensors } from "../checkpoint/index.js";
import { sourceBytes, type TensorSource } from "../checkpoint/tensor-source.js";
import { cacheBytes, countParameters, type DimensionName, type Model, summarizeGguf } from "../models/index.js";
import { openArchitecture } from "./device-plan.js";
import type { JobOptions } from "./job.js";
import { findModel, NOT_IN_LLAMA_CPP, type OpenModel, RUN_ONLY, type RunOnlyModel, refusalOf } from "./open-model.js";

/** A description of a model. */
export interface Inspection {
  readonly architecture: string;
  readonly parameters: number;
  /** Each dimension's size; one number where all layers agree, a list where they differ. */
  readonly dimensions: Readonly<Record<DimensionName, number | readonly number[]>>;
  /** Bytes of the weights as stored. */
  readonly bytes: number;
  /** How many tensors are stored in each type. */
  readonly types: Readonly<Record<string, number>>;
  /** Memory to run it: the weights as stored, and an f16 key-value cache for one sequence of full length. */
  readonly memoryBytes: number;
  /** Whether our own engine supports it, so that it can be pruned, distilled and measured; llama.cpp may run others. */
  readonly known: boolean;
  /** Why llama.cpp cannot compute a known model, so that it can be neither exported to GGUF nor run; undefined where it can. */
  readonly refused?: string | undefined;
  /** What in its files is not used, or not as expected; why our own engine does not support it. */
  readonly notes: readonly string[];
}

/**
 * Describes a model without reading its weights.
 * @example
 * ```ts
 * import { inspect } from "coppice";
 *
 * const { architecture, parameters, dimensions, memoryBytes } = await inspect("mistralai/Mistral-Nemo-Base-2407");
 * console.log(architecture, parameters, dimensions.hidden, memoryBytes);
 * ```
 */
export async function inspect(reference: string, options: JobOptions = {}): Promise<Inspection> {
  const tensors = await remoteTensors(reference, options.hub);
  if (tensors !== undefined) {
    const model = await openArchitecture(reference, options);
    // what has other tensors, such as parts that see images, is described by all of its files
    if (tensors.size === model.parameters.length && model.parameters.every(({ name }) => tensors.has(name)))
      return describeModel(model, { tensors }, []);
  }
  const found = await findModel(reference, options);
  return found.checkpoint === undefined ? inspectFile(found) : inspectKnown(found);
}

function inspectKnown({ checkpoint, model, file }: OpenModel): Inspection {
  const refused = file === undefined ? refusalOf(model) : undefined; // a GGUF file is itself what llama.cpp is given
  return describeModel(model, checkpoint.source, checkpoint.notes, refused);
}

function describeModel(
  model: Model,
  source: Pick<TensorSource, "tensors">,
  notes: readonly string[],
  refused = refusalOf(model),
): Inspection {
  const bytes = sourceBytes(source);
  const dimensions: Record<DimensionName, number | number[]> = {};
  for (const [name, size] of Object.entries(model.sizes)) {
    const short = model.layerDimensions.get(name)?.name ?? name;
    const before = dimensions[short];
    dimensions[short] = before === undefined ? size : [before, size].flat();
  }
  return {
    architecture: model.architecture,
    parameters: countParameters(model.parameters, model.sizes),
    dimensions: merged(dimensions),
    bytes,
    types: typesOf(source),
    memoryBytes: bytes + cacheBytes(model, model.maxPositions),
    known: true,
    refused,
    notes: [...notes, ...(refused === undefined ? [] : [`${refused}. ${NOT_IN_LLAMA_CPP}`])],
  };
}

/** Describes a model that only llama.cpp supports, from its GGUF file's metadata. */
function inspectFile({ file, reason }: RunOnlyModel): Inspection {
  const summary = summarizeGguf(file);
  const { architecture, parameters, bytes, layers, hidden, vocabSize: vocab, contextLength, experts } = summary;
  const dimensions: Record<DimensionName, number | number[]> = { vocab, hidden, layers, context: contextLength };
  if (summary.heads.some((count) => count > 0))
    Object.assign(dimensions, { heads: [...summary.heads], kvHeads: [...summary.kvHeads] });
  if (experts > 0) dimensions.experts = experts;
  return {
    architecture,
    parameters,
    dimensions: merged(dimensions),
    bytes,
    types: typesOf(file),
    memoryBytes: bytes + summary.cacheBytes(contextLength),
    known: false,
    notes: [`${reason}. ${RUN_ONLY}`],
  };
}

/** Replaces lists of equal numbers by the number. */
const merged = (dimensions: Readonly<Record<string, number | number[]>>): Record<string, number | number[]> =>
  Object.fromEntries(
    Object.entries(dimensions).map(([name, value]) => [
      name,
      Array.isArray(value) && new Set(value).size === 1 ? (value[0] ?? 0) : value,
    ]),
  );

function typesOf({ tensors }: Pick<TensorSource, "tensors">): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { dtype } of tensors.values()) counts[dtype] = (counts[dtype] ?? 0) + 1;
  return counts;
}
