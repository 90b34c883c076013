import type { Message, Ranks } from "../../ranks/index.js";
import { CoppiceError } from "../../system/errors.js";
import { joinCalibration } from "./calibration.js";
import { joinCandidates } from "./candidates.js";
import { joinLikelihoods } from "./likelihoods.js";
import { joinLogits } from "./logits.js";
import { joinPerplexity } from "./perplexity.js";
import { joinRefit, joinStatistics } from "./start.js";
import { joinTraining } from "./training.js";

/** What followers can be asked for, by the kind of the message. */
const TASKS: Readonly<Record<string, (ranks: Ranks, message: Message) => Promise<void>>> = {
  train: joinTraining,
  perplexity: joinPerplexity,
  calibrate: joinCalibration,
  candidates: joinCandidates,
  likelihoods: joinLikelihoods,
  logits: joinLogits,
  statistics: joinStatistics,
  refit: joinRefit,
};

/**
 * Does parts of the leader's job on request, until the leader posts `quit`. Throws what a part throws.
 * @example
 * ```ts
 * import { distill, followLeader, Ranks } from "coppice";
 *
 * // mpirun -n 4 node this-file.mjs
 * const ranks = await Ranks.join();
 * if (ranks === undefined || ranks.isLeader) {
 *   await distill({ teacher: "./model", student: "./pruned", data: ["corpus.jsonl"], settings: { tokens: 1e9 }, out: "./student", ranks });
 *   ranks?.postAll({ kind: "quit" });
 * } else await followLeader(ranks);
 * ranks?.leave();
 * ```
 */
export async function followLeader(ranks: Ranks): Promise<void> {
  for (;;) {
    const message = await ranks.receive();
    if (message.kind === "quit") return;
    const task = TASKS[message.kind];
    if (task === undefined) throw new CoppiceError(`the leader asked for ${message.kind}, which is not known`);
    await task(ranks, message);
  }
}
