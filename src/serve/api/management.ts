import { createHash } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { packageRoot } from "../../system/package-root.js";
import { ApiError } from "../errors.js";
import type { ServiceInfo, View } from "./view.js";

const health = z.object({ object: z.literal("health.response"), message: z.string() });

const modelCard = z.object({
  id: z.string(),
  object: z.literal("model"),
  created: z.number().int(),
  owned_by: z.string(),
  loaded: z.boolean().describe("whether it is in memory"),
  max_model_len: z
    .number()
    .int()
    .nullable()
    .describe("tokens of a prompt and its answer; null until the model is loaded"),
});

const licenseSchema = z.object({
  name: z.string(),
  path: z.string(),
  sha: z.string(),
  size: z.number().int(),
  url: z.string(),
  type: z.string(),
  content: z.string(),
});

/** OpenAI's description of a model. @throws ApiError 404 for a name that no model has */
export function modelCardOf({ pool, started }: ServiceInfo, name: string): z.infer<typeof modelCard> {
  const id = pool.resolve(name);
  const loaded = pool.loaded.find((one) => one.name === id);
  return {
    id,
    object: "model",
    created: started,
    owned_by: "coppice",
    loaded: loaded !== undefined,
    max_model_len: loaded?.model.contextSize ?? null,
  };
}

/** Anthropic's description of a model. @throws ApiError 404 for a name that no model has */
export function anthropicCardOf(info: ServiceInfo, name: string) {
  const { id, created, max_model_len } = modelCardOf(info, name);
  return {
    type: "model",
    id,
    display_name: id,
    created_at: new Date(1000 * created).toISOString(),
    max_input_tokens: max_model_len,
    max_tokens: max_model_len,
  };
}

const MAX_LISTED = 1000;

/** A page of Anthropic's list of models. @throws ApiError 400 for a wrong limit, 404 for an id that no model has */
function anthropicList(info: ServiceInfo, query: Readonly<Record<string, string>>) {
  const { limit = "20", after_id: after, before_id: before } = query;
  const count = /^[1-9]\d{0,3}$/.test(limit) ? Number(limit) : 0;
  if (count === 0 || count > MAX_LISTED)
    throw new ApiError(400, `limit: must be from 1 to ${MAX_LISTED}, not ${limit.slice(0, 32)}`, { param: "limit" });
  const all = info.pool.names;
  const placeOf = (name: string) => all.indexOf(info.pool.resolve(name));
  const [from, to] = [
    after === undefined ? 0 : placeOf(after) + 1,
    before === undefined ? all.length : placeOf(before),
  ];
  const names = before === undefined ? all.slice(from, from + count) : all.slice(Math.max(from, to - count), to);
  const hasMore = before === undefined ? from + count < to : to - count > from;
  return {
    data: names.map((name) => anthropicCardOf(info, name)),
    has_more: hasMore,
    first_id: names[0] ?? null,
    last_id: names.at(-1) ?? null,
  };
}

function license(): z.infer<typeof licenseSchema> {
  const file = path.join(packageRoot, "LICENSE");
  const content = readFileSync(file, "utf8");
  return {
    name: "Apache-2.0",
    path: "LICENSE",
    sha: createHash("sha256").update(content).digest("hex"),
    size: statSync(file).size,
    url: "https://www.apache.org/licenses/LICENSE-2.0",
    type: "text/plain",
    content,
  };
}

const manifest = z.object({
  models: z.array(z.object({ name: z.string(), reference: z.string(), loaded: z.boolean() })),
  profiles: z.array(z.looseObject({ name: z.string(), suits: z.boolean() })),
});

/** Views of the service and its models. */
export const MANAGEMENT: readonly View[] = [
  {
    path: "/v1/models",
    summary: "Models that are served",
    open: false,
    reply: z.object({ object: z.literal("list"), data: z.array(modelCard) }),
    answer: (info) => ({ object: "list", data: info.pool.names.map((name) => modelCardOf(info, name)) }),
    anthropicAnswer: anthropicList,
  },
  {
    path: "/v1/health/live",
    summary: "Whether the process is alive",
    reply: health,
    open: true,
    answer: () => ({ object: "health.response", message: "live" }),
  },
  {
    path: "/v1/health/ready",
    summary: "Whether requests are answered now",
    reply: health,
    open: true,
    answer: ({ taking, pool }) => {
      if (!taking()) throw new ApiError(503, "not ready: the service is shutting down", { retryAfter: 5 });
      if (!pool.ready) throw new ApiError(503, "not ready: the model is being loaded", { retryAfter: 5 });
      return { object: "health.response", message: "ready" };
    },
  },
  {
    path: "/v1/version",
    summary: "Versions of the service and of its API",
    open: true,
    reply: z.object({ release: z.string(), api: z.string() }),
    answer: ({ version }) => ({ release: version, api: "1.0" }),
  },
  {
    path: "/v1/metadata",
    summary: "What is served, under which license",
    open: false,
    reply: z.object({
      version: z.string(),
      selectedModelProfileId: z.string(),
      repository_override: z.string(),
      assetInfo: z.array(z.string()),
      licenseInfo: licenseSchema,
      modelInfo: z.array(z.object({ modelUrl: z.string(), shortName: z.string() })),
    }),
    answer: ({ version, models, profile }) => ({
      version,
      selectedModelProfileId: profile,
      repository_override: "",
      assetInfo: [],
      licenseInfo: license(),
      modelInfo: models.map(({ name, reference }) => ({ modelUrl: reference, shortName: name })),
    }),
  },
  {
    path: "/v1/manifest",
    summary: "Models, and the profiles in which they could run here",
    reply: manifest,
    open: false,
    answer: ({ models, pool, profiles }) => ({
      models: models.map((model) => ({ ...model, loaded: pool.loaded.some(({ name }) => name === model.name) })),
      profiles: profiles(),
    }),
  },
  {
    path: "/v1/license",
    summary: "The license of the service",
    reply: licenseSchema,
    open: false,
    answer: license,
  },
];
