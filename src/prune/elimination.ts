import type { Backend } from "../ggml/device.js";
import {
  block,
  Cholesky,
  inverseOfBlock,
  keepRows,
  type Matrix,
  readElements,
  transpose,
} from "../linear-algebra/index.js";
import { elementAt } from "../system/arrays.js";
import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import { PendingUpdates } from "./pending-updates.js";

export interface EliminationInputs {
  readonly backend: Backend;
  /** [outputs, inputs] */
  readonly weight: Matrix;
  /** Inputs in a group. */
  readonly groupSize: number;
  /** Groups that are taken out at a time. */
  readonly atOnce: number;
}

/** What is left when the rest is moved together: every update goes through all that was there at the last time. */
const SHARE_MOVED = 0.85;

/** The damped inverse of second moments and the weights, on the device, while groups of inputs are taken out. */
export class Elimination {
  /** W, [inputs, outputs]. */
  private readonly store: TensorStore;
  private readonly weight: Tensor;
  /** Those of the groups that are still there, in rising order. */
  private groups: readonly number[];
  private remaining: Remaining;

  /** @param inverse [inputs, inputs], which is overwritten */
  private constructor(
    private readonly inverse: Tensor,
    private readonly inputs: EliminationInputs,
  ) {
    const { backend, weight, groupSize } = inputs;
    this.groups = Array.from({ length: weight.columns / groupSize }, (_, i) => i);
    this.store = new TensorStore(backend, 1);
    this.weight = this.store.add("weight", [weight.columns, weight.rows], "f32");
    this.store.allocate().write(this.weight, transpose(weight).data);
    try {
      this.remaining = new Remaining(this.inverse, this.weight, this.groups.length, inputs);
    } catch (error) {
      this.store.free();
      throw error;
    }
  }

  /** @param moments are overwritten by their inverse, which must outlive the elimination @param ridge is added to their diagonal */
  static async begin(moments: Tensor, ridge: number, inputs: EliminationInputs): Promise<Elimination> {
    const factor = await Cholesky.overwrite(inputs.backend, moments, { ridge });
    try {
      const elimination = new Elimination(await factor.invert(), inputs);
      try {
        await elimination.remaining.computeGrams();
        return elimination;
      } catch (error) {
        elimination.free();
        throw error;
      }
    } finally {
      factor.free();
    }
  }

  /** How many groups are left. */
  get size(): number {
    return this.remaining.left.length;
  }

  /** The groups whose removal costs least, in the order of their losses. @param count all by default */
  cheapest(count = this.size): { readonly group: number; readonly loss: number }[] {
    return this.remaining.cheapest(count).map(({ place, loss }) => ({ group: elementAt(this.groups, place), loss }));
  }

  /** Takes `atOnce` groups out. */
  async remove(groups: readonly number[]): Promise<void> {
    await this.remaining.remove(groups.map((group) => this.groups.indexOf(group)));
    const { left, isUpToDate } = this.remaining;
    if (isUpToDate && left.length <= SHARE_MOVED * this.groups.length) await this.moveTogether(left);
  }

  /** Moves what is left to the beginning of the matrices. */
  private async moveTogether(left: readonly number[]): Promise<void> {
    const { backend, groupSize } = this.inputs;
    const kept = left.flatMap((place) => indicesOf(place, groupSize));
    await keepRows(backend, this.inverse, kept, kept);
    await keepRows(backend, this.weight, kept);
    this.groups = left.map((place) => elementAt(this.groups, place));
    const moved = new Remaining(this.inverse, this.weight, this.groups.length, this.inputs);
    this.remaining.free();
    this.remaining = moved;
    await this.remaining.computeGrams();
  }

  free(): void {
    this.remaining.free();
    this.store.free();
  }
}

const indicesOf = (place: number, groupSize: number): number[] =>
  Array.from({ length: groupSize }, (_, i) => place * groupSize + i);

/** Groups at the beginning of the matrices, of which some are taken out. */
class Remaining {
  /** W_gᵀ W_g of each group, [groups, size, size]. */
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
  private readonly places: Set<number>;

  constructor(
    inverse: Tensor,
    private readonly weights: Tensor,
    private readonly count: number,
    private readonly options: EliminationInputs,
  ) {
    const { backend, weight, groupSize, atOnce } = options;
    const { rows: outputs } = weight;
    const inputs = count * groupSize;
    const removed = atOnce * groupSize;
    this.places = new Set(Array.from({ length: count }, (_, i) => i));
    this.blocks = Array.from(this.places, (place) => diagonalBlock(backend, inverse, place, groupSize));
    this.store = new TensorStore(backend, 1);
    this.grams = this.store.add("grams", [count, groupSize, groupSize], "f32");
    this.store.allocate();
    this.inverse = new PendingUpdates(backend, inverse, { rows: inputs, columns: inputs, atOnce: removed });
    this.weight = new PendingUpdates(backend, weights, { rows: inputs, columns: outputs, atOnce: removed });
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

  async computeGrams(): Promise<void> {
    const { count, options, weights } = this;
    const { backend, weight, groupSize } = options;
    const g = new Graph(backend);
    try {
      const own = block(g, weights, { row: 0, column: 0, rows: count * groupSize, columns: weight.rows });
      const byGroup = ops.reshape(g, own, { to: [count, groupSize, weight.rows] });
      const products = groupSize === 1 ? ops.sumLast(g, ops.square(g, byGroup)) : ops.matmul(g, byGroup, byGroup);
      g.effect(ops.assign(g, ops.reshape(g, products, { to: this.grams.shape }), this.grams));
      await g.run();
    } finally {
      g.free();
    }
  }

  /** Places of the groups that are left, in rising order. */
  get left(): readonly number[] {
    return [...this.places];
  }

  /** Whether all updates are made, and none is kept. */
  get isUpToDate(): boolean {
    return this.inverse.isEmpty && this.weight.isEmpty;
  }

  /** The groups whose removal costs least, in the order of their losses. */
  cheapest(count: number): { readonly place: number; readonly loss: number }[] {
    const places = this.left;
    const losses = this.lossesOf(places);
    // few of many thousands are wanted: what they cost at most is found without sorting objects
    const limit = losses.toSorted()[count - 1] ?? Number.NaN;
    return places
      .flatMap((place, i) => (elementAt(losses, i) > limit ? [] : [{ place, loss: elementAt(losses, i) }]))
      .sort((a, b) => a.loss - b.loss || a.place - b.place)
      .slice(0, count);
  }

  private lossesOf(places: readonly number[]): Float64Array {
    const { groupSize } = this.options;
    const grams = this.store.read(this.grams);
    return Float64Array.from(places, (place) => {
      const block = elementAt(this.blocks, place);
      const [pivot = 0] = block;
      if (groupSize === 1 && pivot > 0) return elementAt(grams, place) / pivot;
      const first = place * groupSize ** 2;
      return inverseOfBlock(block, groupSize).reduce((sum, value, i) => sum + value * elementAt(grams, first + i), 0);
    });
  }

  /** Takes `atOnce` groups out: H⁻¹ -= H⁻¹[:, J] B H⁻¹[J, :] and W -= W[:, J] B H⁻¹[J, :] with B = (H⁻¹[J, J])⁻¹. */
  async remove(places: readonly number[]): Promise<void> {
    const { g, inputs, inverse, weight, blocks } = this;
    const { groupSize } = this.options;
    const indices = places.flatMap((place) => indicesOf(place, groupSize));
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
    for (const place of places) this.places.delete(place);
    for (const place of this.places) addProduct(elementAt(blocks, place), factors, rows, place * groupSize);
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
