import type { Backend } from "../ggml/device.js";
import { Cholesky, inverseOfBlock, type Matrix, meanOf, readElements, transpose } from "../linear-algebra/index.js";
import { elementAt } from "../system/arrays.js";
import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import type { Gram } from "./gram.js";
import { PendingUpdates } from "./pending-updates.js";

/** The share of the mean diagonal that is added to the second moments before they are inverted. */
const DAMPING = 0.01;
/** This share of the groups is taken out one after the other; the rest is ordered by the losses at the end. */
const SHARE_REMOVED = 0.75;
/** Single inputs are taken out by so many at a time, or by this share of all where it is more. */
const [LEAST_AT_ONCE, SHARE_AT_ONCE] = [8, 1 / 512];
/** A loss is at least so much larger than that of the group removed before, so that the order of removal can be read from it. */
const INCREASE = 1 + 1e-6;

export interface RemovalOptions {
  /** Inputs that are removed together: the channels of a head. 1 by default. */
  readonly groupSize?: number | undefined;
}

/**
 * Scores the inputs of a matrix by optimal brain surgeon (Hassibi & Stork 1992; ZipLM, arXiv 2302.04089, eq. 3 and 4): again and
 * again the inputs whose removal raises the squared error of the outputs least are taken out, and the others' weights make up for
 * them. The loss of a group is tr(W_g ([H⁻¹]_gg)⁻¹ W_gᵀ), with H the damped second moments. Takes the weight once
 * more and some 100 MB beside the moments.
 * @param moments Σ m mᵀ over calibration data, [inputs, inputs] which are overwritten
 * @param weight [outputs, inputs]
 * @throws CoppiceError when the moments are not finite
 * @returns the loss of each group's removal; groups that are removed later have larger ones. All are 0 where all moments are.
 */
export async function removalLosses(
  backend: Backend,
  moments: Gram,
  weight: Matrix,
  { groupSize = 1 }: RemovalOptions = {},
): Promise<Float32Array> {
  const groups = weight.columns / groupSize;
  const atOnce = groupSize === 1 ? Math.max(LEAST_AT_ONCE, Math.round(groups * SHARE_AT_ONCE)) : 1;
  const losses = new Float32Array(groups);
  const diagonal = moments.diagonal();
  if (diagonal.every((value) => value === 0)) return losses; // inputs that are always zero: all can go
  let last = 0;
  const record = (group: number, loss: number): void => {
    last = Math.max(last * INCREASE, loss);
    losses[group] = last;
  };
  const elimination = await Elimination.begin(moments.sums, DAMPING * meanOf(diagonal), {
    backend,
    weight,
    groupSize,
    atOnce,
  });
  try {
    let order = elimination.order();
    while (order.length > Math.max(atOnce, groups * (1 - SHARE_REMOVED))) {
      const removed = order.slice(0, atOnce);
      for (const { group, loss } of removed) record(group, loss);
      await elimination.remove(removed.map(({ group }) => group));
      order = elimination.order();
    }
    for (const { group, loss } of order) record(group, loss);
    return losses;
  } finally {
    elimination.free();
  }
}

interface EliminationInputs {
  readonly backend: Backend;
  readonly weight: Matrix;
  readonly groupSize: number;
  readonly atOnce: number;
}

/** The damped inverse of second moments and the weights, on the device, while groups of inputs are taken out. */
class Elimination {
  /** W, [inputs, outputs], and W_gᵀ W_g of each group, [groups, size, size]. */
  private readonly store: TensorStore;
  private readonly grams: Tensor;
  private readonly inverse: PendingUpdates;
  private readonly weight: PendingUpdates;
  private readonly g: Graph;
  /** -B, and the removed inputs' rows of the inverse and of W. */
  private readonly inputs: { readonly negative: Tensor; readonly inverse: Tensor; readonly weight: Tensor };
  /** What those rows are multiplied by, in all updates: -B H⁻¹[J, :]. */
  private readonly factors: Tensor;
  /** Each group's rows and columns of the inverse, in f64. */
  private readonly blocks: readonly Float64Array[];
  private readonly left: Set<number>;

  private constructor(
    inverse: Tensor,
    private readonly options: EliminationInputs,
  ) {
    const { backend, weight, groupSize, atOnce } = options;
    const { rows: outputs, columns: inputs } = weight;
    const removed = atOnce * groupSize;
    this.left = new Set(Array.from({ length: inputs / groupSize }, (_, i) => i));
    this.blocks = Array.from(this.left, (group) => diagonalBlock(backend, inverse, group, groupSize));
    this.store = new TensorStore(backend, 2);
    const weights = this.store.add("weight", [inputs, outputs], "f32");
    this.grams = this.store.add("grams", [inputs / groupSize, groupSize, groupSize], "f32");
    this.store.allocate().write(weights, transpose(weight).data);
    this.inverse = new PendingUpdates(backend, inverse, removed);
    this.weight = new PendingUpdates(backend, weights, removed);
    const g = new Graph(backend);
    this.g = g;
    this.inputs = {
      negative: g.input("negative inverse of the block", "f32", [removed, removed]),
      inverse: g.input("rows of the inverse", "f32", [removed, inputs]),
      weight: g.input("rows of the weight", "f32", [removed, outputs]),
    };
    this.factors = g.output(ops.linear(g, this.inputs.negative, this.inputs.inverse, { transposed: true }));
    this.updateGrams(g);
  }

  /**
   * With W += Fᵀ R, W_gᵀ W_g changes by F_gᵀ X_g + X_gᵀ F_g, X = R Wᵀ + R Rᵀ F / 2: no pass through W is needed but that for R Wᵀ.
   */
  private updateGrams(g: Graph): void {
    const { factors: f, grams, inputs } = this;
    const [groups, size] = grams.shape as [number, number];
    const half = ops.scale(g, ops.matmul(g, inputs.weight, inputs.weight), { factor: 0.5 });
    const x = ops.add(g, this.weight.multiplied(g, inputs.weight), ops.linear(g, half, f, { transposed: true }));
    const byGroup = (rows: Tensor): Tensor => {
      const [count = 0] = rows.shape;
      return ops.permute(g, ops.reshape(g, rows, { to: [count, groups, size] }), { order: [1, 2, 0] });
    };
    const change =
      size === 1
        ? ops.scale(g, ops.sumRows(g, ops.mul(g, f, x)), { factor: 2 })
        : ops.add(g, ops.matmul(g, byGroup(f), byGroup(x)), ops.matmul(g, byGroup(x), byGroup(f)));
    g.effect(ops.assign(g, ops.add(g, grams, ops.reshape(g, change, { to: grams.shape })), grams));
  }

  private async computeGrams(): Promise<void> {
    const { backend, weight, groupSize } = this.options;
    const g = new Graph(backend);
    try {
      const byGroup = ops.reshape(g, this.store.get("weight"), {
        to: [weight.columns / groupSize, groupSize, weight.rows],
      });
      const products = groupSize === 1 ? ops.sumLast(g, ops.square(g, byGroup)) : ops.matmul(g, byGroup, byGroup);
      g.effect(ops.assign(g, ops.reshape(g, products, { to: this.grams.shape }), this.grams));
      await g.run();
    } finally {
      g.free();
    }
  }

  /** @param moments are overwritten by their inverse, which must outlive the elimination @param ridge is added to their diagonal */
  static async begin(moments: Tensor, ridge: number, options: EliminationInputs): Promise<Elimination> {
    const factor = await Cholesky.overwrite(options.backend, moments, { ridge });
    try {
      const elimination = new Elimination(await factor.invert(), options);
      try {
        await elimination.computeGrams();
        return elimination;
      } catch (error) {
        elimination.free();
        throw error;
      }
    } finally {
      factor.free();
    }
  }

  /** The groups that are left, in the order of their losses. */
  order(): { readonly group: number; readonly loss: number }[] {
    const { groupSize } = this.options;
    const grams = this.store.read(this.grams);
    const loss = (group: number): number => {
      const inverted = inverseOfBlock(elementAt(this.blocks, group), groupSize);
      const first = group * groupSize ** 2;
      return inverted.reduce((sum, value, i) => sum + value * elementAt(grams, first + i), 0);
    };
    return [...this.left]
      .map((group) => ({ group, loss: loss(group) }))
      .sort((a, b) => a.loss - b.loss || a.group - b.group);
  }

  /** Takes `atOnce` groups out: H⁻¹ -= H⁻¹[:, J] B H⁻¹[J, :] and W -= W[:, J] B H⁻¹[J, :] with B = (H⁻¹[J, J])⁻¹. */
  async remove(groups: readonly number[]): Promise<void> {
    const { g, inputs, inverse, weight, blocks } = this;
    const { groupSize } = this.options;
    const indices = groups.flatMap((group) => Array.from({ length: groupSize }, (_, i) => group * groupSize + i));
    const rows = await inverse.currentRows(indices);
    const weightRows = await weight.currentRows(indices);
    g.write(
      inputs.negative,
      Float32Array.from(inverseOfBlock(columnsOf(rows, indices), rows.rows), (value) => -value),
    );
    g.write(inputs.inverse, rows.data);
    g.write(inputs.weight, weightRows.data);
    await g.run();
    const factors = g.read(this.factors);
    await inverse.add(factors, rows.data);
    await weight.add(factors, weightRows.data);
    for (const group of groups) this.left.delete(group);
    for (const group of this.left) addProduct(elementAt(blocks, group), factors, rows, group * groupSize);
  }

  free(): void {
    this.g.free();
    this.inverse.free();
    this.weight.free();
    this.store.free();
  }
}

/** A group's rows and columns of a square matrix on the device. */
function diagonalBlock(backend: Backend, matrix: Tensor, group: number, groupSize: number): Float64Array {
  const [, columns = 0] = matrix.shape;
  const block = new Float64Array(groupSize ** 2);
  const row = new Float32Array(groupSize);
  for (let i = 0; i < groupSize; i++) {
    readElements(backend, matrix, (group * groupSize + i) * columns + group * groupSize, row);
    block.set(row, i * groupSize);
  }
  return block;
}

/** Some columns, as many as there are rows, in f64. */
function columnsOf({ rows, columns, data }: Matrix, wanted: readonly number[]): Float64Array {
  return Float64Array.from({ length: rows ** 2 }, (_, i) =>
    elementAt(data, Math.floor(i / rows) * columns + elementAt(wanted, i % rows)),
  );
}

/** Adds aᵀ b to a square block, for as many columns of each from `first` on. */
function addProduct(block: Float64Array, a: Float32Array, { rows, columns, data: b }: Matrix, first: number): void {
  const size = Math.sqrt(block.length);
  for (let k = 0; k < rows; k++)
    for (let i = 0; i < size; i++) {
      const factor = a[k * columns + first + i] as number;
      for (let j = 0; j < size; j++)
        block[i * size + j] = (block[i * size + j] as number) + factor * (b[k * columns + first + j] as number);
    }
}
