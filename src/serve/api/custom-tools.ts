import { z } from "zod";
import type { Tool, ToolCall } from "../engine/conversation.js";
import { text } from "./schemas.js";

/** Tools whose input is a text rather than JSON (OpenAI's custom tools): for the model, functions of one argument. */

const grammar = z.strictObject({ syntax: z.enum(["lark", "regex"]), definition: text });
/** Chats have the grammar in a field of its own, responses do not. */
export const customFormat = z
  .union([
    z.strictObject({ type: z.literal("text") }),
    z.strictObject({ type: z.literal("grammar"), grammar }),
    z.strictObject({ type: z.literal("grammar"), ...grammar.shape }),
  ])
  .optional();

interface CustomTool {
  readonly name: string;
  readonly description?: string | undefined;
  readonly format?: z.infer<typeof customFormat>;
}

/** A regular expression is held to; Lark's grammars are told to the model, as part of the description. */
export function customAsTool({ name, description = "", format }: CustomTool): Tool {
  const held = format?.type !== "grammar" ? undefined : "grammar" in format ? format.grammar : format;
  const pattern = held?.syntax === "regex" ? `^(?:${held.definition})$` : undefined;
  const told =
    held?.syntax === "lark"
      ? `${description}\n\nThe input follows this grammar (Lark):\n${held.definition}`
      : description;
  return {
    name,
    description: told,
    parameters: {
      type: "object",
      properties: { input: { type: "string", ...(pattern !== undefined && { pattern }) } },
      required: ["input"],
      additionalProperties: false,
    },
  };
}

/** The text that a model gives to such a tool. */
export function customInput({ arguments: json }: ToolCall): string {
  const { input } = JSON.parse(json) as { readonly input?: unknown };
  return typeof input === "string" ? input : json;
}

/** A call of such a tool as one of a function. */
export const customCall = (id: string, name: string, input: string): ToolCall => ({
  id,
  name,
  arguments: JSON.stringify({ input }),
});
