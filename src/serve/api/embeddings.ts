import { z } from "zod";
import type { LoadedModel } from "../engine/model-pool.js";
import type { RequestContext } from "../engine/writer.js";
import { ApiError } from "../errors.js";
import { endpoint, whole } from "./endpoint.js";
import { openAiHints } from "./hints.js";
import { modelName, text, tokenIds } from "./schemas.js";

const schema = z.strictObject({
  ...openAiHints,
  model: modelName,
  input: z.union([text, z.array(text).min(1).max(256), tokenIds, z.array(tokenIds).min(1).max(256)]),
  encoding_format: z.enum(["float", "base64"]).nullish(),
  dimensions: z.number().int().min(1).nullish().describe("only the length that the model's embeddings have"),
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
    whole(service, body.model, context, async (loaded) => {
      const { vectors, tokens } = await embeddingsOf(loaded, inputsOf(body.input), body, context);
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

function inputsOf(input: Body["input"]): readonly (string | readonly number[])[] {
  if (typeof input === "string") return [input];
  return typeof input[0] === "number" ? [input as number[]] : (input as string[] | number[][]);
}

export interface EmbeddingOptions {
  /** The length that vectors must have. */
  readonly dimensions?: number | null | undefined;
  /** Whether the end of an input that is too long is left out. */
  readonly isCut?: boolean | undefined;
}

/** Inputs as vectors, and how many tokens they are together. @throws ApiError 400 for what does not fit, and for other dimensions */
export async function embeddingsOf(
  { model, queue }: LoadedModel,
  inputs: readonly (string | readonly number[])[],
  { dimensions, isCut = false }: EmbeddingOptions,
  context: RequestContext,
): Promise<{ readonly vectors: readonly (readonly number[])[]; readonly tokens: number }> {
  const prompts = inputs.map((one) => {
    const all = typeof one === "string" ? model.promptOf(one) : model.tokensOf(one, "input");
    return isCut ? all.slice(0, model.mostEmbedded) : all;
  });
  const leave = await queue.enter(context.client, context.signal);
  const vectors: (readonly number[])[] = [];
  try {
    for (const prompt of prompts) {
      const vector = await model.embedding(prompt, context.signal);
      if (dimensions && dimensions !== vector.length)
        throw new ApiError(400, `dimensions: the model's embeddings have ${vector.length}`, { param: "dimensions" });
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
