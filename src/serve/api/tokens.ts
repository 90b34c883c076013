import { z } from "zod";
import { endpoint, whole } from "./endpoint.js";
import { modelName, text, tokenIds } from "./schemas.js";

export const tokenize = endpoint<{
  model?: string | undefined;
  prompt: string;
  add_special_tokens?: boolean | undefined;
}>({
  ...{ path: "/tokenize", tag: "Tokens", summary: "A text's tokens", streams: false },
  body: z.strictObject({
    ...{ model: modelName, prompt: text },
    add_special_tokens: z.boolean().optional().describe("puts the begin token there, where the model has one; true"),
  }),
  reply: z.object({ tokens: z.array(z.number().int()), count: z.number().int(), max_model_len: z.number().int() }),
  answer: ({ model: name, prompt, add_special_tokens: special = true }, service, context) =>
    whole(service, name, context, async ({ model }) => {
      const tokens = special ? model.promptOf(prompt) : model.tokenize(prompt);
      return { tokens, count: tokens.length, max_model_len: model.contextSize };
    }),
});

export const detokenize = endpoint<{ model?: string | undefined; tokens: number[] }>({
  ...{ path: "/detokenize", tag: "Tokens", summary: "The text of tokens", streams: false },
  body: z.strictObject({ model: modelName, tokens: tokenIds }),
  reply: z.object({ prompt: z.string() }),
  answer: ({ model: name, tokens }, service, context) =>
    whole(service, name, context, async ({ model }) => ({ prompt: model.detokenize(tokens) })),
});
