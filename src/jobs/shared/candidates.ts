import type { TokenStream } from "../../data/index.js";
import type { DimensionName } from "../../models/index.js";
import {
  candidateLoss,
  keptIndices,
  type MeasureAll,
  type MeasuringOptions,
  type PrunePlan,
  prune,
  type Scores,
} from "../../prune/index.js";
import type { Message, Ranks } from "../../ranks/index.js";
import { onDevice } from "../job.js";
import { memoryFor } from "../model-memory.js";
import { idsOf, type MeasuredModel, type SharedModel, sharedModel, streamOf } from "./model.js";
import { openShared } from "./same-model.js";

interface CandidatesTask extends SharedModel {
  readonly plans: readonly PrunePlan[];
  readonly scores: readonly (readonly [DimensionName, readonly number[]])[];
  /** Of the validation data. */
  readonly tokens: number;
  readonly beginToken?: number | undefined;
  readonly measuring: MeasuringOptions;
}

/** What a follower answers. */
interface CandidateLosses {
  readonly losses: readonly number[];
}

/** Measures candidates, each rank some of them. */
export const sharedCandidates =
  (
    ranks: Ranks,
    { path, computeType, options }: Pick<MeasuredModel, "path" | "computeType" | "options">,
    validation: TokenStream,
    scores: Scores,
    measuring: MeasuringOptions,
  ): MeasureAll =>
  (plans, lossOf) =>
    ranks.together(async () => {
      const { sequenceLength, maxSequences } = measuring;
      const ids = idsOf(validation, sequenceLength, [0, maxSequences]);
      for (let to = 1; to < ranks.size; to++) {
        const task: CandidatesTask = {
          ...sharedModel(path, computeType, options),
          plans: plans.slice(...ranks.share(plans.length, to)),
          scores: [...scores].map(([name, values]) => [name, [...values]]),
          tokens: ids.length,
          beginToken: validation.beginToken,
          measuring,
        };
        ranks.post({ kind: "candidates", ...task }, to);
        ranks.sendData(ids, to);
      }
      const losses: number[] = [];
      for (const plan of plans.slice(...ranks.share(plans.length))) losses.push(await lossOf(plan));
      for (let from = 1; from < ranks.size; from++) losses.push(...(await ranks.receive<CandidateLosses>(from)).losses);
      return losses;
    });

/** A follower's part of {@link sharedCandidates}. */
export async function joinCandidates(ranks: Ranks, message: Message): Promise<void> {
  const { path, identity, device, plans, scores, tokens, beginToken, measuring, memoryBytes } = message as Message &
    CandidatesTask;
  const validation = streamOf(ranks.receiveIds(tokens), beginToken);
  const original = openShared({ path, identity });
  const vectors = new Map(scores.map(([name, values]) => [name, Float32Array.from(values)]));
  await onDevice({ ...device, ranks }, async (backend) => {
    const options = { ...measuring, memoryBytes: memoryFor(backend, { memoryBytes, ranks }) };
    const losses: number[] = [];
    for (const plan of plans) {
      const cut = prune(original, plan, keptIndices(original.model, plan, vectors));
      losses.push(await candidateLoss(cut, { backend, validation }, options));
    }
    ranks.post({ kind: "candidates", losses }, 0);
  });
}
