import { z } from "zod";
import { endpoint, replyWhole } from "./endpoint.js";
import { modelName, specials, specialsOf, text, tokenIds } from "./schemas.js";

export const tokenize = endpoint<{
  model?: string | undefined;
  prompt: string;
  add_special?: boolean | undefined;
  add_special_tokens?: boolean | undefined;
  parse_special?: boolean | undefined;
}>({
  path: "/tokenize",
  tag: "Tokens",
  summary: "Encodes a text",
  streams: false,
  body: z.strictObject({
    model: modelName,
    prompt: text,
    ...specials,
  }),
  reply: z.object({ tokens: z.array(z.number().int()), count: z.number().int(), max_model_len: z.number().int() }),
  answer: ({ model: name, prompt, ...special }, service, context) =>
    replyWhole(service, name, context, async ({ model }) => {
      const tokens = model.promptOf(prompt, specialsOf(special));
      return { tokens, count: tokens.length, max_model_len: model.contextSize };
    }),
});

export const detokenize = endpoint<{ model?: string | undefined; tokens: number[] }>({
  path: "/detokenize",
  tag: "Tokens",
  summary: "Decodes tokens",
  streams: false,
  body: z.strictObject({ model: modelName, tokens: tokenIds }),
  reply: z.object({ prompt: z.string() }),
  answer: ({ model: name, tokens }, service, context) =>
    replyWhole(service, name, context, async ({ model }) => ({ prompt: model.detokenize(tokens) })),
});
