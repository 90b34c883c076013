import type { TensorSource } from "../checkpoint/index.js";
import { type Passage, ResidualStream } from "../evaluate/residual-stream.js";
import { agreed, leads, stopTogether } from "../evaluate/team.js";
import type { Model, ModelTensors, ResidualStep } from "../models/index.js";
import { refitHead } from "./head.js";
import type { RefitInputs, Streams } from "./inputs.js";
import { refitStep } from "./step-refit.js";

/**
 * Mends a cut model in closed form, step by step, on calibration data. Both models go through the data side by side, the student on
 * its own stream, so that later steps make up for the errors of earlier ones:
 * - the matrices that read the stream are regressed, from the student's normalized stream to what the original's matrices give on its
 *   own; a step's block then runs with them;
 * - the matrix that writes to the stream is regressed, from what it multiplies in the student to what the student's stream lacks to the
 *   original's after the step. Rows are divided by the rms of the original's stream, because first positions are a thousand times larger.
 *
 * In a team each process has its part of the data, and solves for its part of each matrix; the leader keeps what is found.
 */
export async function refit(inputs: RefitInputs): Promise<void> {
  const { passage, dense, student, keptLayers, start, files, onProgress } = inputs;
  const { team } = passage;
  const total = dense.model.steps.length + 1;
  const parts = partsOf(student);
  if (await agreed(team, () => parts.every((part) => files.has(part)))) return;
  await files.once("embeddings", () => ({ matrices: start.embeddings() }));
  const cut = { model: student, source: files.source(["embeddings"]) };
  // a team goes through the steps that are known once more, because all need what the leader knows
  const saved =
    team === undefined
      ? files.streams.resume(({ file }) =>
          file.metadata.cut === files.identity ? streamsAt(file, inputs, cut) : undefined,
        )
      : undefined;
  const streams = saved?.restored ?? (await streamsBefore(passage, dense, cut));
  try {
    for (const [i, step] of dense.model.steps.entries()) {
      if (i < (saved?.steps ?? 0)) continue;
      const counterpart = stepOf(student, keptLayers.indexOf(step.layer), step);
      if (counterpart === undefined) await streams.dense.runOwn(step);
      else await refitStep(inputs, streams, { dense: step, student: counterpart, part: partOf(student, counterpart) });
      if (team === undefined) {
        const notes = { cut: files.identity };
        await files.streams.save(i + 1, { dense: streams.dense, student: streams.student }, { notes });
      }
      onProgress?.(i + 1, total);
      await stopTogether(team);
    }
    if (!(await agreed(team, () => files.has("last")))) {
      const last = await refitHead(inputs, streams);
      if (leads(team)) await files.write("last", last);
    }
    files.streams.delete();
    onProgress?.(total, total);
  } finally {
    streams.dense.free();
    streams.student.free();
  }
}

/** The files that a student's tensors are in after its refit. */
export const partsOf = (student: Model): string[] => [
  "embeddings",
  ...student.steps.map((step) => partOf(student, step)),
  "last",
];

const partOf = (student: Model, step: ResidualStep): string => `step-${student.steps.indexOf(step)}`;

async function streamsBefore(passage: Passage, dense: ModelTensors, student: ModelTensors): Promise<Streams> {
  const original = await ResidualStream.before(passage, dense);
  try {
    return { dense: original, student: await ResidualStream.before(passage, student) };
  } catch (error) {
    original.free();
    throw error;
  }
}

/** The streams that an earlier run saved; undefined when they are of other data. */
function streamsAt(source: TensorSource, { passage, dense }: RefitInputs, student: ModelTensors): Streams | undefined {
  const original = ResidualStream.restored(passage, dense, { source, name: "dense" });
  let smaller: ResidualStream | undefined;
  try {
    smaller = ResidualStream.restored(passage, student, { source, name: "student" });
  } catch (error) {
    original?.free();
    throw error;
  }
  if (original !== undefined && smaller !== undefined) return { dense: original, student: smaller };
  original?.free();
  smaller?.free();
  return undefined;
}

/** The step of a layer of the student that is like a step of the original; undefined where the layer, or the step, is cut. */
function stepOf(student: Model, layer: number, step: ResidualStep): ResidualStep | undefined {
  return student.steps.find((other) => other.layer === layer && other.writer.local === step.writer.local);
}
