import { createHash } from "node:crypto";
import { z } from "zod";
import type { HostedModel } from "../engine/hosted-model.js";
import { endpoint, replyWhole } from "./endpoint.js";
import { jsonSchema } from "./schemas.js";
import type { ServiceInfo, View } from "./view.js";

/** Ollama's endpoints about models. */

/** The release of Ollama whose API this is: clients require one that is new enough. */
const OLLAMA_VERSION = "0.13.0";
/** Details of a model that is not loaded. */
const NO_DETAILS = {
  parent_model: "",
  format: "gguf",
  family: "",
  families: [] as string[],
  parameter_size: "",
  quantization_level: "",
};

/** A name with a tag, as Ollama's are. */
const tagged = (name: string): string => (name.includes(":") ? name : `${name}:latest`);

function detailsOf(model: HostedModel): typeof NO_DETAILS {
  const { architecture, parameters, dtype } = model.facts;
  const size = parameters >= 1e9 ? `${(parameters / 1e9).toFixed(1)}B` : `${(parameters / 1e6).toFixed(2)}M`;
  return {
    ...NO_DETAILS,
    family: architecture,
    families: [architecture],
    parameter_size: size,
    quantization_level: dtype,
  };
}

function cardOf(info: ServiceInfo, name: string) {
  const loaded = info.pool.loaded.find((one) => one.name === name);
  const size = loaded?.model.weightBytes ?? info.pool.expectedBytes(name);
  return {
    name: tagged(name),
    model: tagged(name),
    modified_at: new Date(1000 * info.started).toISOString(),
    size,
    digest: createHash("sha256").update(`${name} ${info.version}`).digest("hex"),
    details: loaded === undefined ? NO_DETAILS : detailsOf(loaded.model),
  };
}

/** A time far away: models stay until others need their memory. */
const NEVER = new Date(Date.UTC(2318, 0)).toISOString();

const cards = z.object({ models: z.array(z.looseObject({ name: z.string(), model: z.string(), size: z.number() })) });

/** Ollama's endpoints that are called by GET. */
export const OLLAMA_VIEWS: readonly View[] = [
  {
    path: "/api/version",
    summary: "The version of Ollama's API",
    reply: z.object({ version: z.string() }),
    open: true,
    answer: () => ({ version: OLLAMA_VERSION }),
  },
  {
    path: "/api/tags",
    summary: "Models that are served",
    reply: cards,
    open: false,
    answer: (info) => ({ models: info.pool.names.map((name) => cardOf(info, name)) }),
  },
  {
    path: "/api/ps",
    summary: "Models in memory",
    reply: cards,
    open: false,
    answer: (info) => ({
      models: info.pool.loaded.map(({ name, model }) => ({
        ...cardOf(info, name),
        size: model.memoryBytes,
        size_vram: 0,
        expires_at: NEVER,
        context_length: model.contextSize,
      })),
    }),
  },
];

const named = z.strictObject({
  model: z.string().max(256).optional(),
  name: z.string().max(256).optional().describe("the same as model"),
  verbose: z.boolean().optional(),
  stream: z.boolean().optional(),
  insecure: z.boolean().optional(),
  system: z.unknown().optional(),
  template: z.unknown().optional(),
  options: jsonSchema.optional(),
});

export const ollamaShow = endpoint<z.infer<typeof named>>({
  path: "/api/show",
  tag: "Ollama",
  summary: "Describes a model",
  streams: false,
  body: named,
  reply: z.looseObject({ model_info: jsonSchema, capabilities: z.array(z.string()) }),
  answer: (body, service, context) =>
    replyWhole(service, body.model ?? body.name, context, async ({ model }) => {
      const { architecture, parameters } = model.facts;
      return {
        license: "",
        modelfile: "",
        parameters: "",
        template: model.templateSource ?? "",
        details: detailsOf(model),
        model_info: {
          ...model.scalars,
          "general.parameter_count": parameters,
          // the length of what clients may send, whatever the model was trained with
          [`${architecture}.context_length`]: model.contextSize,
        },
        capabilities: ["completion", "tools"],
        modified_at: new Date().toISOString(),
      };
    }),
});

/** Clients download models that they do not find; here, all models are there from the start. */
export const ollamaPull = endpoint<z.infer<typeof named>>({
  path: "/api/pull",
  tag: "Ollama",
  summary: "Finds a model that is served; nothing is downloaded",
  streams: true,
  body: named,
  reply: z.object({ status: z.literal("success") }),
  answer: async (body, { pool }) => {
    pool.resolve(body.model ?? body.name);
    const data = { status: "success" };
    if (body.stream === false) return { json: data };
    return {
      events: (async function* () {
        yield { data };
      })(),
    };
  },
});
