import { overBatches, type Passage, type RecordedStep, type ResidualStream } from "../evaluate/residual-stream.js";
import type { ResidualStep } from "../models/index.js";
import type { Graph, Tensor } from "../tensor/index.js";
import { Gram } from "./gram.js";

export interface WriterMomentsInputs {
  readonly passage: Passage;
  readonly stream: ResidualStream;
  readonly step: ResidualStep;
  /** What the step's writer multiplies has so many values. */
  readonly inputs: number;
  /** m, [rows, inputs], from the recorded step. */
  readonly rowsOf: (g: Graph, recorded: RecordedStep) => Tensor;
}

/** Goes through a step of a model and sums Σ m mᵀ over the data. Free the sums after use. */
export async function writerMoments({ passage, stream, step, inputs, rowsOf }: WriterMomentsInputs): Promise<Gram> {
  const moments = new Gram(passage.backend, `the second moments of ${step.writer.input}`, inputs);
  try {
    const weights = stream.weightsOf(step.parameters);
    try {
      const written = stream.take();
      await overBatches(passage, (g) => {
        const recorded = stream.record(g, step, weights.get, "stream");
        moments.add(g, rowsOf(g, recorded));
        return { reads: recorded.reads, writes: [[recorded.after, written]] };
      });
      stream.advance(step, written);
    } finally {
      weights.free();
    }
    return moments;
  } catch (error) {
    moments.free();
    throw error;
  }
}
