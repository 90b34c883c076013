import { z } from "zod";
import type { Tool, ToolCall } from "../engine/conversation.js";
import { text } from "./schemas.js";

/** OpenAI's custom tools, whose input is a text rather than JSON: for the model, functions of one argument. */

const grammar = z.strictObject({ syntax: z.enum(["lark", "regex"]), definition: text });
/** Chats nest the grammar in a field, responses do not. */
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

/** A custom tool as a function. A regular expression is enforced; a Lark grammar is added to the description. */
export function customAsTool({ name, description = "", format }: CustomTool): Tool {
  const definition = format?.type !== "grammar" ? undefined : "grammar" in format ? format.grammar : format;
  const pattern = definition?.syntax === "regex" ? `^(?:${definition.definition})$` : undefined;
  const larkRule =
    definition?.syntax === "lark" ? `\n\nThe input follows this grammar (Lark):\n${definition.definition}` : "";
  return {
    name,
    description: description + larkRule,
    parameters: {
      type: "object",
      properties: { input: pattern === undefined ? { type: "string" } : { type: "string", pattern } },
      required: ["input"],
      additionalProperties: false,
    },
  };
}

/** The input of a call of a custom tool. */
export function customInput({ arguments: json }: ToolCall): string {
  const { input } = JSON.parse(json) as { readonly input?: unknown };
  return typeof input === "string" ? input : json;
}

/** A call of a custom tool as the call of a function. */
export const customCall = (id: string, name: string, input: string): ToolCall => ({
  id,
  name,
  arguments: JSON.stringify({ input }),
});
