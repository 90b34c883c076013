/**
 * Trains a student with an objective of one's own: the mean squared difference between its logits and the teacher's
 * (Ba and Caruana 2014, "Do deep nets really need to be deep?", section 3). An objective builds its part of the training
 * graph from ops, which know their own gradients.
 *
 *     npx tsx examples/own-objective.ts
 */
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { measurePerplexity, pruneModel } from "coppice";
import { openCorpus, Sequences, Tokenizer } from "coppice/data";
import { defaultTrainOptions, type Objective, train } from "coppice/distill";
import { Backend } from "coppice/ggml";
import { loadWeights, type ModelWeights, openCheckpoint, writeModel } from "coppice/models";
import { ops } from "coppice/tensor";

const logitMatching = (teacher: ModelWeights): Objective => ({
  name: "logit matching",
  teacher,
  auxiliary: () => [], // parameters that are trained along and thrown away: none here
  build: ({ g, tokens, student }) => {
    // the teacher is computed in the same graph, but no gradient flows into it
    const target = g.withoutGradient(() => teacher.model.forward(g, teacher.get, tokens).logits()); // [rows, vocab]
    const loss = ops.mean(g, ops.square(g, ops.sub(g, student.logits(), target))); // [1]
    return { loss, terms: { squaredError: loss }, feed: async () => {} }; // it has no inputs of its own to fill
  },
});

const here = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const out = mkdtempSync(path.join(tmpdir(), "own-objective-"));
const [teacherAt, prunedAt, studentAt] = [here("tiny-teacher"), path.join(out, "pruned"), path.join(out, "student")];
const data = [here("corpus/stories.txt.gz")];
await pruneModel({ model: teacherAt, target: "hidden=96,ffn=288", data, calibrationSamples: 16, out: prunedAt });

const [teacher, pruned] = [openCheckpoint(teacherAt), openCheckpoint(prunedAt)];
const backend = Backend.open();
const weights = loadWeights(backend, teacher.model, teacher.source, { dtype: "bf16", trainable: false });
const student = loadWeights(backend, pruned.model, pruned.source, { dtype: "f32", trainable: true });
const { train: tokens } = await openCorpus(data, await Tokenizer.load(teacherAt));
const [sequenceLength, batchSize] = [64, 32];
await train({
  backend,
  student,
  objective: logitMatching(weights),
  sequences: new Sequences(tokens, sequenceLength),
  options: defaultTrainOptions(96, 30_000, sequenceLength, batchSize),
});
writeModel(studentAt, { ...pruned, source: student.source() }, { carryFrom: prunedAt });
backend.free();

for (const model of [teacherAt, prunedAt, studentAt]) {
  const { loss } = await measurePerplexity({ model, data: [here("corpus/held-out.txt")], sequenceLength });
  console.log(`${path.basename(model)}: loss ${loss.toFixed(3)}`);
}
