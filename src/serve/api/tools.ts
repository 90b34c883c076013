import { z } from "zod";
import type { Tool } from "../engine/conversation.js";
import type { RequestContext } from "../engine/writer.js";
import { ApiError } from "../errors.js";

/** Tools of all APIs. */

const MAX_TOOLS = 512;

export const toolName = z.string().regex(/^[\w.:/-]{1,128}$/);
export const toolDescription = z
  .string()
  .max(1 << 18)
  .optional();
export const toolList = <T extends z.ZodType>(tool: T) => z.array(tool).max(MAX_TOOLS);

/** Types of tools that a provider runs itself, or for which a model must see a screen or know more than a name, of any version. */
const SERVER_TOOLS =
  /^(web_search|web_fetch|file_search|code_interpreter|code_execution|image_generation|mcp|mcp_toolset|tool_search|tool_search_tool|advisor|browser_toolset|google_search|x_search|programmatic_tool_calling|computer|computer_toolset|computer_use|local_shell|shell|apply_patch|bash|text_editor|memory)(_\w{1,64})?$/;

/** A tool that is left out because nobody here could run it. */
export const serverTool = z
  .looseObject({ type: z.string().max(96).regex(SERVER_TOOLS, "is not a tool that can be called here") })
  .describe("a provider's own tool: left out, as the header Warning says");

/** Goes on without something that only a provider has, and says so in the answer's header Warning. */
export function leaveOut(name: string, context: Pick<RequestContext, "warn">): [] {
  context.warn(`${name} is left out: it is not available here`);
  return [];
}

/** @throws ApiError 400 for two tools of one name */
export function checkTools(tools: readonly Tool[]): readonly Tool[] {
  const names = tools.map(({ name }) => name);
  const repeated = names.find((name, i) => names.indexOf(name) !== i);
  if (repeated !== undefined) throw new ApiError(400, `there are two tools named ${repeated}`, { param: "tools" });
  return tools;
}

/** JSON Schema of the arguments of a tool that has none. */
export const NO_PARAMETERS = { type: "object", properties: {}, additionalProperties: false };
