import { z } from "zod";
import type { Usage } from "../engine/writer.js";

export const usageSchema = z.object({
  prompt_tokens: z.number().int(),
  completion_tokens: z.number().int(),
  total_tokens: z.number().int(),
  prompt_tokens_details: z.object({ cached_tokens: z.number().int() }),
});

/** Numbers of tokens in the form of completions and chats. */
export const openAiUsage = ({ promptTokens, cachedTokens, completionTokens }: Usage): z.infer<typeof usageSchema> => ({
  prompt_tokens: promptTokens,
  completion_tokens: completionTokens,
  total_tokens: promptTokens + completionTokens,
  prompt_tokens_details: { cached_tokens: cachedTokens },
});
