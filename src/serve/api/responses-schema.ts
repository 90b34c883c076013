import { z } from "zod";
import { content } from "./content.js";
import { customFormat } from "./custom-tools.js";
import { answerHints, responsesHints, textConfigHints } from "./hints.js";
import { jsonSchema, modelName, namedSchema, text, tokenCount } from "./schemas.js";
import { serverTool, toolDescription, toolList, toolName } from "./tools.js";

/** Bodies of OpenAI's responses. */

const id = z.string().max(256);
const itemFields = {
  ...answerHints,
  id: id.optional(),
  status: z.string().max(32).optional(),
  namespace: z.unknown().optional(),
};

/** A provider's own items, which are skipped: reasoning, and calls of its own tools. */
const SKIPPED_ITEMS = [
  "reasoning",
  "compaction",
  "web_search_call",
  "file_search_call",
  "code_interpreter_call",
  "image_generation_call",
  "mcp_list_tools",
  "mcp_call",
  "mcp_approval_request",
  "mcp_approval_response",
  "tool_search_call",
  "tool_search_output",
] as const;

const item = z.union([
  z.strictObject({
    ...itemFields,
    type: z.literal("message").optional(),
    role: z.enum(["user", "system", "developer", "assistant"]),
    content,
  }),
  z.strictObject({
    ...itemFields,
    type: z.literal("function_call"),
    call_id: id,
    name: toolName,
    arguments: text,
    parsed_arguments: z.unknown().optional(),
  }),
  z.strictObject({ ...itemFields, type: z.literal("function_call_output"), call_id: id, output: content }),
  z.strictObject({ ...itemFields, type: z.literal("custom_tool_call"), call_id: id, name: toolName, input: text }),
  z.strictObject({ ...itemFields, type: z.literal("custom_tool_call_output"), call_id: id, output: content }),
  z.looseObject({ type: z.enum(SKIPPED_ITEMS) }),
]);
export type ResponseItem = z.infer<typeof item>;

const functionTool = z.strictObject({
  type: z.literal("function"),
  name: toolName,
  parameters: jsonSchema.optional(),
  strict: z.boolean().optional(),
  description: toolDescription,
  defer_loading: z.unknown().optional(),
});
const customTool = z.strictObject({
  type: z.literal("custom"),
  name: toolName,
  description: toolDescription,
  format: customFormat,
});
/** A group of tools, which are called by their own names. */
const namespaceTool = z.strictObject({
  type: z.literal("namespace"),
  name: toolName,
  description: toolDescription,
  tools: toolList(z.discriminatedUnion("type", [functionTool, customTool])),
});
const ownTool = z.discriminatedUnion("type", [functionTool, customTool, namespaceTool]);
const chosenTool = z.strictObject({ type: z.enum(["function", "custom"]), name: toolName });

export const responseBody = z.strictObject({
  ...responsesHints,
  model: modelName,
  input: z.union([text, z.array(item).min(1).max(4096)]),
  instructions: text.nullish(),
  max_output_tokens: tokenCount,
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  stream: z.boolean().nullish(),
  include: z.array(z.string().max(64)).optional().describe("message.output_text.logprobs; others are ignored"),
  top_logprobs: z.number().int().min(0).max(20).optional(),
  truncation: z
    .enum(["auto", "disabled"])
    .nullish()
    .describe("auto drops the oldest part of a conversation that does not fit"),
  text: z
    .strictObject({
      ...textConfigHints,
      format: z
        .discriminatedUnion("type", [
          z.strictObject({ type: z.literal("text") }),
          z.strictObject({ type: z.literal("json_object") }),
          z.strictObject({
            type: z.literal("json_schema"),
            ...namedSchema,
          }),
        ])
        .optional(),
    })
    .nullish(),
  tools: toolList(z.union([functionTool, customTool, namespaceTool, serverTool])).optional(),
  tool_choice: z
    .union([
      z.enum(["none", "auto", "required"]),
      chosenTool,
      z.strictObject({
        type: z.literal("allowed_tools"),
        mode: z.enum(["auto", "required"]),
        tools: z.array(chosenTool).min(1),
      }),
    ])
    .optional(),
  parallel_tool_calls: z.boolean().nullish(),
  background: z.literal(false).nullish(),
  metadata: z.record(z.string().max(64), z.string().max(512)).nullish().describe("returned with the answer"),
});
export type ResponseBody = z.infer<typeof responseBody>;

export interface OwnTool {
  readonly tool: z.infer<typeof functionTool> | z.infer<typeof customTool>;
  /** The group that it belongs to, if any. */
  readonly namespace: string | undefined;
}

/** The tools that a model can call. */
export function ownTools({ tools = [] }: ResponseBody): readonly OwnTool[] {
  return tools.flatMap((tool): readonly OwnTool[] => {
    const { data } = ownTool.safeParse(tool);
    if (data === undefined) return [];
    if (data.type !== "namespace") return [{ tool: data, namespace: undefined }];
    return data.tools.map((inner) => ({ tool: inner, namespace: data.name }));
  });
}

/** Whether a tool can be called, rather than being a provider's own. */
export const isOwnTool = (tool: unknown): boolean => ownTool.safeParse(tool).success;
