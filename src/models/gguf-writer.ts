import type { GgufValue } from "../checkpoint/gguf.js";
import { gguf } from "../checkpoint/gguf.js";
import { FormatError } from "../system/errors.js";
import type { GgufTensor } from "./blocks/block.js";
import type { ParameterSpec } from "./dimensions.js";
import { combined, type DerivedTensor, type GgufLayout, type GgufParameter, type ListedValues } from "./gguf-layout.js";
import { rotaryLayout } from "./rotary-gguf.js";
import { blocksOf, type DecoderSpec } from "./spec.js";

/** A parameter with its place in a GGUF file. */
export interface PlacedParameter extends ParameterSpec {
  readonly gguf: GgufTensor | undefined;
}

/** How a decoder lies in a GGUF file. @throws FormatError when llama.cpp has no graph for it */
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

function parameterLayout({ name, layer, gguf: place }: PlacedParameter): GgufParameter[] {
  if (place === undefined || place.kind === "listed") return [];
  const { kind = "weight", rows, offset, factor } = place;
  const base = layer === undefined ? place.name : `blk.${layer}.${place.name}`;
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

/** The embedding a second time, as the head that the graph wants. */
function copiedHead(spec: DecoderSpec, [embedding]: readonly PlacedParameter[]): GgufParameter[] {
  if (spec.gguf.copiesHead !== true || !spec.tied || embedding === undefined) return [];
  return parameterLayout({ ...embedding, gguf: { name: "output" } });
}

const zeros = ({ gguf: { zeros = {} }, layers }: DecoderSpec): DerivedTensor[] =>
  layers.flatMap((_, layer) =>
    Object.entries(zeros).map(([name, size]) => ({ name: `blk.${layer}.${name}`, values: new Float32Array(size) })),
  );

function listedValues(parameters: readonly PlacedParameter[]): ListedValues[] {
  const lists = new Map<string, string[]>();
  for (const { name, gguf: place } of parameters)
    if (place?.kind === "listed") lists.set(place.name, [...(lists.get(place.name) ?? []), name]);
  return [...lists].map(([key, names]) => ({ key, parameters: names }));
}

/** What all blocks say, one value or list a key. @throws FormatError for what layers say differently and the file cannot */
function blockMetadata(spec: DecoderSpec): [string, GgufValue][] {
  const said = new Map<string, number[]>();
  for (const layer of spec.layers) {
    const own = Object.assign({}, ...blocksOf(layer).map(([, block]) => block.metadata)) as Record<string, number>;
    for (const [key, value] of Object.entries(own)) said.set(key, [...(said.get(key) ?? []), value]);
  }
  for (const [key, value] of Object.entries(spec.finalNorm.metadata)) if (!said.has(key)) said.set(key, [value]);
  return [...said].flatMap(([key, values]): [string, GgufValue][] => {
    const value = combined(key, values);
    if (value !== undefined) return [[key, value]];
    if (key in (spec.gguf.metadata ?? {})) return []; // the architecture says it its own way
    throw new FormatError(`GGUF files have one ${key} for all layers, not ${[...new Set(values)].join(" and ")}`);
  });
}
