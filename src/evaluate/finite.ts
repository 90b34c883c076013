import { areFinite } from "../checkpoint/finite.js";
import type { Backend } from "../ggml/device.js";
import { type Model, StreamedWeights, type Tap, type Weights } from "../models/index.js";
import { CoppiceError } from "../system/errors.js";
import { type ComputeType, Graph, type Tensor } from "../tensor/index.js";

/** A model and its weights on a device, to be read. */
export interface ReadableWeights {
  readonly model: Model;
  readonly get: Weights;
}

/** A forward pass whose outputs may not be finite. */
export interface SuspectPass {
  readonly backend: Backend;
  readonly weights: ReadableWeights | StreamedWeights;
  /** Ids of sequences of equal length, one after the other. */
  readonly tokens: Int32Array;
  /** How many sequences there are. */
  readonly batch: number;
  readonly computeType: ComputeType;
  /** The layers that were run, in order; all by default. */
  readonly layers?: readonly number[] | undefined;
}

/** @throws CoppiceError when sums over activations are not finite. @param what was summed, for the message */
export function checkSums(what: string, sums: Float32Array): void {
  if (!areFinite(sums))
    throw new CoppiceError(
      `${what} are not finite (NaN or infinite) on the calibration data: the model's weights are damaged, or its activations overflow f32`,
    );
}

/** The name of the first layer whose output is not finite; undefined when all outputs are. */
export async function overflowingLayer(
  pass: SuspectPass & { readonly weights: ReadableWeights },
): Promise<string | undefined> {
  const { backend, weights, tokens, batch, computeType, layers } = pass;
  const g = new Graph(backend, { computeType });
  try {
    const input = g.input("tokens", "i32", [batch, tokens.length / batch]);
    const outputs: [string, Tensor][] = [];
    const tap: Tap = ({ layer, local, tensor }) => {
      if (layer !== undefined && local === "output") outputs.push([`layers.${layer}`, g.output(tensor)]);
      if (layer === undefined && local === "embed_tokens.output") outputs.push(["embed_tokens", g.output(tensor)]);
    };
    const { hidden } = weights.model.forward(g, weights.get, input, { layers, tap });
    outputs.push(["norm", g.output(hidden)]);
    g.write(input, tokens);
    await g.run();
    return outputs.find(([, tensor]) => !g.read(tensor).every(Number.isFinite))?.[0];
  } finally {
    g.free();
  }
}

/** The error for a model whose outputs are not finite, naming the first such layer. */
export async function overflowError(who: string, pass: SuspectPass): Promise<CoppiceError> {
  const { weights } = pass;
  // where weights are streamed, each layer's outputs were looked at
  return notFinite(who, weights instanceof StreamedWeights ? undefined : await overflowingLayer({ ...pass, weights }));
}

/** The same where the layer is known; undefined for the output head. */
export const notFinite = (who: string, layer: string | undefined): CoppiceError =>
  new CoppiceError(
    `${who} gives outputs that are not finite (NaN or infinite), first ${layer === undefined ? "in its output head" : `after ${layer}`}: ` +
      "its weights are damaged, or their products overflow",
  );
