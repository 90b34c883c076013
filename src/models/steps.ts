import { FormatError } from "../system/errors.js";
import { ops, type Tensor } from "../tensor/index.js";
import type { Activation, ResidualStep, RmsNorm, Surroundings } from "./architecture.js";
import type { Block, Scope } from "./blocks/block.js";
import type { ParameterSpec } from "./dimensions.js";
import { type DecoderSpec, type Layer, type NamedBlock, namesOf, type Residual } from "./spec.js";

/** Where a block is: the prefix of its parameters' names, and its layer and name for taps. */
interface Place {
  readonly parameters: string;
  readonly layer: number | undefined;
  readonly block: string;
}

/** The scope of a block. */
export function scopeOf(
  spec: DecoderSpec,
  { g, weights, layout, tap }: Surroundings,
  { parameters, layer, block }: Place,
): Scope {
  const { batch, seq, forest } = layout;
  return {
    g,
    batch,
    seq,
    longest: forest === undefined ? seq : Math.min(forest.longest, spec.maxPositions),
    forest,
    weight: (name) => weights(`${parameters}.${name}`),
    tap: (name, tensor) => tap(activationOf(layer, `${block}.${name}`, tensor)),
  };
}

/** The name of a tap in a layer. */
export const tapOf = (layer: number, local: string): string => `layers.${layer}.${local}`;

/** A tapped activation. */
export const activationOf = (layer: number | undefined, local: string, tensor: Tensor): Activation => ({
  name: layer === undefined ? local : tapOf(layer, local),
  layer,
  local,
  tensor,
});

/** What a block's first matrices multiply: the output of the norm before it, or its own input. */
export const inputTap = (layer: number, norm: NamedBlock | undefined, [name]: NamedBlock): string =>
  norm === undefined ? `${tapOf(layer, name)}.input` : `${tapOf(layer, norm[0])}.output`;

/** sum + scale · after(block(norm(x))). */
function residualForward(
  { norm, block, after, scale }: Residual,
  scopeOfBlock: (name: string) => Scope,
  x: Tensor,
  sum: Tensor,
): Tensor {
  const scope = scopeOfBlock(block[0]);
  const { g } = scope;
  const normed = norm === undefined ? x : norm[1].forward(scopeOfBlock(norm[0]), x);
  if (norm === undefined) scope.tap("input", x);
  const y = block[1].forward(scope, normed);
  const z = after === undefined ? y : after[1].forward(scopeOfBlock(after[0]), y);
  return ops.add(g, sum, scale === undefined ? z : ops.scale(g, z, { factor: scale }));
}

const scopesOfLayer = (spec: DecoderSpec, layer: number, surroundings: Surroundings) => (block: string) =>
  scopeOf(spec, surroundings, {
    parameters: `${namesOf(spec).layers}.${layer}.${block}`,
    layer,
    block,
  });

/** A layer's output. input: [rows, hidden] */
export function layerForward(
  spec: DecoderSpec,
  { residuals, parallel }: Layer,
  layer: number,
  surroundings: Surroundings,
  input: Tensor,
): Tensor {
  const scopes = scopesOfLayer(spec, layer, surroundings);
  return residuals.reduce((sum, residual) => residualForward(residual, scopes, parallel ? input : sum, sum), input);
}

/** The gain of a norm over the model's width, where it is an RMS norm. @param name of the norm in checkpoints */
export const rmsNormOf = (norm: Block, name: string): RmsNorm | undefined =>
  norm.rmsGainOffset === undefined ? undefined : { gain: `${name}.weight`, offset: norm.rmsGainOffset };

/** The residual steps of all layers, in the order of computation. */
export const residualSteps = (spec: DecoderSpec, parameters: readonly ParameterSpec[]): ResidualStep[] =>
  spec.layers.flatMap((layer, i) => {
    const own = parameters.filter((parameter) => parameter.layer === i);
    return layer.residuals.map((residual) => residualStep(spec, i, residual, own));
  });

function residualStep(
  spec: DecoderSpec,
  layer: number,
  residual: Residual,
  parameters: readonly ParameterSpec[],
): ResidualStep {
  const { norm, block, after, scale = 1 } = residual;
  const prefix = `${namesOf(spec).layers}.${layer}`;
  const input = inputTap(layer, norm, block);
  const own = parameters.filter(({ local }) => local.startsWith(`${block[0]}.`));
  const matrices = own.filter(({ axes }) => axes.length === 2);
  const writer = matrices.find((parameter) => parameter.axes[0] === "hidden");
  if (writer?.input === undefined)
    throw new FormatError(`${prefix}.${block[0]} has no matrix that writes to the stream`);
  return {
    layer,
    input,
    norm: norm && rmsNormOf(norm[1], `${prefix}.${norm[0]}`),
    readers: matrices.filter((parameter) => parameter.input === input && parameter.axes[1] === "hidden"),
    writer: { ...writer, input: writer.input },
    writerBias: own.find(({ axes }) => axes.length === 1 && axes[0] === "hidden"),
    isNormedAfter: after !== undefined,
    scale,
    isParallel: spec.layers[layer]?.parallel ?? false,
    parameters: parameters.filter(({ local }) =>
      [norm, block, after].some((named) => named !== undefined && local.startsWith(`${named[0]}.`)),
    ),
    forward: (surroundings, { layerInput, sum }) => {
      const x = spec.layers[layer]?.parallel ? layerInput : sum;
      return residualForward(residual, scopesOfLayer(spec, layer, surroundings), x, sum);
    },
  };
}
