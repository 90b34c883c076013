import { z } from "zod";
import { escapeHtml, page, table } from "../../system/html.js";
import { ENDPOINTS, VIEWS } from "./index.js";

export type Json = Readonly<Record<string, unknown>>;

export const errorSchema = z.object({
  error: z.object({
    message: z.string(),
    type: z.string(),
    param: z.string().nullable().optional().describe("the field that is wrong"),
    code: z.string().nullable().optional(),
  }),
});

const STATUSES: Readonly<Record<string, string>> = {
  400: "something in the request is wrong: the message names it",
  401: "a valid key is needed",
  404: "no such model",
  408: "the request took too long",
  413: "the body is too large",
  429: "too many requests: Retry-After says when to try again",
  503: "not ready, or shutting down",
};

/** Responses that are errors, for a document whose `components.schemas.Error` is {@link errorSchema}. */
export const errorResponses = (statuses: Readonly<Record<string, string>>): Json =>
  Object.fromEntries(
    Object.entries(statuses).map(([status, description]) => [
      status,
      { description, content: { "application/json": { schema: { $ref: "#/components/schemas/Error" } } } },
    ]),
  );

/** The JSON Schema of a zod schema. @param io whether of what is read or of what it becomes */
export const schemaOf = (schema: z.ZodType, io: "input" | "output"): Json => {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: "any" }) as Json;
  return rest;
};

/** The API as an OpenAPI 3.1 document. */
export function openApi(version: string): Json {
  const errors = errorResponses(STATUSES);
  const posts = ENDPOINTS.map(({ path, tag, summary, body, reply, streams }) => [
    path,
    {
      post: {
        tags: [tag],
        summary,
        operationId: operationId("post", path),
        security: [{ bearer: [] }, {}],
        requestBody: { required: true, content: { "application/json": { schema: schemaOf(body, "input") } } },
        responses: {
          200: {
            description: streams ? "the answer; as server-sent events where stream is true" : "the answer",
            content: {
              "application/json": { schema: schemaOf(reply, "output") },
              "text/event-stream": streams ? { schema: { type: "string" } } : undefined,
            },
          },
          ...errors,
        },
      },
    },
  ]);
  const gets = VIEWS.map(({ path, summary, reply }) => [
    path,
    {
      get: {
        tags: ["Management"],
        summary,
        operationId: operationId("get", path),
        responses: {
          200: { description: summary, content: { "application/json": { schema: schemaOf(reply, "output") } } },
        },
      },
    },
  ]);
  return {
    openapi: "3.1.0",
    info: { title: "Coppice inference service", version, license: { name: "Apache-2.0", identifier: "Apache-2.0" } },
    paths: Object.fromEntries([...posts, ...gets]),
    components: {
      schemas: { Error: schemaOf(errorSchema, "output") },
      securitySchemes: { bearer: { type: "http", scheme: "bearer" } },
    },
  };
}

export const operationId = (method: string, path: string): string =>
  `${method}${path.replace(/[/_]+(\w)/g, (_, letter: string) => letter.toUpperCase())}`;

/** The API as a page for people, which loads nothing from elsewhere. */
export function docsPage(version: string): string {
  const posts = ENDPOINTS.map(({ path, summary, body, streams }) => {
    const { properties = {}, required = [] } = schemaOf(body, "input") as {
      properties?: Record<string, Json> | undefined;
      required?: string[] | undefined;
    };
    const rows = Object.entries(properties).map(([name, schema]) => [
      name,
      kindOf(schema),
      required.includes(name) ? "yes" : "",
      `${schema.description ?? ""}`,
    ]);
    const stream = streams ? " Also as a stream of server-sent events (<code>stream: true</code>)." : "";
    return `<h2><code>POST ${path}</code></h2><p>${escapeHtml(summary)}.${stream}</p>${table(["field", "type", "required", "description"], rows)}`;
  });
  const gets = table(
    ["endpoint", "description"],
    VIEWS.map(({ path, summary }) => [`GET ${path}`, summary]),
  );
  return page("Coppice: API", [
    "<style>th,td{text-align:left}</style>",
    `<h1>Coppice inference service ${escapeHtml(version)}</h1>`,
    '<p>The same for programs: <a href="/openapi.json">openapi.json</a>. A field that is not listed is refused by name.</p>',
    ...posts,
    `<h2>Management</h2>${gets}`,
  ]);
}

/** The type of a field, in a few words. */
function kindOf(schema: Json): string {
  const { type, anyOf, oneOf, const: constant, enum: values, items } = schema;
  const alternatives = (anyOf ?? oneOf) as Json[] | undefined;
  if (alternatives !== undefined) {
    const kinds = alternatives.map(kindOf).filter((kind) => kind !== "null");
    return [...new Set(kinds)].join(" or ");
  }
  if (constant !== undefined) return JSON.stringify(constant);
  if (Array.isArray(values)) return values.map((value) => JSON.stringify(value)).join(" or ");
  if (type === "array") return `list of ${items === undefined ? "anything" : kindOf(items as Json)}`;
  return `${type ?? "anything"}`;
}
