import type { z } from "zod";
import { ApiError } from "../errors.js";

/** Deeper than any sensible request nests; walking deeper could overflow the stack. */
const MAX_DEPTH = 256;

/** Fields that hold data, in which null is a value like any other. */
const DATA_FIELDS = new Set(
  "arguments chat_template_kwargs guided_json input_schema json metadata parameters parsed parsed_arguments schema".split(
    " ",
  ),
);

/** A hint for caches, which clients put into messages, parts, tools and elsewhere. */
const CACHE_FIELD = "cache_control";

/** What the service cannot read, by the types of a message's parts. */
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

/** Whether a field holds data. `input` does in Anthropic's calls, where it is an object; `format` where it is a schema, as in Ollama's API. */
const isData = (key: string, value: unknown): boolean =>
  DATA_FIELDS.has(key) ||
  (key === "input" && isRecord(value)) ||
  (key === "format" && isRecord(value) && !("schema" in value));

/**
 * A body without null fields, which clients send for fields that they leave out, and without hints for caches.
 * @throws ApiError 400 for a body that nests too deeply
 */
export function withoutNulls(body: unknown): unknown {
  const walk = (value: unknown, inData: boolean, depth: number): unknown => {
    if (depth > MAX_DEPTH) throw new ApiError(400, `the body nests deeper than ${MAX_DEPTH}`);
    if (Array.isArray(value)) return value.map((element: unknown) => walk(element, inData, depth + 1));
    if (!isRecord(value)) return value;
    const kept = Object.entries(value).filter(([key, field]) => inData || (field !== null && key !== CACHE_FIELD));
    return Object.fromEntries(kept.map(([key, field]) => [key, walk(field, inData || isData(key, field), depth + 1)]));
  };
  return walk(body, false, 0);
}

/**
 * Reads a body by its schema.
 * @param unreadable what cannot be read, by the types of the parts that hold it
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
  const kind = at.at(-1) === "type" ? unreadable[`${valueAt(body, at)}`] : undefined;
  const message = kind === undefined ? (issue?.message ?? "invalid") : `this model reads no ${kind}`;
  throw new ApiError(400, `${param === "" ? "the body" : param}: ${message}`, { param, code: "invalid_value" });
}

function valueAt(body: unknown, at: readonly PropertyKey[]): unknown {
  return at.reduce<unknown>(
    (value, key) =>
      typeof value === "object" && value !== null ? (value as Record<PropertyKey, unknown>)[key] : undefined,
    body,
  );
}

/** What is wrong, and where. */
interface LocatedIssue {
  readonly issue: z.core.$ZodIssue | undefined;
  readonly at: readonly PropertyKey[];
}

const isKind = (key: PropertyKey | undefined): boolean => key === "type" || key === "role";

/** The first issue, as deep inside as can be said: of alternatives, in the one that got furthest. */
function deepest(issues: readonly z.core.$ZodIssue[], base: readonly PropertyKey[]): LocatedIssue {
  const located = issues.map((issue): LocatedIssue => {
    const at = [...base, ...issue.path];
    if (issue.code !== "invalid_union") return { issue, at };
    const alternatives = issue.errors.filter((errors) => errors.length > 0);
    // one of another kind says nothing about the one that was meant
    const sameKind = alternatives.filter((errors) => !errors.some(({ path }) => path.length === 1 && isKind(path[0])));
    const inner = (sameKind.length > 0 ? sameKind : alternatives).map((errors) => deepest(errors, at));
    return [...inner].sort((a, b) => b.at.length - a.at.length)[0] ?? { issue, at };
  });
  return located[0] ?? { issue: undefined, at: base };
}
