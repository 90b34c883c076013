import type { GgufValue } from "../checkpoint/gguf.js";
import { gguf } from "../checkpoint/gguf.js";
import { FormatError } from "../system/errors.js";
import { elementCount } from "../tensor/index.js";
import type { GgufPlacement } from "./blocks/block.js";
import type { ParameterSpec } from "./dimensions.js";
import { combined, type DerivedTensor, type GgufLayout, type GgufParameter, type ListedValues } from "./gguf-layout.js";
import { rotaryLayout } from "./rotary-gguf.js";
import { blocksOf, type DecoderSpec, skippedIn } from "./spec.js";

/** A parameter with its placement in a GGUF file. */
export interface PlacedParameter extends ParameterSpec {
  readonly gguf: GgufPlacement | undefined;
}

/** The layout of a decoder in a GGUF file. @throws FormatError when llama.cpp has no graph for it */
export function ggufLayout(spec: DecoderSpec, parameters: readonly PlacedParameter[]): GgufLayout {
  const { architecture, refused, notes = [] } = spec.gguf;
  if (refused !== undefined) throw new FormatError(refused);
  const rotary = spec.gguf.rotary && rotaryLayout(spec.gguf.rotary, architecture, spec.gguf.rotaryReads);
  const metadata = new Map<string, GgufValue>([
    ["block_count", gguf.uint32(spec.layers.length)],
    ["context_length", gguf.uint32(spec.maxPositions)],
    ["embedding_length", gguf.uint32(spec.hidden)],
    ["vocab_size", gguf.uint32(spec.vocab)],
    ...blockMetadata(spec),
    ...Object.entries(rotary?.metadata ?? {}),
  ]);
  for (const [key, value] of Object.entries(spec.gguf.metadata ?? {}))
    if (value === undefined) metadata.delete(key);
    else metadata.set(key, value);
  return {
    architecture,
    metadata: [...metadata].map(([key, value]) => [`${architecture}.${key}`, value]),
    parameters: [...parameters.flatMap(parameterLayout), ...copiedHead(spec, parameters)],
    derived: [...(rotary?.derived ?? []), ...zeros(spec)],
    listed: listedValues(parameters),
    notes: [...(rotary?.notes ?? []), ...notes],
  };
}

function parameterLayout({ name, layer, gguf: placement }: PlacedParameter): GgufParameter[] {
  if (placement === undefined || placement.kind === "listed") return [];
  const { kind = "weight", rows, offset, factor } = placement;
  const base = layer === undefined ? placement.name : `blk.${layer}.${placement.name}`;
  return [
    {
      name: kind === "none" ? base : `${base}.${kind}`,
      layer,
      parameter: name,
      rows: rows?.(),
      offset: kind === "weight" ? offset : undefined,
      factor,
    },
  ];
}

/** The embedding a second time, as the head that the graph needs. */
function copiedHead(spec: DecoderSpec, [embedding]: readonly PlacedParameter[]): GgufParameter[] {
  if (spec.gguf.copiesHead !== true || !spec.tied || embedding === undefined) return [];
  return parameterLayout({ ...embedding, gguf: { name: "output" } });
}

const zeros = ({ gguf: { zeros = () => ({}) }, layers }: DecoderSpec): DerivedTensor[] =>
  layers.flatMap((_, layer) =>
    Object.entries(zeros(layer)).map(([name, shape]) => ({
      name: `blk.${layer}.${name}`,
      shape,
      values: new Float32Array(elementCount(shape)),
    })),
  );

function listedValues(parameters: readonly PlacedParameter[]): ListedValues[] {
  const lists = new Map<string, string[]>();
  for (const { name, gguf: placement } of parameters)
    if (placement?.kind === "listed") lists.set(placement.name, [...(lists.get(placement.name) ?? []), name]);
  return [...lists].map(([key, names]) => ({ key, parameters: names }));
}

/** The metadata of all blocks. @throws FormatError for a key whose value differs between layers and cannot be a list */
function blockMetadata(spec: DecoderSpec): [string, GgufValue][] {
  const valuesOf = new Map<string, number[]>();
  for (const layer of spec.layers) {
    const blocks = [...blocksOf(layer).map(([, block]) => block), ...skippedIn(layer)];
    const own = Object.assign({}, ...blocks.map(({ metadata }) => metadata)) as Record<string, number>;
    for (const [key, value] of Object.entries(own)) valuesOf.set(key, [...(valuesOf.get(key) ?? []), value]);
  }
  for (const [key, value] of Object.entries(spec.finalNorm.metadata))
    if (!valuesOf.has(key)) valuesOf.set(key, [value]);
  return [...valuesOf].flatMap(([key, values]): [string, GgufValue][] => {
    const value = combined(key, values);
    if (value !== undefined) return [[key, value]];
    if (key in (spec.gguf.metadata ?? {})) return []; // the architecture writes the key itself
    throw new FormatError(`GGUF files have one ${key} for all layers, not ${[...new Set(values)].join(" and ")}`);
  });
}
