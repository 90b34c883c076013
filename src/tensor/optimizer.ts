import { CoppiceError } from "../system/errors.js";
import type { Graph } from "./graph.js";
import { defineOp, type Op } from "./op.js";
import { add, clamp, div, dotLast, mul, sqrt, square, sum } from "./ops/elementwise.js";
import type { TensorStore } from "./store.js";
import type { Tensor } from "./tensor.js";

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

/** How many partial sums the kernel computes. */
const SQUARE_PARTS = 64;

const partialSquares: Op<[x: Tensor]> = defineOp("sumSquares", 1, {
  shape: () => [SQUARE_PARTS],
  kernel: () => ({ name: "sum_squares" }),
});

function sumSquares(g: Graph, x: Tensor): Tensor {
  if (g.backend.kernels !== undefined) return sum(g, partialSquares(g, x));
  return sum(g, x.shape.length === 2 ? dotLast(g, x, x) : square(g, x));
}

/** AdamW's state on the device: both moments of each weight, and the settings of the next step. */
export class AdamW {
  private readonly decayed: Tensor;
  private readonly plain: Tensor;

  /**
   * Declares its state in `store`, which must be allocated afterwards.
   * @param decays whether a weight decays: matrices by default
   */
  constructor(
    private readonly store: TensorStore,
    private readonly weights: readonly Tensor[],
    readonly options: AdamWOptions,
    private readonly decays: (weight: Tensor) => boolean = ({ shape }) => shape.length > 1,
  ) {
    this.decayed = store.add("adamw.settings.decayed", [7], "f32");
    this.plain = store.add("adamw.settings.plain", [7], "f32");
    for (const weight of weights) {
      store.add(`${weight.name}.m`, weight.shape, "f32");
      store.add(`${weight.name}.v`, weight.shape, "f32");
    }
  }

  /** Both moments of each weight: all that a later step depends on. */
  get moments(): Tensor[] {
    return this.weights.flatMap(({ name }) => ["m", "v"].map((moment) => this.store.get(`${name}.${moment}`)));
  }

  /** How many tensors it declares for a number of weights. */
  static stateTensors = (weights: number): number => 2 * weights + 2;

  /**
   * Adds a step for every weight to a graph.
   * @returns the gradients' global norm before clipping, [1]
   */
  apply(g: Graph, gradients: readonly Tensor[]): Tensor {
    const norm = g.withoutGradient(() => sqrt(g, this.squares(g, gradients)));
    this.update(g, gradients, norm);
    return norm;
  }

  /** The sum of the squares of gradients, [1]. */
  squares(g: Graph, gradients: readonly Tensor[]): Tensor {
    return g.withoutGradient(() =>
      gradients.map((gradient) => sumSquares(g, gradient)).reduce((total, term) => add(g, total, term)),
    );
  }

  /** Adds a step for every weight to a graph, with gradients of which the global norm is known. @param norm [1] */
  update(g: Graph, gradients: readonly Tensor[], norm: Tensor): void {
    g.withoutGradient(() => {
      const limit = g.constant("clip norm", "f32", [1], Float32Array.of(this.options.clipNorm));
      const factor = clamp(g, div(g, limit, norm), { low: 0, high: 1 });
      this.weights.forEach((weight, i) => {
        const gradient = gradients[i];
        if (gradient === undefined) throw new CoppiceError(`${weight.name} has no gradient`);
        const settings = this.decays(weight) ? this.decayed : this.plain;
        const m = this.store.get(`${weight.name}.m`);
        const v = this.store.get(`${weight.name}.v`);
        g.effect(
          g.backend.kernels === undefined
            ? step(g, weight, mul(g, gradient, factor), m, v, settings)
            : scaledStep(g, weight, gradient, m, v, settings, factor),
        );
      });
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
      );
    this.store.write(this.decayed, settings(weightDecay));
    this.store.write(this.plain, settings(0));
  }
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
