import type { Graph, Tensor } from "../tensor/index.js";
import type { Divergence } from "./divergences.js";

/** The teacher's targets at consecutive positions: `slots` token ids for each position, and a number for each id. */
export interface TargetValues {
  /** [positions · slots]. */
  readonly ids: Int32Array;
  /** [positions · slots]; what they mean depends on the kind of targets. */
  readonly values: Float32Array;
}

/** Targets in a training graph, at n positions. */
export interface TargetTensors {
  /** i32 [n · slots]: row · vocab + token id, with rows counted from the first one of the loss. */
  readonly indices: Tensor;
  /** f32 [n · slots]. */
  readonly values: Tensor;
  readonly slots: number;
}

/** A position in the data. */
export interface Position {
  /** The number of its sequence. */
  readonly sequence: number;
  /** Counted from 0 in the sequence. */
  readonly offset: number;
}

/** A kind of targets that keeps a few numbers of each of the teacher's distributions. */
export interface SparseTargets {
  /** Token ids at each position; unused ones have a value that adds nothing to the loss. */
  readonly slots: number;
  /** What distinguishes them from other targets of the same teacher and data, in a cache's key. */
  readonly identity: readonly (string | number)[];
  /** About how many bytes an encoded position takes. */
  readonly expectedBytes: number;
  /** The divergence that the loss is, or estimates. */
  readonly divergence: Divergence;
  /** Of both distributions. */
  readonly temperature: number;
  /** The loss's name in the metrics. */
  readonly lossName: string;
  /**
   * Adds what the targets are computed from to a graph.
   * @param logits [rows, vocab]
   * @returns reads the targets of the first rows after a run, given each row's position; values that are not finite say that the
   *     logits were not
   */
  readonly declare: (g: Graph, logits: Tensor) => (positions: readonly Position[]) => TargetValues;
  /** A sequence's targets as a cache keeps them. */
  readonly encode: (targets: TargetValues) => Uint8Array;
  /** The inverse of `encode`, up to the cache's rounding. */
  readonly decode: (entry: Uint8Array, positions: number) => TargetValues;
  /** The loss summed over rows, [1]. @param studentLogits [n, vocab] */
  readonly loss: (g: Graph, studentLogits: Tensor, targets: TargetTensors) => Tensor;
}
