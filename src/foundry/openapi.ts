import type { z } from "zod";
import { errorResponses, errorSchema, type Json, operationId, schemaOf } from "../serve/api/openapi.js";
import { escapeHtml, page, table } from "../system/html.js";
import { ROUTES, type Route } from "./api/index.js";

const STATUSES: Readonly<Record<string, string>> = {
  400: "something is wrong with the request; the error names it",
  401: "a valid key is needed",
  403: "the key's role or the tenant's quota does not allow it",
  404: "it does not exist, or belongs to another tenant",
  409: "its state does not allow it",
  413: "the body is too large",
};

const parametersOf = (schema: z.ZodObject, where: "path" | "query"): Json[] => {
  const { properties = {}, required = [] } = schemaOf(schema, "input") as {
    properties?: Record<string, Json> | undefined;
    required?: string[] | undefined;
  };
  return Object.entries(properties).map(([name, { description, ...own }]) => ({
    name,
    in: where,
    required: where === "path" || required.includes(name),
    schema: own,
    description,
  }));
};

const requestContent = (body: NonNullable<Route["body"]>): Json =>
  "upload" in body
    ? { [body.upload]: { schema: { type: "string", format: "binary" } } }
    : { "application/json": { schema: schemaOf(body, "input") } };

const replyContent = (reply: NonNullable<Route["reply"]>): Json =>
  "media" in reply
    ? { [reply.media]: { schema: { type: "string" } } }
    : { "application/json": { schema: schemaOf(reply, "output") } };

/** An endpoint in the OpenAPI document. Fields that are undefined are left out of the JSON. */
function operationOf({ method, path, tag, summary, parameters, query, body, status, reply, needs }: Route): Json {
  return {
    tags: [tag],
    summary,
    operationId: operationId(method.toLowerCase(), path.replace(/[{}]/g, "")),
    security: needs === "anyone" ? undefined : [{ bearer: [] }, {}],
    parameters: [...parametersOf(parameters, "path"), ...parametersOf(query, "query")],
    requestBody: body && { required: true, content: requestContent(body) },
    responses: {
      [status]: { description: summary, content: reply && replyContent(reply) },
      ...errorResponses(STATUSES),
    },
  };
}

/** The API as an OpenAPI 3.1 document. */
export function foundryOpenApi(version: string): Readonly<Record<string, unknown>> {
  const paths: Record<string, Record<string, Json>> = {};
  for (const route of ROUTES)
    paths[route.path] = { ...paths[route.path], [route.method.toLowerCase()]: operationOf(route) };
  return {
    openapi: "3.1.0",
    info: { title: "Coppice foundry", version, license: { name: "Apache-2.0", identifier: "Apache-2.0" } },
    paths,
    components: {
      schemas: { Error: schemaOf(errorSchema, "output") },
      securitySchemes: { bearer: { type: "http", scheme: "bearer" } },
    },
  };
}

/** The API as a page to read. */
export function foundryDocs(version: string): string {
  const tags = [...new Set(ROUTES.map(({ tag }) => tag))];
  return page("Coppice foundry: API", [
    "<style>th,td{text-align:left}</style>",
    `<h1>Coppice foundry ${escapeHtml(version)}</h1>`,
    '<p>Every field is in the OpenAPI document: <a href="/openapi.json">openapi.json</a>.</p>',
    ...tags.map((tag) => {
      const rows = ROUTES.filter((route) => route.tag === tag).map((route) => [
        `${route.method} ${route.path}`,
        route.summary,
        route.needs,
      ]);
      return `<h2>${tag}</h2>${table(["endpoint", "what it does", "role"], rows)}`;
    }),
  ]);
}
