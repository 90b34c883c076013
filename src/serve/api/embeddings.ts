import { z } from "zod";
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
  ...{ path: "/v1/embeddings", tag: "OpenAI", summary: "Texts as vectors of length 1", streams: false, body: schema },
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
    whole(service, body.model, context, async ({ name, model, queue }) => {
      const { input } = body;
      const inputs =
        typeof input === "string"
          ? [input]
          : typeof input[0] === "number"
            ? [input as number[]]
            : (input as string[] | number[][]);
      const prompts = inputs.map((one) =>
        typeof one === "string" ? model.promptOf(one) : model.tokensOf(one, "input"),
      );
      const leave = await queue.enter(context.client, context.signal);
      const data: object[] = [];
      try {
        for (const [index, prompt] of prompts.entries()) {
          const vector = await model.embedding(prompt, context.signal);
          if (body.dimensions && body.dimensions !== vector.length)
            throw new ApiError(400, `dimensions: the model's embeddings have ${vector.length}`, {
              param: "dimensions",
            });
          const embedding =
            body.encoding_format === "base64"
              ? Buffer.from(new Float32Array(vector).buffer).toString("base64")
              : vector;
          data.push({ object: "embedding", index, embedding });
        }
      } finally {
        leave();
      }
      const tokens = prompts.reduce((sum, { length }) => sum + length, 0);
      context.metrics.promptTokens.inc(tokens);
      context.onTokens(tokens);
      return { object: "list", model: name, data, usage: { prompt_tokens: tokens, total_tokens: tokens } };
    }),
});
