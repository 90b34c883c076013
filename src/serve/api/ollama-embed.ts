import { z } from "zod";
import { embeddingsOf } from "./embeddings.js";
import { endpoint, replyWhole } from "./endpoint.js";
import { ollamaHints } from "./hints.js";
import { ollamaModel } from "./ollama.js";
import { jsonSchema, text } from "./schemas.js";

/** Ollama's embeddings: the newer endpoint for several texts, and the older one for one text. */

const shared = {
  ...ollamaHints,
  model: ollamaModel,
  options: jsonSchema.optional().describe("a hint: ignored"),
  truncate: z.boolean().optional().describe("whether to cut an input that does not fit; true by default"),
};
const embedSchema = z.strictObject({
  ...shared,
  input: z.union([text, z.array(text).max(2048)]),
  dimensions: z.number().int().min(1).optional().describe("must be the length of the model's embeddings"),
});

export const ollamaEmbed = endpoint<z.infer<typeof embedSchema>>({
  path: "/api/embed",
  tag: "Ollama",
  summary: "Texts as vectors of length 1",
  streams: false,
  body: embedSchema,
  reply: z.looseObject({ embeddings: z.array(z.array(z.number())) }),
  answer: async (body, service, context) => {
    const began = performance.now();
    return replyWhole(service, body.model, context, async (model) => {
      const loadedAt = performance.now();
      const inputs = [body.input].flat();
      const options = { dimensions: body.dimensions, isCut: body.truncate !== false };
      const { vectors, tokens } = await embeddingsOf(model, inputs, options, context);
      return {
        model: body.model,
        embeddings: vectors,
        total_duration: Math.round(1e6 * (performance.now() - began)),
        load_duration: Math.round(1e6 * (loadedAt - began)),
        prompt_eval_count: tokens,
      };
    });
  },
});

const oldSchema = z.strictObject({ ...shared, prompt: text });

export const ollamaEmbeddings = endpoint<z.infer<typeof oldSchema>>({
  path: "/api/embeddings",
  tag: "Ollama",
  summary: "A text as a vector of length 1",
  streams: false,
  body: oldSchema,
  reply: z.object({ embedding: z.array(z.number()) }),
  answer: (body, service, context) =>
    replyWhole(service, body.model, context, async (model) => {
      const options = { isCut: body.truncate !== false };
      const { vectors } = await embeddingsOf(model, [body.prompt], options, context);
      return { embedding: vectors[0] ?? [] };
    }),
});
