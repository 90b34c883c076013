import { FormatError } from "../system/errors.js";
import { type Graph, ops, recomputed, type Tensor } from "../tensor/index.js";
import type {
  Architecture,
  ForwardOptions,
  ForwardResult,
  Model,
  PruningAxis,
  SizeFields,
  Surroundings,
  Tap,
  Weights,
} from "./architecture.js";
import { type ContextCost, FREE, type Parameter } from "./blocks/block.js";
import type { ConfigJson } from "./config.js";
import { ggufLayout, type PlacedParameter } from "./decoder-gguf.js";
import { type Axis, type DimensionName, layerDimension, renamed, type Sizes } from "./dimensions.js";
import { resizedConfig } from "./resize.js";
import { type DecoderSpec, type Layer, layerDimensions, mainBlocks, type NamedBlock, namesOf } from "./spec.js";
import { activationOf, inputTap, layerForward, residualSteps, rmsNormOf, scopeOf, tapOf } from "./steps.js";

/**
 * Builds a model from a decoder's description.
 * @param config the whole configuration, including that of a wrapper
 * @param parse builds a model from another configuration
 */
export function decoderModel(
  architecture: Architecture,
  config: ConfigJson,
  spec: DecoderSpec,
  parse: (config: ConfigJson) => Model,
): Model {
  const parameters = parametersOf(spec);
  const sizes = sizesOf(spec);
  const names = namesOf(spec);
  return {
    architecture: architecture.name,
    config,
    sizes,
    layerDimensions: dimensionsByName(spec),
    parameters: parameters.map(({ gguf: _, ...parameter }) => parameter),
    layerCount: spec.layers.length,
    vocabSize: spec.vocab,
    maxPositions: spec.maxPositions,
    needsBeginToken: spec.needsBeginToken ?? false,
    tiedEmbeddings: spec.tied,
    axes: axesOf(spec, architecture.fields),
    scoredBy: scoresOf(spec),
    groups: groupsOf(spec),
    cost: (context, { hasWindows = true } = {}) => totalCost(spec, context, hasWindows),
    forward: (g, weights, tokens, options = {}) => forward(spec, g, weights, tokens, options),
    embed: (surroundings, tokens) => embedded(spec, surroundings, tokens),
    layer: (surroundings, index, stream) => layered(spec, surroundings, index, stream),
    finish: (surroundings, stream) => finish(spec, surroundings, stream),
    steps: residualSteps(spec, parameters),
    logits: (g, weights, hidden) => logitsOf(spec, g, weights, hidden),
    finalNorm: rmsNormOf(spec.finalNorm, names.norm),
    embedding: `${names.embedding}.weight`,
    head: `${spec.tied ? names.embedding : names.head}.weight`,
    positions: spec.learnedPositions && `${spec.learnedPositions}.weight`,
    resized: (wanted, keptLayers) => parse(resizedConfig(architecture, config, spec, wanted, keptLayers)),
    gguf: () => ggufLayout(spec, parameters),
  };
}

function totalCost(spec: DecoderSpec, context: number, hasWindows: boolean): ContextCost {
  const costs = spec.layers.flatMap(mainBlocks).map(([, block]) => block.cost(context, hasWindows));
  return costs.reduce(
    (sum, { cacheElements, operations }) => ({
      cacheElements: sum.cacheElements + cacheElements,
      operations: sum.operations + operations,
    }),
    FREE,
  );
}

const dimensionsByName = (spec: DecoderSpec): Model["layerDimensions"] =>
  new Map(
    spec.layers.flatMap((layer, i) =>
      Object.keys(layerDimensions(layer)).map((name) => [layerDimension(i, name), { layer: i, name }] as const),
    ),
  );

function sizesOf(spec: DecoderSpec): Sizes {
  const sizes: Record<string, number> = { vocab: spec.vocab, hidden: spec.hidden, layers: spec.layers.length };
  if (spec.learnedPositions !== undefined) sizes.positions = spec.maxPositions;
  spec.layers.forEach((layer, i) => {
    for (const [name, { size }] of Object.entries(layerDimensions(layer))) sizes[layerDimension(i, name)] = size;
  });
  return sizes;
}

/** Every parameter with the names of its dimensions. Pruning, counting, export and initialization all read this table. */
function parametersOf(spec: DecoderSpec): PlacedParameter[] {
  const names = namesOf(spec);
  const finalTap = "norm.output";
  const top = (name: string, axes: readonly Axis[], gguf: string, more: Partial<PlacedParameter> = {}) => ({
    name,
    local: name,
    axes,
    initialization: "normal" as const,
    gguf: { name: gguf },
    ...more,
  });
  const positions = spec.learnedPositions;
  return [
    // a tied embedding also multiplies the final norm's output, as the head
    top(`${names.embedding}.weight`, ["vocab", "hidden"], "token_embd", { input: spec.tied ? finalTap : undefined }),
    ...(positions === undefined ? [] : [top(`${positions}.weight`, ["positions", "hidden"], "position_embd")]),
    ...spec.layers.flatMap((layer, i) => layerParameters(spec, layer, i)),
    ...Object.entries(spec.finalNorm.parameters).map(([local, parameter]) =>
      placed(parameter, { name: `${names.norm}.${local}`, local: `${names.norm}.${local}`, rename: (name) => name }),
    ),
    ...(spec.tied ? [] : [top(`${names.head}.weight`, ["vocab", "hidden"], "output", { input: finalTap })]),
  ];
}

/** Where a block's parameter belongs in the model. */
interface Placement {
  readonly name: string;
  readonly local: string;
  readonly layer?: number | undefined;
  /** From a dimension's name in the block to its name in the model. */
  readonly rename: (name: string) => DimensionName;
  /** The model's name of the tap that the parameter multiplies. */
  readonly input?: string | undefined;
}

function placed(
  { axes, initialization = "normal", transposed, fixed, gguf }: Parameter,
  { name, local, layer, rename, input }: Placement,
): PlacedParameter {
  return {
    name,
    local,
    layer,
    axes: axes.map((axis) => renamed(axis, rename)),
    initialization,
    input,
    transposed,
    fixed,
    gguf,
  };
}

function layerParameters(spec: DecoderSpec, layer: Layer, i: number): PlacedParameter[] {
  const dimensions = layerDimensions(layer);
  const rename = (name: string) => (name in dimensions ? layerDimension(i, name) : name);
  const prefix = `${namesOf(spec).layers}.${i}`;
  const parametersIn = ([name, block]: NamedBlock, blockInput: string | undefined) =>
    Object.entries(block.parameters).map(([inner, parameter]) => {
      const local = name === "" ? inner : `${name}.${inner}`;
      const tap = parameter.input;
      const ownTap = tap === undefined ? undefined : `${tapOf(i, name)}.${tap}`;
      const input = tap === "input" ? blockInput : ownTap;
      return placed(parameter, { name: `${prefix}.${local}`, local, layer: i, rename, input });
    });
  return layer.residuals.flatMap(({ norm, block, after }) => [
    ...(norm === undefined ? [] : parametersIn(norm, undefined)),
    ...parametersIn(block, inputTap(i, norm, block)),
    ...(after === undefined ? [] : parametersIn(after, undefined)),
  ]);
}

function scoresOf(spec: DecoderSpec): Model["scoredBy"] {
  const layers = spec.layers.flatMap((layer, i) =>
    layer.residuals.flatMap(({ norm, block }) => [
      { dimension: "hidden", tap: inputTap(i, norm, block) },
      ...block[1].scores.map(({ dimension, tap }) => ({
        dimension: layerDimension(i, dimension),
        tap: `${tapOf(i, block[0])}.${tap}`,
      })),
    ]),
  );
  const seen = new Set<string>();
  // parallel residuals may share their input
  return [...layers, { dimension: "hidden", tap: "norm.output" }].filter(({ tap }) => !seen.has(tap) && seen.add(tap));
}

const groupsOf = (spec: DecoderSpec): Model["groups"] =>
  spec.layers.flatMap((layer, i) =>
    Object.entries(layerDimensions(layer)).flatMap(([name, { groupedBy }]) =>
      groupedBy === undefined ? [] : [{ dimension: layerDimension(i, name), groupedBy: layerDimension(i, groupedBy) }],
    ),
  );

function axesOf(spec: DecoderSpec, fields: SizeFields): PruningAxis[] {
  const axes = new Map<string, PruningAxis & { dimensions: DimensionName[] }>();
  spec.layers.forEach((layer, i) => {
    for (const [name, { prunable, groupedBy }] of Object.entries(layerDimensions(layer))) {
      if (!prunable) continue;
      const axis = axes.get(name) ?? { name, dimensions: [], groupedBy, isOptional: fields[name]?.optional };
      axis.dimensions.push(layerDimension(i, name));
      axes.set(name, axis);
    }
  });
  const { prunable = true, multipleOf } = spec.hiddenAxis ?? {};
  const rank = ({ name }: PruningAxis) => ["ffn", "heads", "kvHeads"].indexOf(name) >>> 0;
  return [
    ...(prunable ? [{ name: "hidden", dimensions: ["hidden"], multipleOf }] : []),
    ...[...axes.values()].sort((a, b) => rank(a) - rank(b)),
    { name: "layers", dimensions: ["layers"] },
  ];
}

function forward(
  spec: DecoderSpec,
  g: Graph,
  weights: Weights,
  tokens: Tensor,
  options: ForwardOptions,
): ForwardResult {
  const [batch, seq] = tokenShape(tokens);
  const { forest } = options;
  const tapped = new Set<string>();
  const tap: Tap = (activation) => {
    if (tapped.has(activation.name)) return; // the layer is being recomputed for its gradient
    tapped.add(activation.name);
    options.tap?.(activation);
  };
  const surroundings = { g, weights, layout: { batch, seq, forest }, tap };
  let x = embedded(spec, surroundings, tokens);
  for (const i of options.layers ?? spec.layers.keys()) x = layered(spec, surroundings, i, x);
  return finish(spec, surroundings, x);
}

/** A layer and its taps. x: [rows, hidden] */
function layered(spec: DecoderSpec, surroundings: Surroundings, i: number, x: Tensor): Tensor {
  const { g, tap } = surroundings;
  const layer = spec.layers[i];
  if (layer === undefined) throw new FormatError(`there is no layer ${i}; the model has ${spec.layers.length}`);
  tap(activationOf(i, "input", x));
  const output = recomputed(g, x, (input) => layerForward(spec, layer, i, surroundings, input));
  tap(activationOf(i, "output", output));
  return output;
}

/** The final norm and the head. x: [rows, hidden] */
function finish(spec: DecoderSpec, surroundings: Surroundings, x: Tensor): ForwardResult {
  const { g, weights } = surroundings;
  const scope = scopeOf(spec, surroundings, { parameters: namesOf(spec).norm, layer: undefined, block: "norm" });
  const hidden = spec.finalNorm.forward(scope, x);
  return { hidden, logits: (rows = hidden) => logitsOf(spec, g, weights, rows) };
}

/** tokens: [batch, seq]. */
function tokenShape({ name, shape }: Tensor): readonly [batch: number, seq: number] {
  const [batch, seq] = shape;
  if (batch === undefined || seq === undefined)
    throw new FormatError(`${name} must be [batch, sequence], not [${shape.join(", ")}]`);
  return [batch, seq];
}

/** The embeddings and their tap. tokens: [batch, seq] -> [rows, hidden] */
function embedded(spec: DecoderSpec, surroundings: Surroundings, tokens: Tensor): Tensor {
  const x = embeddings(spec, surroundings, tokens);
  surroundings.tap(activationOf(undefined, "embed_tokens.output", x));
  return x;
}

function embeddings(spec: DecoderSpec, { g, weights, layout }: Surroundings, tokens: Tensor): Tensor {
  const { batch, seq, forest } = layout;
  const names = namesOf(spec);
  const rows = ops.embedding(g, weights(`${names.embedding}.weight`), ops.reshape(g, tokens, { to: [batch * seq] }));
  const scaled = spec.embeddingScale === undefined ? rows : ops.scale(g, rows, { factor: spec.embeddingScale });
  if (spec.learnedPositions === undefined) return scaled;
  if (seq > spec.maxPositions && forest === undefined)
    throw new FormatError(`the model has ${spec.maxPositions} positions, not ${seq}`);
  const places = () => Int32Array.from(Array(seq).keys());
  const indices = forest?.positions ?? g.constant(`places ${seq}`, "i32", [seq], places);
  const positions = ops.embedding(g, weights(`${spec.learnedPositions}.weight`), indices); // [seq, hidden]
  const perSequence = ops.reshape(g, scaled, { to: [batch, seq, spec.hidden] });
  return ops.reshape(g, ops.add(g, perSequence, positions), { to: [batch * seq, spec.hidden] });
}

function logitsOf(spec: DecoderSpec, g: Graph, weights: Weights, rows: Tensor): Tensor {
  const names = namesOf(spec);
  const plain = ops.linear(g, rows, weights(`${spec.tied ? names.embedding : names.head}.weight`));
  const scaled = spec.logitScale === undefined ? plain : ops.scale(g, plain, { factor: spec.logitScale });
  return spec.logitCap === undefined ? scaled : ops.softCap(g, scaled, { cap: spec.logitCap });
}
