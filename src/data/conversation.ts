import type { TemplateMessage } from "./chat-template.js";
import { columnOf } from "./field.js";

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** ShareGPT's names of the roles. */
const ROLES: Readonly<Record<string, string>> = { human: "user", gpt: "assistant", model: "assistant" };

/** The field of texts, where no other is named. */
export const TEXT_FIELD = "text";
/** Where data sets keep conversations. */
const CONVERSATION_FIELDS = ["messages", "conversations", "conversation"];

/** The column of conversations in a table that has none of texts, and no field was named. */
export const conversationColumn = (field: string, columns: readonly string[]): string | undefined =>
  field === TEXT_FIELD ? CONVERSATION_FIELDS.find((name) => columns.includes(name)) : undefined;

/**
 * The conversation of a record: in the field, or in one that data sets keep them in where the record has no text. It is a list of messages with
 * `role` and `content` (OpenAI's and the hub's form), or with `from` and `value` (ShareGPT's).
 * @returns undefined where there is none
 */
export function conversationOf(record: unknown, field: string): TemplateMessage[] | undefined {
  const named = conversationIn(record, field);
  if (named !== undefined || !isRecord(record) || (record[field] ?? undefined) !== undefined) return named;
  const column = conversationColumn(field, Object.keys(record));
  return column === undefined ? undefined : conversationIn(record, column);
}

/** The same in a field. A dotted path leads into records. */
function conversationIn(record: unknown, field: string): TemplateMessage[] | undefined {
  if (!isRecord(record)) return undefined;
  const step = columnOf(field, Object.keys(record));
  if (step === undefined) return undefined;
  const value = record[step];
  if (step !== field) return conversationIn(value, field.slice(step.length + 1));
  if (!Array.isArray(value) || value.length === 0) return undefined;
  const messages = value.map(messageOf);
  return messages.every((message) => message !== undefined) ? messages : undefined;
}

function messageOf(value: unknown): TemplateMessage | undefined {
  if (!isRecord(value)) return undefined;
  if (typeof value.role === "string" && "content" in value) {
    const content = contentOf(value.content);
    if (content === undefined) return undefined;
    // columns that other rows have are null in Parquet, and templates ask only whether they are there
    const others = Object.entries(value).filter(([, other]) => other !== null && other !== undefined);
    return { ...Object.fromEntries(others), content };
  }
  if (typeof value.from === "string" && typeof value.value === "string")
    return { role: ROLES[value.from] ?? value.from, content: value.value };
  return undefined;
}

/** The text of a message: as such, in parts, or none, of a message that calls tools. */
function contentOf(content: unknown): string | undefined {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return undefined;
  const parts = content.map((part) => (isRecord(part) && typeof part.text === "string" ? part.text : undefined));
  return parts.every((part) => part !== undefined) ? parts.join("\n") : undefined;
}
