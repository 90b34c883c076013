import { z } from "zod";
import { partHints } from "./hints.js";
import { text } from "./schemas.js";

/** Contents of OpenAI's messages. Chats and responses have different names for the same, and clients mix them. */

const part = z.discriminatedUnion("type", [
  z.strictObject({ ...partHints, type: z.enum(["text", "input_text", "output_text", "summary_text"]), text }),
  z.strictObject({ ...partHints, type: z.literal("refusal"), refusal: text }),
  z.looseObject({ type: z.enum(["thinking", "redacted_thinking", "reasoning", "reasoning_text"]) }),
]);

/** Text, or a list of parts. Reasoning parts are skipped. */
export const content = z.union([text, z.array(part)]);
export type MessageContent = z.infer<typeof content>;

/** The text of a message. */
export function textOf(message: MessageContent): string {
  if (typeof message === "string") return message;
  const texts = message.map((one) => {
    if (one.type === "refusal") return `${one.refusal}`;
    return one.type === "text" || one.type.endsWith("put_text") || one.type === "summary_text" ? `${one.text}` : "";
  });
  return texts.join("");
}
