import type { Tool } from "../engine/conversation.js";

/** Tools that Anthropic's clients run and name by a version only: their own models know the arguments, others need them described. */

const path = { type: "string", description: "absolute path" };
const edits = {
  file_text: { type: "string", description: "for create" },
  old_str: { type: "string", description: "for str_replace: the text to replace, which must occur exactly once" },
  new_str: { type: "string", description: "for str_replace and insert" },
  insert_line: { type: "integer", minimum: 0, description: "for insert: the line to insert after" },
  insert_text: { type: "string", description: "for insert" },
  view_range: { type: "array", items: { type: "integer" }, minItems: 2, maxItems: 2, description: "for view: lines" },
};

const object = (properties: Readonly<Record<string, unknown>>, required: readonly string[]) => ({
  type: "object",
  properties,
  required,
  additionalProperties: false,
});

const TOOLS: readonly { readonly type: RegExp; readonly description: string; readonly parameters: object }[] = [
  {
    type: /^bash_\d{8}$/,
    description: "Runs a command in a shell that stays open between calls.",
    parameters: object({ command: { type: "string" }, restart: { type: "boolean" } }, ["command"]),
  },
  {
    type: /^text_editor_\d{8}$/,
    description: "Views and edits files.",
    parameters: object({ command: { enum: ["view", "create", "str_replace", "insert"] }, path, ...edits }, [
      "command",
      "path",
    ]),
  },
  {
    type: /^memory_\d{8}$/,
    description: "Keeps notes between conversations, as files below /memories.",
    parameters: object(
      {
        command: { enum: ["view", "create", "str_replace", "insert", "delete", "rename"] },
        path,
        old_path: path,
        new_path: path,
        ...edits,
      },
      ["command"],
    ),
  },
];

/** The tool that a type stands for; undefined for other types. */
export function anthropicTool(type: string, name: string): Tool | undefined {
  const found = TOOLS.find((tool) => tool.type.test(type));
  return found && { name, description: found.description, parameters: { ...found.parameters } };
}
