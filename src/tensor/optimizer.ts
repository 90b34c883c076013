import { CoppiceError } from "../system/errors.js";
import type { Graph } from "./graph.js";
import { defineOp, type Op } from "./op.js";
import { add, clamp, div, dotLast, mul, sqrt, square, sum } from "./ops/elementwise.js";
import type { RowRange } from "./ops/head.js";
import { rowsOf } from "./ops/shape.js";
import type { TensorStore } from "./store.js";
import { elementCount, rowCount, type Shape, type Tensor } from "./tensor.js";

/** AdamW's settings (Loshchilov & Hutter 2019, algorithm 2), without the learning rate. */
export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  /** Decoupled decay per unit of learning rate, for matrices only: gains and biases do not decay. */
  readonly weightDecay: number;
  /** Gradients are scaled down to this global norm (Pascanu et al. 2013, algorithm 1). */
  readonly clipNorm: number;
}

export const ADAMW_DEFAULTS: AdamWOptions = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clipNorm: 1 };

const step: Op<[weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, settings: Tensor]> = defineOp("adamw", 5, {
  shape: ([weight]) => weight.shape,
  build: ({ f, context }, [weight, gradient, m, v, settings]) =>
    f.ggml_opt_step_adamw(context, weight.handle, gradient.handle, m.handle, v.handle, settings.handle),
});

/** The same with a scaled gradient, in one pass over memory. */
const scaledStep: Op<[weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, settings: Tensor, factor: Tensor]> =
  defineOp("adamw", 6, {
    shape: ([weight]) => weight.shape,
    kernel: ([weight]) => ({ name: "adamw", inPlace: weight }),
  });

/** The same with moments of 8 bits. */
const packedStep: Op<
  [
    weight: Tensor,
    gradient: Tensor,
    mCodes: Tensor,
    vCodes: Tensor,
    mScales: Tensor,
    vScales: Tensor,
    settings: Tensor,
    factor: Tensor,
  ]
> = defineOp("adamw8", 8, {
  shape: ([weight]) => weight.shape,
  kernel: ([weight]) => ({ name: "adamw8", inPlace: weight }),
});

/** Moments of 8 bits have a scale for so many numbers; native/moments.c has it, too. */
const BLOCK = 256;

/** How many partial sums the kernel computes. */
const SQUARE_PARTS = 64;

const partialSquares: Op<[x: Tensor]> = defineOp("sumSquares", 1, {
  shape: () => [SQUARE_PARTS],
  kernel: () => ({ name: "sum_squares" }),
});

function sumSquares(g: Graph, x: Tensor): Tensor {
  if (g.backend.kernels !== undefined) return sum(g, partialSquares(g, x));
  if (x.shape.length !== 2) return sum(g, square(g, x));
  const sums = rowRangesOf(rowCount(x)).map((range) => {
    const rows = rowsOf(g, x, range);
    return sum(g, dotLast(g, rows, rows));
  });
  return sums.reduce((total, part) => add(g, total, part));
}

/** CUDA multiplies at most so many matrices at a time: dot products of rows are one each. */
const MOST_PRODUCTS = 65535;

const rowRangesOf = (rows: number): RowRange[] =>
  Array.from({ length: Math.ceil(rows / MOST_PRODUCTS) }, (_, i) => ({
    from: i * MOST_PRODUCTS,
    to: Math.min(rows, (i + 1) * MOST_PRODUCTS),
  }));

/** How moments are kept: as they are, or in 8 bits by blocks (after Dettmers et al. 2022), which takes our own kernels. */
export type OptimizerState = "f32" | "8bit";

export interface AdamWSetup {
  /** f32 by default. */
  readonly state?: OptimizerState | undefined;
  /** Whether a weight decays: matrices by default. */
  readonly decays?: ((weight: Tensor) => boolean) | undefined;
}

/** AdamW's state on the device: both moments of each weight, and the settings of the next step. */
export class AdamW {
  private readonly decayed: Tensor;
  private readonly plain: Tensor;
  private readonly state: OptimizerState;
  private readonly decays: (weight: Tensor) => boolean;

  /**
   * Declares its state in `store`, which must be allocated afterwards.
   * @throws CoppiceError when the device has no kernel for moments of 8 bits
   */
  constructor(
    private readonly store: TensorStore,
    private readonly weights: readonly Tensor[],
    private readonly options: AdamWOptions,
    { state = "f32", decays = ({ shape }) => shape.length > 1 }: AdamWSetup = {},
  ) {
    if (state === "8bit" && store.backend.kernels === undefined)
      throw new CoppiceError(
        `${store.backend.device.name} has no kernel for an optimizer's state of 8 bits: leave out --optimizer-state`,
      );
    this.state = state;
    this.decays = decays;
    this.decayed = store.add("adamw.settings.decayed", [this.settingCount], "f32");
    this.plain = store.add("adamw.settings.plain", [this.settingCount], "f32");
    for (const weight of weights)
      for (const [name, shape] of momentsOf(weight, state))
        store.add(`${weight.name}.${name}`, shape, "f32", { place: weight.place });
  }

  /** ggml's step checks that it has seven. */
  private get settingCount(): number {
    return this.state === "f32" ? 7 : 8;
  }

  /** Both moments of each weight: all that a later step depends on. */
  get moments(): Tensor[] {
    return this.weights.flatMap((weight) => this.momentsOf(weight));
  }

  /** Those of the moments that hold four codes of 8 bits in the place of each number. */
  get packed(): ReadonlySet<Tensor> {
    if (this.state === "f32") return new Set();
    return new Set(this.weights.flatMap((weight) => this.momentsOf(weight).slice(0, 2)));
  }

  private momentsOf(weight: Tensor): Tensor[] {
    return momentsOf(weight, this.state).map(([name]) => this.store.get(`${weight.name}.${name}`));
  }

  /** How many tensors it declares for a number of weights. */
  static stateTensors = (weights: number): number => 4 * weights + 2;

  /**
   * Adds a step for every weight to a graph.
   * @returns the gradients' global norm before clipping, [1]
   */
  apply(g: Graph, gradients: readonly Tensor[]): Tensor {
    const norm = g.withoutGradient(() => sqrt(g, this.squares(g, gradients)));
    this.update(g, gradients, norm);
    return norm;
  }

  /** The sum of the squares of the gradients of some weights, [1]. */
  squares(g: Graph, gradients: readonly Tensor[], weights: readonly Tensor[] = this.weights): Tensor {
    return g.withoutGradient(() =>
      gradients
        .map((gradient, i) => g.at(weights[i]?.place, () => sumSquares(g, gradient)))
        .reduce((total, term) => add(g, total, term)),
    );
  }

  /** Adds a step for every weight to a graph, with gradients of which the global norm is known. @param norm [1] */
  update(g: Graph, gradients: readonly Tensor[], norm: Tensor): void {
    const factor = this.factorFor(g, norm);
    this.weights.forEach((weight, i) => {
      const gradient = gradients[i];
      if (gradient === undefined) throw new CoppiceError(`${weight.name} has no gradient`);
      this.step(g, weight, gradient, factor);
    });
  }

  /** What gradients of a global norm are multiplied by, [1]: 1 for a norm of 0. */
  factorFor(g: Graph, norm: Tensor): Tensor {
    return g.withoutGradient(() => {
      const limit = g.constant("clip norm", "f32", [1], Float32Array.of(this.options.clipNorm));
      return clamp(g, div(g, limit, norm), { low: 0, high: 1 });
    });
  }

  /** Adds the step of one weight to a graph. @param factor scales the gradient, [1] */
  step(g: Graph, weight: Tensor, gradient: Tensor, factor: Tensor): void {
    const settings = this.decays(weight) ? this.decayed : this.plain;
    const [m, v, mScales, vScales] = this.momentsOf(weight) as [Tensor, Tensor, Tensor, Tensor];
    g.withoutGradient(() => {
      if (this.state === "8bit") g.effect(packedStep(g, weight, gradient, m, v, mScales, vScales, settings, factor));
      else if (g.backend.kernels === undefined) {
        const scaled = g.at(weight.place, () => mul(g, gradient, factor));
        g.effect(step(g, weight, scaled, m, v, settings));
      } else g.effect(scaledStep(g, weight, gradient, m, v, settings, factor));
    });
  }

  /** Sets the learning rate and bias correction of the next step. @param stepNumber counts from 1 */
  prepare(learningRate: number, stepNumber: number): void {
    const { beta1, beta2, epsilon, weightDecay } = this.options;
    const settings = (decay: number) =>
      Float32Array.of(
        learningRate,
        beta1,
        beta2,
        epsilon,
        decay,
        1 / (1 - beta1 ** stepNumber),
        1 / (1 - beta2 ** stepNumber),
        stepNumber,
      ).subarray(0, this.settingCount);
    this.store.write(this.decayed, settings(weightDecay));
    this.store.write(this.plain, settings(0));
  }
}

/** The tensors that hold a weight's moments, by name and shape. Four codes of 8 bits take the place of a number. */
function momentsOf({ shape }: Tensor, state: OptimizerState): [name: string, shape: Shape][] {
  const packed = [Math.ceil(elementCount(shape) / 4)];
  const scales = [Math.ceil(elementCount(shape) / BLOCK)];
  return state === "f32"
    ? [
        ["m", shape],
        ["v", shape],
      ]
    : [
        ["m.codes", packed],
        ["v.codes", packed],
        ["m.scales", scales],
        ["v.scales", scales],
      ];
}

/** The learning rate over the steps of a run. */
export interface Schedule {
  readonly kind: "cosine" | "linear" | "constant";
  readonly peak: number;
  /** The learning rate of the last step. */
  readonly minimum: number;
  readonly warmupSteps: number;
  readonly totalSteps: number;
}

/** The learning rate of a step: linear warm-up from 0, then decay to `minimum`. @param stepNumber counts from 1 */
export function learningRateAt({ kind, peak, minimum, warmupSteps, totalSteps }: Schedule, stepNumber: number): number {
  if (stepNumber <= warmupSteps) return (peak * stepNumber) / warmupSteps;
  if (kind === "constant") return peak;
  const progress = Math.min(1, (stepNumber - warmupSteps) / Math.max(1, totalSteps - warmupSteps));
  const remaining = kind === "cosine" ? (1 + Math.cos(Math.PI * progress)) / 2 : 1 - progress;
  return minimum + (peak - minimum) * remaining;
}
