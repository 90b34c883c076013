import { z } from "zod";
import { partHints } from "./hints.js";
import { text } from "./schemas.js";

/** What OpenAI's messages are made of: chats and responses name the same differently, and clients mix them. */

const part = z.discriminatedUnion("type", [
  z.strictObject({ ...partHints, type: z.enum(["text", "input_text", "output_text", "summary_text"]), text }),
  z.strictObject({ ...partHints, type: z.literal("refusal"), refusal: text }),
  z.looseObject({ type: z.enum(["thinking", "redacted_thinking", "reasoning", "reasoning_text"]) }),
]);

/** Text, or parts of it. Parts that hold thoughts are left out. */
export const content = z.union([text, z.array(part)]);

/** The text of a message. */
export function textOf(given: z.infer<typeof content>): string {
  if (typeof given === "string") return given;
  const texts = given.map((one) => {
    if (one.type === "refusal") return `${one.refusal}`;
    return one.type === "text" || one.type.endsWith("put_text") || one.type === "summary_text" ? `${one.text}` : "";
  });
  return texts.join("");
}
