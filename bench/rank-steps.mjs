// Training steps shared by the processes that MPI started: what bench/ranks.ts starts. The leader prints a line of JSON.
import { Sequences, TokenStream } from "../dist/data/index.js";
import { crossEntropyObjective, Trainer } from "../dist/distill/index.js";
import { Backend } from "../dist/ggml/index.js";
import { followLeader } from "../dist/jobs/shared/follow.js";
import { withFollowers } from "../dist/jobs/shared/training.js";
import { trainOptionsFor } from "../dist/jobs/training.js";
import { initialize, modelFromConfig } from "../dist/models/index.js";
import { Ranks } from "../dist/ranks/index.js";

const { config, batchSize, sequenceLength, steps, device = "cpu" } = JSON.parse(process.argv[2]);
const ranks = await Ranks.join();
if (ranks !== undefined && !ranks.isLeader) await followLeader(ranks);
else {
  const backend = Backend.open({ device });
  const model = modelFromConfig(config);
  const student = initialize(backend, model, 1);
  const ids = Uint32Array.from({ length: 4 * batchSize * sequenceLength + 1 }, (_, i) => (i * 7919) % model.vocabSize);
  const sequences = new Sequences(TokenStream.of(ids, "bench"), sequenceLength);
  const settings = trainOptionsFor(model, { tokens: 1e6, batchSize, sequenceLength });
  const seconds = [];
  const losses = [];
  const before = {};
  await withFollowers({ options: { ranks, device }, model, settings, sequences }, async () => {
    const options = { backend, student, sequences, options: settings, objective: crossEntropyObjective, ranks };
    const trainer = new Trainer(options);
    await trainer.begin();
    for (let step = 1; step <= steps + 2; step++) {
      if (step === 3) Object.assign(before, ranks?.traffic);
      const startedAt = performance.now();
      losses.push((await trainer.step(step)).loss);
      if (step > 2) seconds.push((performance.now() - startedAt) / 1000);
    }
    trainer.free();
  });
  const per = (name) => (ranks === undefined ? 0 : (ranks.traffic[name] - before[name]) / steps);
  const traffic = { bytes: per("bytes"), calls: per("calls"), seconds: per("seconds") };
  console.log(JSON.stringify({ seconds, losses, threads: backend.threads, traffic, mpi: ranks?.description }));
  ranks?.postAll({ kind: "quit" });
  student.free();
  backend.free();
}
ranks?.leave();
