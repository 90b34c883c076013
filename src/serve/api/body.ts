import type { z } from "zod";
import { ApiError } from "../errors.js";

/** Deeper than any request that means something; walking deeper could overflow the stack. */
const MOST_DEPTH = 256;

/** Fields whose values are somebody's data: there, null is a value like others. */
const FREE_FIELDS = new Set(
  "arguments chat_template_kwargs guided_json input_schema json metadata parameters parsed parsed_arguments schema".split(
    " ",
  ),
);

/** Asks for a cache, which is kept in any case. Clients put it into messages, parts, tools and anywhere else. */
const CACHE_FIELD = "cache_control";

/** What cannot be read, by the type of a part of a message. */
export const UNREADABLE: Readonly<Record<string, string>> = {
  image: "images",
  image_url: "images",
  input_image: "images",
  audio: "sound",
  input_audio: "sound",
  video: "films",
  video_url: "films",
  file: "files",
  input_file: "files",
  container_upload: "files",
};

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Anthropic's calls have an object there, OpenAI's responses a list; Ollama's format is a schema. */
const isFree = (key: string, value: unknown): boolean =>
  FREE_FIELDS.has(key) ||
  (key === "input" && isRecord(value)) ||
  (key === "format" && isRecord(value) && !("schema" in value));

/**
 * A body without fields that are null, which clients send for what they leave out, and without hints for caches.
 * @throws ApiError 400 for one that nests too deep
 */
export function withoutNulls(body: unknown): unknown {
  const walk = (value: unknown, free: boolean, depth: number): unknown => {
    if (depth > MOST_DEPTH) throw new ApiError(400, `the body nests deeper than ${MOST_DEPTH}`);
    if (Array.isArray(value)) return value.map((one: unknown) => walk(one, free, depth + 1));
    if (!isRecord(value)) return value;
    const kept = Object.entries(value).filter(([key, own]) => free || (own !== null && key !== CACHE_FIELD));
    return Object.fromEntries(kept.map(([key, own]) => [key, walk(own, free || isFree(key, own), depth + 1)]));
  };
  return walk(body, false, 0);
}

/**
 * @param unreadable what cannot be read, by the type of what holds it
 * @throws ApiError 400 naming the field
 */
export function parseBody<T>(
  schema: z.ZodType<T>,
  body: unknown,
  unreadable: Readonly<Record<string, string>> = {},
): T {
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const { issue, at } = deepest(parsed.error.issues, []);
  if (issue?.code === "unrecognized_keys") {
    const param = [...at, issue.keys[0]].join(".");
    throw new ApiError(400, `the field ${param} is not supported`, { param, code: "unsupported_parameter" });
  }
  const param = at.join(".");
  const held = at.at(-1) === "type" ? unreadable[`${valueAt(body, at)}`] : undefined;
  const message = held === undefined ? (issue?.message ?? "invalid") : `this model reads no ${held}`;
  throw new ApiError(400, `${param === "" ? "the body" : param}: ${message}`, { param, code: "invalid_value" });
}

function valueAt(body: unknown, at: readonly PropertyKey[]): unknown {
  return at.reduce<unknown>(
    (value, key) =>
      typeof value === "object" && value !== null ? (value as Record<PropertyKey, unknown>)[key] : undefined,
    body,
  );
}

interface Found {
  readonly issue: z.core.$ZodIssue | undefined;
  readonly at: readonly PropertyKey[];
}

const isKind = (key: PropertyKey | undefined): boolean => key === "type" || key === "role";

/** What is wrong, as far inside as can be told: of alternatives, in the one that came furthest. */
function deepest(issues: readonly z.core.$ZodIssue[], base: readonly PropertyKey[]): Found {
  const found = issues.map((issue): Found => {
    const at = [...base, ...issue.path];
    if (issue.code !== "invalid_union") return { issue, at };
    const alternatives = issue.errors.filter((errors) => errors.length > 0);
    // one that is of another kind says nothing of what was meant
    const meant = alternatives.filter((errors) => !errors.some(({ path }) => path.length === 1 && isKind(path[0])));
    const inner = (meant.length > 0 ? meant : alternatives).map((errors) => deepest(errors, at));
    return [...inner].sort((a, b) => b.at.length - a.at.length)[0] ?? { issue, at };
  });
  return found[0] ?? { issue: undefined, at: base };
}
