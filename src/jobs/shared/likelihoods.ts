import { Tokenizer } from "../../data/index.js";
import { EngineLikelihoods, type Likelihood, type LikelihoodModel } from "../../evaluate/index.js";
import type { Message, Ranks } from "../../ranks/index.js";
import type { ComputeType } from "../../tensor/index.js";
import type { JobOptions } from "../job.js";
import { type SharedModel, sharedModel, withModel } from "./model.js";

interface LikelihoodTask extends SharedModel {
  readonly directory: string;
  readonly maxLength: number | undefined;
  readonly requests: Parameters<LikelihoodModel["logLikelihoods"]>[0];
}

/** What a follower answers. */
interface LikelihoodReplies {
  readonly replies: readonly Likelihood[];
}

/** Requests for each rank that are answered before the next are shared out, so that little is lost by a kill. */
const REQUESTS_AT_ONCE = 4096;

/** Answers requests for likelihoods, each rank a part of them. @param own answers this rank's */
export function sharedLikelihoods(
  ranks: Ranks,
  own: LikelihoodModel,
  model: { readonly path: string; readonly directory: string; readonly computeType: ComputeType },
  options: JobOptions & { readonly maxLength?: number | undefined },
): LikelihoodModel {
  const { path, directory, computeType } = model;
  const answer: LikelihoodModel["logLikelihoods"] = (requests, onReply, ask) =>
    ranks.together(async () => {
      for (let to = 1; to < ranks.size; to++) {
        const task: LikelihoodTask = {
          ...sharedModel(path, computeType, options),
          directory,
          maxLength: options.maxLength,
          requests: requests.slice(...ranks.share(requests.length, to)),
        };
        ranks.post({ kind: "likelihoods", ...task }, to);
      }
      await own.logLikelihoods(requests.slice(...ranks.share(requests.length)), onReply, ask);
      for (let from = 1; from < ranks.size; from++) {
        const { replies } = await ranks.receive<LikelihoodReplies>(from);
        const [first] = ranks.share(requests.length, from);
        for (const [i, reply] of replies.entries()) onReply(first + i, reply);
      }
    });
  return {
    logLikelihoods: async (requests, onReply, ask = {}) => {
      if (requests.length < ranks.size) return own.logLikelihoods(requests, onReply, ask);
      const atOnce = REQUESTS_AT_ONCE * ranks.size;
      for (let from = 0; from < requests.length && ask.signal?.aborted !== true; from += atOnce)
        await answer(requests.slice(from, from + atOnce), (i, reply) => onReply(from + i, reply), ask);
    },
  };
}

/** A follower's part of {@link sharedLikelihoods}. */
export async function joinLikelihoods(ranks: Ranks, message: Message): Promise<void> {
  const task = message as Message & LikelihoodTask;
  const { directory, maxLength, requests, computeType } = task;
  const tokenizer = await Tokenizer.load(directory);
  const replies: Likelihood[] = [];
  await withModel(ranks, task, (backend, weights) =>
    new EngineLikelihoods(backend, weights, tokenizer, { maxLength, computeType }).logLikelihoods(
      requests,
      (i, reply) => {
        replies[i] = reply;
      },
    ),
  );
  ranks.post({ kind: "likelihoods", replies }, 0);
}
