import type { TokenStream } from "../../data/index.js";
import { type Perplexity, perplexity } from "../../evaluate/index.js";
import type { Message, Ranks } from "../../ranks/index.js";
import { idsOf, type MeasuredModel, type SharedModel, sharedModel, streamOf, withModel } from "./model.js";

interface PerplexityTask extends SharedModel {
  readonly tokens: number;
  readonly sequenceLength: number;
  readonly beginToken?: number | undefined;
}

/** A model's loss on a text, of which each rank measures a part. */
export async function sharedPerplexity(
  ranks: Ranks,
  { backend, weights, path, computeType, options }: MeasuredModel,
  stream: TokenStream,
  sequenceLength: number,
  onProgress: (done: number, total: number) => void,
): Promise<Perplexity> {
  const length = Math.min(sequenceLength, stream.length - 1);
  const count = Math.ceil((stream.length - 1) / length);
  const measureOwn = (own: TokenStream) =>
    perplexity(backend, weights, own, {
      sequenceLength: length,
      computeType,
      signal: options.signal,
      onProgress: (done) => onProgress(Math.min(count, done * ranks.size), count),
    });
  if (count < ranks.size) return measureOwn(stream);
  return ranks.together(async () => {
    for (let to = 1; to < ranks.size; to++) {
      const ids = idsOf(stream, length, ranks.share(count, to));
      const task: PerplexityTask = {
        ...sharedModel(path, computeType, options),
        tokens: ids.length,
        sequenceLength: length,
        beginToken: stream.beginToken,
      };
      ranks.post({ kind: "perplexity", ...task }, to);
      ranks.sendData(ids, to);
    }
    const parts = [await measureOwn(streamOf(idsOf(stream, length, ranks.share(count)), stream.beginToken))];
    for (let from = 1; from < ranks.size; from++) parts.push(await ranks.receive<Perplexity>(from));
    const tokens = parts.reduce((sum, part) => sum + part.tokens, 0);
    const loss = parts.reduce((sum, part) => sum + part.loss * part.tokens, 0) / tokens;
    return { loss, perplexity: Math.exp(loss), tokens };
  });
}

/** A follower's part of {@link sharedPerplexity}. */
export async function joinPerplexity(ranks: Ranks, message: Message): Promise<void> {
  const task = message as Message & PerplexityTask;
  const { tokens, sequenceLength, beginToken, computeType } = task;
  const ids = ranks.receiveIds(tokens);
  const part = await withModel(ranks, task, (backend, weights) =>
    perplexity(backend, weights, streamOf(ids, beginToken), { sequenceLength, computeType }),
  );
  ranks.post({ kind: "perplexity", ...part }, 0);
}
