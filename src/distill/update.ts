import type { Backend } from "../ggml/device.js";
import { AdamW, Graph, gradients, ops, type Tensor, TensorStore } from "../tensor/index.js";
import { type SavedTensor, savedMoments, savedTensors } from "./saved-tensor.js";
import type { TrainOptions } from "./train-options.js";

/** How an optimizer step follows from the gradients of micro-batches. */
export interface Update {
  /** Prepares a step. @param stepNumber counts from 1 */
  readonly begin: (learningRate: number, stepNumber: number) => void;
  /** Computes the gradients of a micro-batch. @param isLast whether it is the step's last one */
  readonly compute: (isLast: boolean) => Promise<void>;
  /** Changes the weights. @returns the gradient's global norm before clipping */
  readonly finish: () => Promise<number>;
  /** The optimizer's state. */
  readonly saved: () => SavedTensor[];
  /** The graphs that a step runs, beside that of the micro-batches. */
  readonly graphs: readonly Graph[];
  readonly free: () => void;
}

/** What an update is built from. */
export interface UpdateInputs {
  readonly backend: Backend;
  /** The graph that computes a micro-batch's loss, to be completed and compiled. */
  readonly g: Graph;
  readonly loss: Tensor;
  readonly weights: readonly Tensor[];
  readonly options: TrainOptions;
}

/** An update from a single micro-batch, in the same graph. */
export function wholeUpdate({ backend, g, loss, weights, options }: UpdateInputs): Update {
  const state = new TensorStore(backend, AdamW.stateTensors(weights.length));
  const optimizer = new AdamW(state, weights, options, { state: options.optimizerState });
  state.allocate();
  // Every update waits for the norm and so for all gradients: no weight changes before its last use.
  const norm = g.output(optimizer.apply(g, gradients(g, loss, weights)));
  return {
    begin: (learningRate, stepNumber) => optimizer.prepare(learningRate, stepNumber),
    compute: () => g.run(),
    finish: async () => g.read(norm)[0] ?? Number.NaN,
    saved: () => savedMoments(state, optimizer),
    graphs: [],
    free: () => state.free(),
  };
}

/**
 * The same, but each weight changes as soon as its gradient is complete, whose memory is free then. Gradients are scaled down by the
 * global norm of the step before, since that of this step is known only at its end.
 */
export function freedUpdate({ backend, g, loss, weights, options }: UpdateInputs): Update {
  const state = new TensorStore(backend, AdamW.stateTensors(weights.length) + 1);
  const optimizer = new AdamW(state, weights, options, { state: options.optimizerState });
  const lastNorm = state.add("adamw.norm", [1], "f32");
  state.allocate();
  const factor = optimizer.factorFor(g, lastNorm); // 1 in the first step, whose size does not depend on the gradient's
  const squares: Tensor[] = [];
  gradients(g, loss, weights, (weight, gradient) => {
    squares.push(optimizer.squares(g, [gradient], [weight]));
    optimizer.step(g, weight, gradient, factor);
  });
  const norm = g.withoutGradient(() =>
    ops.sqrt(
      g,
      squares.reduce((total, term) => ops.add(g, total, term)),
    ),
  );
  g.output(norm);
  g.effect(g.withoutGradient(() => ops.assign(g, norm, lastNorm)));
  return {
    begin: (learningRate, stepNumber) => optimizer.prepare(learningRate, stepNumber),
    compute: () => g.run(),
    finish: async () => g.read(norm)[0] ?? Number.NaN,
    saved: () => [...savedMoments(state, optimizer), ...savedTensors(state, [lastNorm])],
    graphs: [],
    free: () => state.free(),
  };
}

/** Sums of gradients over micro-batches. */
export interface GradientSums {
  /** One for each weight, in their order. */
  readonly store: TensorStore;
  /** The steps that complete them, in the order in which they are computed. */
  readonly completed: readonly { readonly sum: Tensor; readonly step: Tensor }[];
}

/** Adds a micro-batch's share of the batch's mean gradient to sums that last, each as soon as it is known. */
export function sumGradients({ backend, g, loss, weights, options }: UpdateInputs): GradientSums {
  const factor = options.microBatchSize / options.batchSize;
  const store = new TensorStore(backend, weights.length);
  const sums = new Map(
    weights.map((weight) => [
      weight,
      store.add(`${weight.name}.gradient`, weight.shape, "f32", { place: weight.place }),
    ]),
  );
  store.allocate();
  const completed: { sum: Tensor; step: Tensor }[] = [];
  gradients(g, loss, weights, (weight, gradient) => {
    const sum = sums.get(weight) as Tensor;
    const step = ops.assign(g, ops.add(g, ops.scale(g, gradient, { factor }), sum), sum);
    g.effect(step);
    completed.push({ sum, step });
  });
  return { store, completed };
}

/** An update from the sums over several micro-batches. */
export function accumulatedUpdate(inputs: UpdateInputs): Update {
  const { backend, g, weights, options } = inputs;
  const state = new TensorStore(backend, AdamW.stateTensors(weights.length));
  const optimizer = new AdamW(state, weights, options, { state: options.optimizerState });
  state.allocate();
  const { store: sums } = sumGradients(inputs);
  const update = new Graph(backend);
  const norm = update.output(optimizer.apply(update, [...sums]));
  update.compile();
  return {
    begin: (learningRate, stepNumber) => {
      optimizer.prepare(learningRate, stepNumber);
      sums.clear();
    },
    compute: () => g.run(),
    finish: async () => {
      await update.run();
      return update.read(norm)[0] ?? Number.NaN;
    },
    saved: () => savedMoments(state, optimizer),
    graphs: [update],
    free: () => {
      update.free();
      sums.free();
      state.free();
    },
  };
}
