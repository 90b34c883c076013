import { checkSums } from "../evaluate/finite.js";
import { overBatches, type Passage, type RecordedStep, type ResidualStream } from "../evaluate/residual-stream.js";
import { type Matrix, symmetric } from "../linear-algebra/index.js";
import type { ResidualStep } from "../models/index.js";
import { type Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";

/**
 * Goes through a step of a model, and sums Σ m mᵀ over the data.
 * @param inputs what the step's writer multiplies has so many values
 * @param rowsOf m, [rows, inputs], from the recorded step
 * @throws CoppiceError when the sums are not finite
 */
export async function writerMoments(
  passage: Passage,
  stream: ResidualStream,
  step: ResidualStep,
  inputs: number,
  rowsOf: (g: Graph, recorded: RecordedStep) => Tensor,
): Promise<Matrix> {
  const sums = new TensorStore(passage.backend, 1);
  const moments = sums.add("moments", [inputs, inputs], "f32");
  sums.allocate();
  const weights = stream.weightsOf(step.parameters);
  const written = stream.take();
  try {
    await overBatches(passage, (g) => {
      const recorded = stream.record(g, step, weights.get, "stream");
      const rows = rowsOf(g, recorded);
      g.effect(ops.addGram(g, moments, rows));
      return { reads: recorded.reads, writes: [[recorded.after, written]] };
    });
    stream.advance(step, written);
    const data = sums.read(moments);
    checkSums(`the second moments of ${step.writer.input}`, data);
    return symmetric(inputs, data);
  } finally {
    weights.free();
    sums.free();
  }
}
