import type { z } from "zod";
import { errorResponses, errorSchema, type Json, operationId, schemaOf } from "../serve/api/openapi.js";
import { escapeHtml, page, table } from "../system/html.js";
import { ROUTES, type Route } from "./api/index.js";

const STATUSES: Readonly<Record<string, string>> = {
  400: "something in the request is wrong, named",
  401: "a valid key is needed",
  403: "the key's role or the tenant's quota does not allow it",
  404: "there is no such thing, or it is another tenant's",
  409: "not in the state that it is in",
  413: "the body is too large",
};

const parametersOf = (schema: z.ZodObject, where: "path" | "query"): Json[] => {
  const { properties = {}, required = [] } = schemaOf(schema, "input") as {
    properties?: Record<string, Json> | undefined;
    required?: string[] | undefined;
  };
  return Object.entries(properties).map(([name, { description, ...own }]) => ({
    ...{ name, in: where, required: where === "path" || required.includes(name), schema: own },
    description,
  }));
};

function operationOf({ method, path, tag, summary, parameters, query, body, status, reply, needs }: Route): Json {
  const content =
    body === undefined
      ? undefined
      : "upload" in body
        ? { [body.upload]: { schema: { type: "string", format: "binary" } } }
        : { "application/json": { schema: schemaOf(body, "input") } };
  const answered =
    reply === undefined
      ? undefined
      : "media" in reply
        ? { [reply.media]: { schema: { type: "string" } } }
        : { "application/json": { schema: schemaOf(reply, "output") } };
  return {
    ...{ tags: [tag], summary, operationId: operationId(method.toLowerCase(), path.replace(/[{}]/g, "")) },
    ...(needs !== "anyone" && { security: [{ bearer: [] }, {}] }),
    parameters: [...parametersOf(parameters, "path"), ...parametersOf(query, "query")],
    ...(content && { requestBody: { required: true, content } }),
    responses: {
      [status]: { description: summary, ...(answered && { content: answered }) },
      ...errorResponses(STATUSES),
    },
  };
}

/** What can be asked for and what comes back, as an OpenAPI 3.1 document. */
export function foundryOpenApi(version: string): Json {
  const paths: Record<string, Record<string, Json>> = {};
  for (const one of ROUTES) paths[one.path] = { ...paths[one.path], [one.method.toLowerCase()]: operationOf(one) };
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

/** The same for people. */
export function foundryDocs(version: string): string {
  const tags = [...new Set(ROUTES.map(({ tag }) => tag))];
  return page("Coppice foundry: API", [
    "<style>th,td{text-align:left}</style>",
    `<h1>Coppice foundry ${escapeHtml(version)}</h1>`,
    '<p>For programs, with every field: <a href="/openapi.json">openapi.json</a>.</p>',
    ...tags.map((tag) => {
      const rows = ROUTES.filter((one) => one.tag === tag).map((one) => [
        `${one.method} ${one.path}`,
        one.summary,
        one.needs,
      ]);
      return `<h2>${tag}</h2>${table(["endpoint", "what", "who"], rows)}`;
    }),
  ]);
}
