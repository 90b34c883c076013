import { z } from "zod";
import type { LoadedModel } from "../engine/model-pool.js";
import type { RequestContext } from "../engine/writer.js";
import { ApiError } from "../errors.js";
import { endpoint, replyWhole } from "./endpoint.js";
import { openAiHints } from "./hints.js";
import { modelName, text, textsOrTokens, tokenIds } from "./schemas.js";

/** As many as OpenAI takes; client libraries send that many at once. */
const MOST_INPUTS = 2048;

const schema = z.strictObject({
  ...openAiHints,
  model: modelName,
  input: z.union([text, z.array(text).min(1).max(MOST_INPUTS), tokenIds, z.array(tokenIds).min(1).max(MOST_INPUTS)]),
  encoding_format: z.enum(["float", "base64"]).nullish(),
  dimensions: z.number().int().min(1).nullish().describe("must be the length of the model's embeddings"),
});
type Body = z.infer<typeof schema>;

export const embeddings = endpoint<Body>({
  path: "/v1/embeddings",
  tag: "OpenAI",
  summary: "Texts as vectors of length 1",
  streams: false,
  body: schema,
  reply: z.looseObject({
    object: z.literal("list"),
    model: z.string(),
    data: z.array(
      z.object({
        object: z.literal("embedding"),
        index: z.number().int(),
        embedding: z.union([z.array(z.number()), z.string()]),
      }),
    ),
    usage: z.object({ prompt_tokens: z.number().int(), total_tokens: z.number().int() }),
  }),
  answer: (body, service, context) =>
    replyWhole(service, body.model, context, async (loaded) => {
      const { vectors, tokens } = await embeddingsOf(loaded, textsOrTokens(body.input), body, context);
      const data = vectors.map((vector, index) => ({
        object: "embedding",
        index,
        embedding:
          body.encoding_format === "base64" ? Buffer.from(new Float32Array(vector).buffer).toString("base64") : vector,
      }));
      const usage = { prompt_tokens: tokens, total_tokens: tokens };
      return { object: "list", model: loaded.name, data, usage };
    }),
});

export interface EmbeddingOptions {
  /** The length that vectors must have. */
  readonly dimensions?: number | null | undefined;
  /** Whether to cut an input that is too long, rather than to refuse it. */
  readonly isCut?: boolean | undefined;
}

/** Embeds texts or tokens, and counts their tokens. @throws ApiError 400 for an input that does not fit, and for other dimensions */
export async function embeddingsOf(
  { model, queue }: LoadedModel,
  inputs: readonly (string | readonly number[])[],
  { dimensions, isCut = false }: EmbeddingOptions,
  context: RequestContext,
): Promise<{ readonly vectors: readonly (readonly number[])[]; readonly tokens: number }> {
  const prompts = inputs.map((input) => {
    const tokens = typeof input === "string" ? model.promptOf(input) : model.tokensOf(input, "input");
    return isCut ? tokens.slice(0, model.maxEmbedded) : tokens;
  });
  const leave = await queue.enter(context.client, context.signal);
  const vectors: (readonly number[])[] = [];
  try {
    for (const prompt of prompts) {
      const vector = await model.embedding(prompt, context.signal);
      if (dimensions && dimensions !== vector.length)
        throw new ApiError(400, `dimensions: the model's embeddings have ${vector.length}, not ${dimensions}`, {
          param: "dimensions",
        });
      vectors.push(vector);
    }
  } finally {
    leave();
  }
  const tokens = prompts.reduce((sum, { length }) => sum + length, 0);
  context.metrics.promptTokens.inc(tokens);
  context.onTokens(tokens);
  return { vectors, tokens };
}
