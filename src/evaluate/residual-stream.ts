import type { TensorToStream } from "../checkpoint/safetensors.js";
import type { TensorSource } from "../checkpoint/tensor-source.js";
import { checkVocabulary, type Sequences } from "../data/index.js";
import { toFloat32 } from "../ggml/convert.js";
import type { Backend } from "../ggml/device.js";
import { bytesOf, type FloatDType } from "../ggml/dtype.js";
import {
  type Activation,
  type Layout,
  loadWeights,
  type ModelTensors,
  type ModelWeights,
  type ParameterSpec,
  type ResidualStep,
  type Surroundings,
  sizeOf,
  type Tap,
  type Weights,
} from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { required } from "../system/errors.js";
import { type ComputeType, Graph, ops, type Tensor } from "../tensor/index.js";
import { spreadBatches } from "./batches.js";
import { notFinite } from "./finite.js";
import { HiddenStates } from "./hidden-states.js";
import type { Team } from "./team.js";

/** The rows of each batch. */
export interface PassLayout {
  readonly batch: number;
  readonly seq: number;
  /** Of forests, how many tokens a sequence has at most. */
  readonly longest?: number | undefined;
}

/** Calibration data that goes through models step by step, with the weights of one step in memory at a time. */
export interface Passage {
  readonly backend: Backend;
  readonly computeType: ComputeType;
  /** Each batch is `batch` sequences of `seq` tokens. */
  readonly layout: PassLayout;
  /** For batches of one sequence that are forests of sequences with shared beginnings. */
  readonly forestOf?: ((batch: number) => ops.ForestLayout) | undefined;
  /** The token ids of each batch. */
  readonly batches: readonly Int32Array[];
  /** A model's hidden states are kept in memory up to so many bytes, else on disk. */
  readonly memoryBytes: number;
  /** The processes that share the data, where `batches` are only this one's. */
  readonly team?: Team | undefined;
  /** When aborted, it ends with the signal's reason before the next batch. */
  readonly signal?: AbortSignal | undefined;
}

export interface PassageOptions {
  readonly computeType: ComputeType;
  /** How many sequences are used at most. */
  readonly samples: number;
  readonly batchSize: number;
  readonly memoryBytes: number;
  readonly signal?: AbortSignal | undefined;
}

/** Chooses sequences spread evenly over the data. @throws CoppiceError when it has tokens beyond the vocabulary */
export function passageOf(backend: Backend, sequences: Sequences, vocabSize: number, options: PassageOptions): Passage {
  const { computeType, samples, batchSize, memoryBytes, signal } = options;
  checkVocabulary(sequences.stream, vocabSize);
  const numbers = spreadBatches(sequences, samples, batchSize);
  return {
    backend,
    computeType,
    layout: { batch: elementAt(numbers, 0).length, seq: sequences.length },
    batches: numbers.map((batch) => sequences.batch(batch).tokens),
    memoryBytes,
    signal,
  };
}

/** The rows of a batch. */
export const rowsOfBatch = ({ layout }: Pick<Passage, "layout">): number => layout.batch * layout.seq;

/** The layout of a graph's rows, and what fills it before each batch. */
export function layoutIn(
  g: Graph,
  { layout, forestOf }: Pick<Passage, "layout" | "forestOf">,
): { readonly layout: Layout; readonly write: (batch: number) => void } {
  if (forestOf === undefined) return { layout, write: () => {} };
  const forest = ops.forestInput(g, layout.seq, layout.longest);
  return { layout: { ...layout, forest }, write: (batch) => ops.writeForest(g, forest, forestOf(batch)) };
}

/** A graph's tensor and the hidden states that it holds, batch by batch. */
export type Wire = readonly [tensor: Tensor, states: HiddenStates];

/** What a graph reads and writes for each batch. */
export interface Wiring {
  readonly reads: readonly Wire[];
  readonly writes?: readonly Wire[] | undefined;
  readonly beforeBatch?: ((batch: number) => void) | undefined;
  readonly afterBatch?: ((batch: number) => void | Promise<void>) | undefined;
}

/** Builds a graph and runs it on every batch. */
export async function overBatches(
  { backend, computeType, batches, signal }: Passage,
  build: (g: Graph) => Wiring,
): Promise<void> {
  const g = new Graph(backend, { computeType });
  try {
    const { reads, writes = [], beforeBatch, afterBatch } = build(g);
    for (const [tensor] of writes) g.output(tensor);
    for (const i of batches.keys()) {
      signal?.throwIfAborted();
      for (const [tensor, states] of reads) g.write(tensor, states.get(i));
      beforeBatch?.(i);
      await g.run();
      await afterBatch?.(i);
      for (const [tensor, states] of writes) states.set(i, g.read(tensor));
    }
  } finally {
    g.free();
  }
}

/** A step of a model, recorded in a graph. */
export interface RecordedStep {
  /** The residual stream before it and after it, [rows, hidden]. */
  readonly before: Tensor;
  readonly after: Tensor;
  /** What the step's norm reads, where it has one. */
  readonly blockInput: Tensor;
  /** What the step's readers multiply, [rows, hidden]. */
  readonly readersInput: Tensor;
  /** What its writer multiplies, [rows, inputs]. */
  readonly writerInput: Tensor;
  readonly reads: readonly Wire[];
}

/** What looks on while a layer runs. */
export interface LayerObserver {
  /** Called with the layer's activations, while its graph is built. */
  readonly tap?: ((g: Graph, activation: Activation) => void) | undefined;
  readonly afterBatch?: (() => void) | undefined;
  /** Who is named in messages. */
  readonly who?: string | undefined;
}

/** States of a model at a time: before its layer, before its step and after it. */
const STATES_AT_ONCE = 3;

/** The residual stream of a model between two of its steps, for all batches. Free it after use. */
export class ResidualStream {
  private readonly all: HiddenStates[] = [];
  private readonly spare: HiddenStates[] = [];
  private sum: HiddenStates;
  private layerInput: HiddenStates;

  private constructor(
    private readonly passage: Passage,
    private readonly tensors: ModelTensors,
    private readonly dtype: FloatDType,
  ) {
    this.sum = this.take();
    this.layerInput = this.sum;
  }

  /** The stream before a model's first layer. @param dtype of matrices on the device */
  static async before(
    passage: Passage,
    tensors: ModelTensors,
    dtype: FloatDType = passage.computeType,
  ): Promise<ResidualStream> {
    const stream = new ResidualStream(passage, tensors, dtype);
    try {
      await stream.embed();
      return stream;
    } catch (error) {
      stream.free();
      throw error;
    }
  }

  /** The stream where it was when it was saved. @returns undefined when what was saved is of other data or another model */
  static restored(
    passage: Passage,
    tensors: ModelTensors,
    saved: { readonly source: TensorSource; readonly name: string },
    dtype: FloatDType = passage.computeType,
  ): ResidualStream | undefined {
    const stream = new ResidualStream(passage, tensors, dtype);
    const { source, name } = saved;
    const isOurs = (tensor: string) => source.tensors.get(tensor)?.shape.join() === stream.savedShape.join();
    if (!isOurs(`${name}.sum`)) {
      stream.free();
      return undefined;
    }
    const read = (states: HiddenStates, tensor: string) => {
      for (const i of passage.batches.keys())
        states.set(i, toFloat32(passage.backend.functions, source.readRows(tensor, i, i + 1), "f32").slice());
    };
    try {
      read(stream.sum, `${name}.sum`);
      if (isOurs(`${name}.layerInput`)) {
        stream.layerInput = stream.take();
        read(stream.layerInput, `${name}.layerInput`);
      }
      return stream;
    } catch (error) {
      stream.free();
      throw error;
    }
  }

  /** A stream of its own at the same place. */
  fork(): ResidualStream {
    const copy = new ResidualStream(this.passage, this.tensors, this.dtype);
    try {
      this.copyStates(this.sum, copy.sum);
      if (this.readsLayerInput) {
        copy.layerInput = copy.take();
        this.copyStates(this.layerInput, copy.layerInput);
      }
      return copy;
    } catch (error) {
      copy.free();
      throw error;
    }
  }

  private copyStates(from: HiddenStates, to: HiddenStates): void {
    for (const i of this.passage.batches.keys()) to.set(i, from.get(i).slice());
  }

  /** Its states, to be saved in a file. */
  saved(name: string): TensorToStream[] {
    const tensor = (own: string, states: HiddenStates): TensorToStream => {
      const { batches } = this.passage;
      return {
        name: `${name}.${own}`,
        dtype: "f32",
        shape: this.savedShape,
        async *chunks() {
          for (const i of batches.keys()) yield bytesOf(states.get(i));
        },
      };
    };
    return [tensor("sum", this.sum), ...(this.readsLayerInput ? [tensor("layerInput", this.layerInput)] : [])];
  }

  /** Whether further steps read the layer's input, and not only what came of it. */
  private get readsLayerInput(): boolean {
    return this.layerInput !== this.sum && this.tensors.model.steps.some(({ isParallel }) => isParallel);
  }

  private get savedShape(): [batches: number, length: number] {
    return [this.passage.batches.length, rowsOfBatch(this.passage) * this.width];
  }

  private async embed(): Promise<void> {
    const { passage, tensors } = this;
    const { model } = tensors;
    const weights = this.weightsOf(
      model.parameters.filter(({ name }) => name === model.embedding || name === model.positions),
    );
    const { batch, seq } = passage.layout;
    const g = new Graph(passage.backend, { computeType: passage.computeType });
    try {
      const tokens = g.input("tokens", "i32", [batch, seq]);
      const { layout, write } = layoutIn(g, passage);
      const embedded = g.output(model.embed({ g, weights: weights.get, layout, tap: () => {} }, tokens));
      for (const [i, ids] of passage.batches.entries()) {
        g.write(tokens, ids);
        write(i);
        await g.run();
        this.sum.set(i, g.read(embedded));
      }
    } finally {
      g.free();
      weights.free();
    }
  }

  /** Loads parameters onto the device, to be read only. */
  weightsOf(only: readonly ParameterSpec[]): ModelWeights {
    const { passage, tensors, dtype } = this;
    return loadWeights(passage.backend, tensors.model, tensors.source, { dtype, trainable: false, only });
  }

  /** Loads what follows the last layer: norms and the head. */
  lastWeights(): ModelWeights {
    const { model } = this.tensors;
    const isEmbedding = ({ name }: ParameterSpec) => name === model.embedding || name === model.positions;
    return this.weightsOf(
      model.parameters.filter((spec) => spec.layer === undefined && (spec.name === model.head || !isEmbedding(spec))),
    );
  }

  /** The stream as an input of a graph, [rows, hidden]. */
  input(g: Graph, name: string): Wire {
    return [g.input(name, "f32", [rowsOfBatch(this.passage), this.width]), this.sum];
  }

  /** The same where a step reads it: before the layer, if its steps are parallel. */
  inputOf(g: Graph, step: ResidualStep, name: string): Wire {
    const [tensor] = this.input(g, name);
    return [tensor, step.isParallel ? this.layerInput : this.sum];
  }

  /** Records the next step in a graph. @param name tells the graph's models apart */
  record(g: Graph, step: ResidualStep, weights: Weights, name: string): RecordedStep {
    const before = this.input(g, name);
    const layerInput: Wire =
      step.isParallel && this.layerInput !== this.sum
        ? [g.input(`${name}, layer input`, "f32", before[0].shape), this.layerInput]
        : before;
    const taps = new Map<string, Tensor>();
    const tap: Tap = ({ name: tapName, tensor }) => void taps.set(tapName, tensor);
    const surroundings = { g, weights, layout: this.passage.layout, tap };
    const after = step.forward(surroundings, { layerInput: layerInput[0], sum: before[0] });
    const tapped = (tapName: string): Tensor =>
      required(taps.get(tapName), `${this.tensors.model.architecture} has no activation ${tapName}`);
    return {
      before: before[0],
      blockInput: step.isParallel ? layerInput[0] : before[0],
      after,
      readersInput: tapped(step.input),
      writerInput: tapped(step.writer.input),
      reads: layerInput === before ? [before] : [before, layerInput],
    };
  }

  /** States for a step's result, to be given to `advance`. */
  take(): HiddenStates {
    const known = this.spare.pop();
    if (known !== undefined) return known;
    const { batches, memoryBytes } = this.passage;
    const states = new HiddenStates({
      length: rowsOfBatch(this.passage) * this.width,
      batches: batches.length,
      memoryBytes: memoryBytes / STATES_AT_ONCE,
    });
    this.all.push(states);
    return states;
  }

  /** Gives states that are not needed any more back. */
  giveBack(states: HiddenStates): void {
    this.spare.push(states);
  }

  /** Goes on to what was written after a step. */
  advance(step: ResidualStep, written: HiddenStates): void {
    if (!step.isParallel || this.sum !== this.layerInput) this.spare.push(this.sum);
    this.sum = written;
    const { steps } = this.tensors.model;
    if (steps[steps.indexOf(step) + 1]?.layer === step.layer) return;
    if (step.isParallel) this.spare.push(this.layerInput);
    this.layerInput = written;
  }

  /** Runs a step with the model's own weights. */
  async runOwn(step: ResidualStep): Promise<void> {
    const weights = this.weightsOf(step.parameters);
    try {
      await this.run(step, weights.get);
    } finally {
      weights.free();
    }
  }

  /** Runs a step. */
  async run(step: ResidualStep, weights: Weights): Promise<void> {
    const written = this.take();
    await overBatches(this.passage, (g) => {
      const { after, reads } = this.record(g, step, weights, "stream");
      return { reads, writes: [[after, written]] };
    });
    this.advance(step, written);
  }

  /**
   * Runs a whole layer.
   * @throws CoppiceError when its outputs are not finite
   */
  async runLayer(layer: number, { tap, afterBatch, who = "the model" }: LayerObserver = {}): Promise<void> {
    const { model } = this.tensors;
    const weights = this.weightsOf(model.parameters.filter((spec) => spec.layer === layer));
    const written = this.take();
    try {
      await overBatches(this.passage, (g) => {
        const before = this.input(g, "stream");
        const { layout, write } = layoutIn(g, this.passage);
        const surroundings: Surroundings = { g, weights: weights.get, layout, tap: (one) => tap?.(g, one) };
        const after = model.layer(surroundings, layer, before[0]);
        const check = g.output(ops.sum(g, after));
        const checked = () => {
          if (!Number.isFinite(g.read(check)[0])) throw notFinite(who, `layers.${layer}`);
          afterBatch?.();
        };
        return { reads: [before], writes: [[after, written]], beforeBatch: write, afterBatch: checked };
      });
    } finally {
      weights.free();
    }
    this.giveBack(this.sum);
    this.sum = written;
    this.layerInput = written;
  }

  /** Values of a row. */
  get width(): number {
    return sizeOf("hidden", this.tensors.model.sizes);
  }

  free(): void {
    for (const states of this.all) states.free();
  }
}
