import { elementAt } from "../../system/arrays.js";
import { ShapeError } from "../../system/errors.js";
import { backpropagate, chained, GradientSums, leavesOf } from "../autodiff.js";
import type { Graph } from "../graph.js";
import { describe, rowCount, type Tensor } from "../tensor.js";
import { add, scale } from "./elementwise.js";
import { concatRows, rowsOf } from "./shape.js";

/** Bytes of logits in memory at a time, for each model. */
const CHUNK_BYTES = 128 << 20;
/** Fewer rows make too little use of reading the head's weights. */
const FEWEST_ROWS = 64;
/** More rows do not make the products faster. */
const MOST_ROWS = 256;

/** The rows [from, to). */
export interface RowRange {
  readonly from: number;
  readonly to: number;
}

/** Splits rows of logits into ranges that are computed one at a time; none is longer than the first. */
export function* rowRanges(rows: number, vocab: number): Generator<RowRange> {
  const count = Math.min(MOST_ROWS, Math.max(FEWEST_ROWS, Math.floor(CHUNK_BYTES / 4 / vocab)));
  const chunks = Math.ceil(rows / count);
  const even = Math.ceil(rows / chunks);
  for (let from = 0; from < rows; from += even) yield { from, to: Math.min(rows, from + even) };
}

/**
 * Turns token ids into indices into the logits of their range of rows; see {@link crossEntropy}.
 * @param ids the same number of ids for each row
 */
export function headIndices(ids: Int32Array, rows: number, vocab: number): Int32Array {
  const perRow = ids.length / rows;
  const indices = new Int32Array(ids.length);
  for (const { from, to } of rowRanges(rows, vocab))
    for (let i = from * perRow; i < to * perRow; i++)
      indices[i] = (Math.floor(i / perRow) - from) * vocab + elementAt(ids, i);
  return indices;
}

/**
 * Computes a function of the output head a range of rows at a time, so that no [rows, vocab] array exists. No gradient.
 * @param of maps the hidden states of a range of rows to [rows of the range, ...]
 * @returns [rows, ...]
 */
export function mapHeadRows(
  g: Graph,
  hidden: Tensor,
  vocab: number,
  of: (hidden: Tensor, range: RowRange) => Tensor,
): Tensor {
  const parts = [...rowRanges(rowCount(hidden), vocab)].map((range) => of(rowsOf(g, hidden, range), range));
  return concatRows(g, parts);
}

/** A term of a loss on the output head: `weight` times the sum of `of` over all rows. */
export interface HeadTerm {
  readonly weight: number;
  /** The sum over a range of rows of logits, [1]. */
  readonly of: (logits: Tensor, range: RowRange) => Tensor;
}

/**
 * The loss Σ weight · term over the rows of `hidden`, for terms that need logits. Each range of rows goes forward and at once
 * backward, so that only its logits are in memory, whatever the vocabulary. The gradient is computed together with the loss;
 * the backward pass only applies the chain rule.
 * @returns the loss, [1], and each term without its weight, [1]
 */
export function headLoss(
  g: Graph,
  hidden: Tensor,
  vocab: number,
  logitsOf: (hidden: Tensor) => Tensor,
  terms: readonly HeadTerm[],
): { readonly loss: Tensor; readonly terms: Tensor[] } {
  const differentiate = g.isRecording;
  const sums = new GradientSums();
  const leaves = new Set<Tensor>();
  const hiddenGradients: Tensor[] = [];
  const totals: Tensor[] = [];
  let loss: Tensor | undefined;
  for (const range of rowRanges(rowCount(hidden), vocab)) {
    const part = { ...rowsOf(g, hidden, range), requiresGrad: hidden.requiresGrad };
    const compute = () => {
      const logits = logitsOf(part);
      const values = terms.map(({ of }) => of(logits, range));
      const weighted = values.map((value, i) => scale(g, value, { factor: elementAt(terms, i).weight }));
      return { values, total: weighted.reduce((sum, value) => add(g, sum, value)) };
    };
    const { value, tape } = differentiate ? g.taped(compute) : { value: compute(), tape: [] };
    sums.set(value.total, g.one);
    backpropagate(g, tape, sums);
    for (const leaf of leavesOf(tape)) if (leaf !== part) leaves.add(leaf);
    const gradient = sums.take(part);
    if (gradient !== undefined) hiddenGradients.push(gradient);
    const lossBefore = loss;
    loss = g.withoutGradient(() => {
      value.values.forEach((term, i) => {
        const before = totals[i];
        totals[i] = before === undefined ? term : add(g, before, term);
      });
      return lossBefore === undefined ? value.total : add(g, lossBefore, value.total);
    });
  }
  if (loss === undefined) throw new ShapeError(`${describe(hidden)} has no rows`);
  const output: Tensor = { ...loss, requiresGrad: leaves.size > 0 || hiddenGradients.length > 0 };
  const parameters = [...leaves];
  const hiddenGradient =
    hiddenGradients.length > 0 ? g.withoutGradient(() => concatRows(g, hiddenGradients)) : undefined;
  g.record({
    output,
    inputs: [hidden, ...parameters],
    vjp: (dy) => [
      hiddenGradient === undefined ? null : { value: () => chained(g, hiddenGradient, dy) },
      ...parameters.map((parameter) => {
        const gradient = sums.get(parameter);
        return gradient === undefined ? null : { value: () => chained(g, gradient, dy) };
      }),
    ],
  });
  return { loss: output, terms: totals };
}
