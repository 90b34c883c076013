import type { Backend } from "../ggml/device.js";
import { Cholesky, inverseOfBlock, type Matrix, meanDiagonal, transpose } from "../linear-algebra/index.js";
import { elementAt } from "../system/arrays.js";
import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";

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
 * them. The loss of a group is tr(W_g ([H⁻¹]_gg)⁻¹ W_gᵀ), with H the damped second moments. Takes two matrices of
 * [inputs, inputs] on the device.
 * @param moments Σ m mᵀ over calibration data, [inputs, inputs]
 * @param weight [outputs, inputs]
 * @returns the loss of each group's removal; groups that are removed later have larger ones. All are 0 where all moments are.
 */
export async function removalLosses(
  backend: Backend,
  moments: Matrix,
  weight: Matrix,
  { groupSize = 1 }: RemovalOptions = {},
): Promise<Float32Array> {
  const groups = moments.rows / groupSize;
  const atOnce = groupSize === 1 ? Math.max(LEAST_AT_ONCE, Math.round(groups * SHARE_AT_ONCE)) : 1;
  const losses = new Float32Array(groups);
  if (moments.data.every((value) => value === 0)) return losses; // inputs that are always zero: all can go
  let last = 0;
  const record = (group: number, loss: number): void => {
    last = Math.max(last * INCREASE, loss);
    losses[group] = last;
  };
  const elimination = await Elimination.begin({ backend, moments, weight, groupSize, atOnce });
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
  readonly moments: Matrix;
  readonly weight: Matrix;
  readonly groupSize: number;
  readonly atOnce: number;
}

/** The damped inverse of second moments and the weights, on the device, while groups of inputs are taken out. */
class Elimination {
  private readonly store: TensorStore;
  private readonly g: Graph;
  private readonly inverse: Tensor;
  /** Transposed: [inputs, outputs]. */
  private readonly weight: Tensor;
  /** The removed inputs' rows of `inverse` and `weight`, and what the former are multiplied by. */
  private readonly inputs: { readonly factors: Tensor; readonly inverse: Tensor; readonly weight: Tensor };
  /** W_gᵀ W_g of each group, [groups, size, size]. */
  private readonly grams: Tensor;
  /** Each group's rows and columns of the inverse, in f64. */
  private readonly blocks: Float64Array[];
  private readonly left: Set<number>;

  private constructor(private readonly options: EliminationInputs) {
    const { backend, moments, weight, groupSize, atOnce } = options;
    const [inputs, outputs] = [moments.rows, weight.rows];
    const removed = atOnce * groupSize;
    this.blocks = Array.from({ length: inputs / groupSize }, () => new Float64Array(groupSize ** 2));
    this.left = new Set(Array.from({ length: inputs / groupSize }, (_, i) => i));
    this.store = new TensorStore(backend, 2);
    this.inverse = this.store.add("inverse", [inputs, inputs], "f32");
    this.weight = this.store.add("weight", [inputs, outputs], "f32");
    this.store.allocate();
    const g = new Graph(backend);
    this.g = g;
    this.inputs = {
      factors: g.input("factors", "f32", [removed, inputs]),
      inverse: g.input("rows of the inverse", "f32", [removed, inputs]),
      weight: g.input("rows of the weight", "f32", [removed, outputs]),
    };
    g.effect(ops.addProducts(g, this.inverse, this.inputs.factors, this.inputs.inverse));
    const updated = ops.addProducts(g, this.weight, this.inputs.factors, this.inputs.weight);
    const byGroup = ops.reshape(g, updated, { to: [inputs / groupSize, groupSize, outputs] });
    this.grams = g.output(groupSize === 1 ? ops.sumLast(g, ops.square(g, byGroup)) : ops.matmul(g, byGroup, byGroup));
  }

  static async begin(options: EliminationInputs): Promise<Elimination> {
    const { backend, moments, weight } = options;
    const ridge = DAMPING * meanDiagonal(moments);
    const elimination = new Elimination(options);
    const factor = await Cholesky.factor(backend, moments, { ridge });
    try {
      const inverse = await factor.inverse();
      elimination.readBlocks(inverse);
      elimination.store.write(elimination.inverse, inverse.data);
      elimination.store.write(elimination.weight, transpose(weight).data);
      await elimination.g.run(); // inputs are zeros: nothing is removed yet
      return elimination;
    } catch (error) {
      elimination.free();
      throw error;
    } finally {
      factor.free();
    }
  }

  private readBlocks({ columns, data }: Matrix): void {
    const { groupSize } = this.options;
    for (const [group, block] of this.blocks.entries())
      for (let i = 0; i < groupSize; i++) {
        const from = (group * groupSize + i) * columns + group * groupSize;
        block.set(data.subarray(from, from + groupSize), i * groupSize);
      }
  }

  /** The groups that are left, in the order of their losses. */
  order(): { readonly group: number; readonly loss: number }[] {
    const { groupSize } = this.options;
    const grams = this.g.read(this.grams);
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
    const { store, g, inputs, inverse, weight, blocks } = this;
    const { groupSize } = this.options;
    const rows = rowsOf(store, inverse, groups, groupSize);
    const inverted = inverseOfBlock(columnsOf(rows, groups, groupSize), rows.rows);
    const factors = negativeProduct(inverted, rows);
    g.write(inputs.factors, factors);
    g.write(inputs.inverse, rows.data);
    g.write(inputs.weight, rowsOf(store, weight, groups, groupSize).data);
    await g.run();
    for (const group of groups) this.left.delete(group);
    for (const group of this.left) addProduct(elementAt(blocks, group), factors, rows, group * groupSize);
  }

  free(): void {
    this.g.free();
    this.store.free();
  }
}

/** Rows of a tensor: those of each group, one group after the other. */
function rowsOf(store: TensorStore, tensor: Tensor, groups: readonly number[], groupSize: number): Matrix {
  const columns = elementAt(tensor.shape, 1);
  const data = new Float32Array(groups.length * groupSize * columns);
  groups.forEach((group, i) => {
    data.set(store.readRows(tensor, group * groupSize, (group + 1) * groupSize), i * groupSize * columns);
  });
  return { rows: groups.length * groupSize, columns, data };
}

/** The columns of groups, square, in f64. */
function columnsOf({ rows, columns, data }: Matrix, groups: readonly number[], groupSize: number): Float64Array {
  const wanted = groups.flatMap((group) => Array.from({ length: groupSize }, (_, i) => group * groupSize + i));
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

/** -a b, a: [size, size] in f64. */
function negativeProduct(a: Float64Array, b: Matrix): Float32Array {
  const product = new Float32Array(b.data.length);
  for (let i = 0; i < b.rows; i++)
    for (let k = 0; k < b.rows; k++) {
      const factor = elementAt(a, i * b.rows + k);
      const [from, to] = [k * b.columns, i * b.columns];
      for (let j = 0; j < b.columns; j++)
        product[to + j] = (product[to + j] as number) - factor * (b.data[from + j] as number);
    }
  return product;
}
