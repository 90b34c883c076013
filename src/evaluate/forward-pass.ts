import type { Backend } from "../ggml/device.js";
import {
  type Activation,
  type ForwardResult,
  type ModelWeights,
  type PassWeights,
  StreamedWeights,
} from "../models/index.js";
import { type ComputeType, Graph, type ops } from "../tensor/index.js";
import { layoutIn, overBatches, type Passage, type PassLayout, ResidualStream } from "./residual-stream.js";

/** Sequences that go through a model. */
export interface PassData {
  /** Each batch is `batch` sequences of `seq` tokens. */
  readonly layout: PassLayout;
  readonly batches: number;
  /** The token ids of a batch. */
  readonly tokensOf: (batch: number) => Int32Array;
  /** For batches of one sequence that are forests of sequences with shared beginnings. */
  readonly forestOf?: ((batch: number) => ops.ForestLayout) | undefined;
}

/** What is computed beside a forward pass. */
export interface Observer {
  /** Called with every activation that has a name, while its graph is built. */
  readonly tap?: ((g: Graph, activation: Activation) => void) | undefined;
  /** Adds what follows the last layer to its graph. */
  readonly last?: ((g: Graph, result: ForwardResult) => LastPart) | undefined;
}

/** Work before and after each batch of what follows the last layer. */
export interface LastPart {
  /** Writes a batch's inputs. */
  readonly write?: ((batch: number) => void) | undefined;
  /** Reads its results. */
  readonly read?: ((batch: number) => void | Promise<void>) | undefined;
}

export interface PassOptions {
  readonly computeType: ComputeType;
  /** The layers to run, in order; all by default. */
  readonly layers?: readonly number[] | undefined;
  /** Who is named in messages; "the model" by default. */
  readonly who?: string | undefined;
  /** When aborted, the pass ends with an error before its next batch. */
  readonly signal?: AbortSignal | undefined;
  /** Where weights are streamed: keeps what was done after each layer, and is gone on from. */
  readonly progress?: PassProgress | undefined;
  /** Called with the share of the pass that is done. */
  readonly onProgress?: ((share: number) => void) | undefined;
}

/** A streamed pass that can be gone on with. */
export interface PassProgress {
  /** The stream after the layers that were run before, and how many; undefined to begin. */
  readonly restore: (
    passage: Passage,
    weights: StreamedWeights,
  ) => { readonly layers: number; readonly stream: ResidualStream } | undefined;
  readonly save: (layers: number, stream: ResidualStream) => Promise<void>;
}

/**
 * Runs batches through a model, forward only: in one graph, or where its weights are streamed a layer at a time, all batches through
 * each, with the same results.
 * @throws CoppiceError when a streamed layer's outputs are not finite, naming it
 */
export const forwardPass = (
  backend: Backend,
  weights: PassWeights,
  data: PassData,
  observer: Observer,
  options: PassOptions,
): Promise<void> => {
  const pass = { backend, data, observer, options };
  return weights instanceof StreamedWeights ? streamedPass(pass, weights) : wholePass(pass, weights);
};

interface Pass {
  readonly backend: Backend;
  readonly data: PassData;
  readonly observer: Observer;
  readonly options: PassOptions;
}

async function wholePass({ backend, data, observer, options }: Pass, weights: ModelWeights): Promise<void> {
  const { computeType, layers, signal, onProgress } = options;
  const { batch, seq } = data.layout;
  const g = new Graph(backend, { computeType });
  try {
    const tokens = g.input("tokens", "i32", [batch, seq]);
    const tap = (activation: Activation) => observer.tap?.(g, activation);
    const { layout, write } = layoutIn(g, data);
    const result = weights.model.forward(g, weights.get, tokens, { layers, forest: layout.forest, tap });
    const last = observer.last?.(g, result);
    for (let i = 0; i < data.batches; i++) {
      signal?.throwIfAborted();
      g.write(tokens, data.tokensOf(i));
      write(i);
      last?.write?.(i);
      await g.run();
      await last?.read?.(i);
      onProgress?.((i + 1) / data.batches);
    }
  } finally {
    g.free();
  }
}

async function streamedPass({ backend, data, observer, options }: Pass, weights: StreamedWeights): Promise<void> {
  const { model, tensors, dtype, statesBytes: memoryBytes } = weights;
  const { computeType, layers = [...Array(model.layerCount).keys()], who, signal, progress, onProgress } = options;
  const batches = Array.from({ length: data.batches }, (_, i) => data.tokensOf(i));
  const passage = { backend, computeType, layout: data.layout, forestOf: data.forestOf, batches, memoryBytes };
  const restored = progress?.restore(passage, weights);
  let done = (restored?.layers ?? 0) * data.batches;
  const advance = () => {
    signal?.throwIfAborted();
    onProgress?.(++done / (data.batches * (layers.length + 1)));
  };
  const stream = restored?.stream ?? (await ResidualStream.before(passage, tensors, dtype));
  try {
    for (const [i, layer] of layers.entries()) {
      if (i < (restored?.layers ?? 0)) continue;
      await stream.runLayer(layer, { tap: observer.tap, afterBatch: advance, who });
      await progress?.save(i + 1, stream);
    }
    const last = stream.lastWeights();
    try {
      await overBatches(passage, (g) => {
        const wire = stream.input(g, "stream");
        const tap = (activation: Activation) => observer.tap?.(g, activation);
        const { layout, write: writeLayout } = layoutIn(g, data);
        const result = model.finish({ g, weights: last.get, layout, tap }, wire[0]);
        const { write, read } = observer.last?.(g, result) ?? {};
        const beforeBatch = (batch: number) => {
          writeLayout(batch);
          write?.(batch);
        };
        const afterBatch = async (batch: number) => {
          await read?.(batch);
          advance();
        };
        return { reads: [wire], beforeBatch, afterBatch };
      });
    } finally {
      last.free();
    }
  } finally {
    stream.free();
  }
}
