import { z } from "zod";
import { isHubId } from "../../checkpoint/index.js";
import { jsonLimit } from "../../checkpoint/json.js";
import { checkRunnable } from "../../generate/index.js";
import { openCheckpoint } from "../../models/index.js";
import { ApiError } from "../../serve/errors.js";
import { CoppiceError } from "../../system/errors.js";
import { factsOf, keys, licenceOf } from "../materials.js";
import { displayName } from "../specification.js";
import type { ModelRow } from "../store/library.js";
import { storeUpload, type UploadFormat } from "../uploads.js";
import {
  type Events,
  type FoundryServices,
  idParameter,
  listOf,
  orNotFound,
  type Route,
  route,
  time,
} from "./route.js";

const modelSchema = z.object({
  id: z.uuid(),
  name: z.string(),
  state: z.enum(["uploading", "ready"]),
  source: z.enum(["embedded", "hub", "upload", "job"]),
  hub_id: z.string().nullable(),
  parameters: z.number().int().nullable(),
  context_length: z.number().int().nullable(),
  architecture: z.string().nullable(),
  bytes: z.number().int(),
  licence: z.string().nullable(),
  job_id: z.uuid().nullable().describe("the job that made it"),
  shared: z.boolean().describe("whether every tenant sees it"),
  created_at: time,
});

const modelToJson = (model: ModelRow): z.input<typeof modelSchema> => ({
  id: model.id,
  name: model.name,
  state: model.state,
  source: model.source.kind,
  hub_id: model.source.kind === "hub" ? model.source.id : null,
  parameters: model.facts?.parameters ?? null,
  context_length: model.facts?.contextLength ?? null,
  architecture: model.facts?.architecture ?? null,
  bytes: model.bytes,
  licence: model.licence,
  job_id: model.job_id,
  shared: model.tenant === null,
  created_at: model.created_at as unknown as string,
});

/** Bytes per weight of a model that runs unquantized. */
const EXPORTED_BYTES = 2;

interface ModelFileRule {
  readonly pattern: RegExp;
  readonly format: UploadFormat;
  readonly maxBytes?: number | undefined;
}

/** The files a model may have. */
const MODEL_FILES: readonly ModelFileRule[] = [
  {
    pattern:
      /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|tekken|vocab|chat_template|preprocessor_config|processor_config|video_preprocessor_config|model\.safetensors\.index)\.json$/,
    format: "json",
  },
  { pattern: /^model(-\d{5}-of-\d{5})?\.safetensors$/, format: "safetensors" },
  { pattern: /^[A-Za-z0-9][\w.-]{0,120}\.gguf$/, format: "gguf" },
  {
    pattern: /^(chat_template\.jinja|README\.md|(LICEN[CS]E|NOTICE|USE_POLICY)(\.md|\.txt)?)$/,
    format: "text",
    maxBytes: 1 << 20,
  },
];

/** A model that the tenant may change. @throws ApiError 404 where there is none, 403 for a shared one */
async function ownModel(id: string, tenant: string, { library }: FoundryServices): Promise<ModelRow> {
  const model = orNotFound(await library.model(tenant, id), "model");
  if (model.tenant === null) throw new ApiError(403, "this model is shared by all tenants and cannot be changed");
  return model;
}

/** Opens an uploaded model and marks it as ready. @throws ApiError 400 with what is wrong with its files */
async function complete(model: ModelRow, services: FoundryServices): Promise<void> {
  const location = await services.materials.model(model).catch(() => {
    throw new ApiError(400, "no file of this model has been uploaded yet", { code: "invalid_model" });
  });
  try {
    openCheckpoint(location);
    if (location.endsWith(".gguf")) checkRunnable(location);
    const files = await services.library.modelFiles(model.id);
    const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
    await services.library.modelReady(model.id, factsOf(location), licenceOf(location), bytes);
  } catch (error) {
    if (!(error instanceof CoppiceError)) throw error;
    throw new ApiError(400, `this is not a usable model: ${error.message.replaceAll(location, "it")}`, {
      code: "invalid_model",
    });
  }
}

const completionBody = z.strictObject({
  prompt: z.string().min(1).max(100_000),
  max_tokens: z.number().int().min(1).max(2048).default(128),
  temperature: z.number().min(0).max(2).default(0.8),
  seed: z
    .number()
    .int()
    .min(0)
    .max(2 ** 32 - 1)
    .optional(),
});

/** A model's text, as it writes it. @throws ApiError 409 when the model cannot run here */
async function* completionEvents(
  model: ModelRow,
  { prompt, max_tokens: maxTokens, temperature, seed }: z.infer<typeof completionBody>,
  tenant: string,
  { materials, playground }: FoundryServices,
  signal: AbortSignal,
) {
  try {
    const reference = await materials.model(model);
    const hub = await materials.hub(tenant);
    const { parameters } = await materials.facts(tenant, model);
    const bytes = model.source.kind === "upload" ? model.bytes : EXPORTED_BYTES * parameters;
    const request = { prompt, maxTokens, temperature, seed };
    for await (const text of playground.write({ id: model.id, reference, hub, bytes }, request, tenant, signal))
      yield { event: "text", data: { text } };
    yield { event: "end", data: {} };
  } catch (error) {
    if (!(error instanceof CoppiceError) || error instanceof ApiError) throw error;
    throw new ApiError(409, `the model cannot run here: ${materials.withoutPaths(error.message)}`);
  }
}

export const modelRoutes: readonly Route[] = [
  route("Models", "GET /v1/models", {
    summary: "List models: the tenant's own and the shared ones",
    needs: "viewer",
    reply: listOf(modelSchema),
    answer: async ({ caller }, { library }) => ({ data: (await library.models(caller.tenant)).map(modelToJson) }),
  }),
  route("Models", "POST /v1/models", {
    summary: "Add a model from the hub; or, without hub_id, one to upload file by file and then complete",
    needs: "user",
    status: 201,
    body: z.strictObject({ name: displayName.optional(), hub_id: z.string().max(200).optional() }),
    reply: modelSchema,
    answer: async ({ body: { name, hub_id: id }, caller }, { library }) => {
      if (id !== undefined && !isHubId(id))
        throw new ApiError(400, `"${id}" is not a hub id: organization/name, or organization/name@revision`, {
          param: "hub_id",
        });
      if (id === undefined && name === undefined) throw new ApiError(400, "a model needs a name", { param: "name" });
      const source = id === undefined ? ({ kind: "upload" } as const) : ({ kind: "hub", id } as const);
      const state = id === undefined ? "uploading" : "ready";
      return modelToJson(await library.addModel({ tenant: caller.tenant, name: name ?? id ?? "", source, state }));
    },
  }),
  route("Models", "GET /v1/models/{id}", {
    summary: "Get a model",
    needs: "viewer",
    parameters: idParameter,
    reply: modelSchema,
    answer: async ({ parameters, caller }, { library }) =>
      modelToJson(orNotFound(await library.model(caller.tenant, parameters.id), "model")),
  }),
  route("Models", "PUT /v1/models/{id}/files/{name}", {
    summary: "Upload a file of a model: config.json, tokenizer.json, model.safetensors, ...; or a .gguf file",
    needs: "user",
    status: 201,
    parameters: z.strictObject({ id: z.uuid(), name: z.string().max(140) }),
    body: { upload: "application/octet-stream" },
    reply: z.object({ name: z.string(), bytes: z.number().int(), sha256: z.string() }),
    answer: async ({ parameters: { id, name }, caller: { tenant }, content }, services) => {
      const unfinished = async () => {
        const model = await ownModel(id, tenant, services);
        if (model.state !== "uploading" || model.source.kind !== "upload")
          throw new ApiError(409, "the model is complete: its files can no longer be changed");
        return model;
      };
      const model = await unfinished();
      const rule = MODEL_FILES.find(({ pattern }) => pattern.test(name));
      if (rule === undefined)
        throw new ApiError(
          400,
          "a model has config.json, tokenizer.json, *.safetensors and the like, or one .gguf file; never a pickle",
          { param: "name" },
        );
      const { format, maxBytes = format === "json" ? jsonLimit(name) : undefined } = rule;
      const key = `${keys.model(tenant, model.id)}/${name}`;
      const onArrived = async () => void (await unfinished()); // an upload may take hours
      const { library } = services;
      const replacedBytes = (await library.modelFiles(model.id)).find((file) => file.name === name)?.bytes;
      const onDeleted = () => library.removeModelFile(model.id, name);
      const upload = { tenant, key, name, format, content, maxBytes, onArrived, replacedBytes, onDeleted };
      return storeUpload(services, upload, async (stored, client) => {
        await library.addModelFile(model.id, { name, storageKey: key, ...stored }, client);
        return { name, ...stored };
      });
    },
  }),
  route("Models", "POST /v1/models/{id}/complete", {
    summary: "Finish an upload: the model's files are checked",
    needs: "user",
    parameters: idParameter,
    reply: modelSchema,
    answer: async ({ parameters, caller }, services) => {
      const model = await ownModel(parameters.id, caller.tenant, services);
      if (model.state === "uploading") await complete(model, services);
      return modelToJson(orNotFound(await services.library.model(caller.tenant, model.id), "model"));
    },
  }),
  route("Models", "DELETE /v1/models/{id}", {
    summary: "Delete a model and its files",
    needs: "user",
    parameters: idParameter,
    status: 204,
    answer: async ({ parameters, caller }, services) => {
      const model = await ownModel(parameters.id, caller.tenant, services);
      await services.library.removeModel(caller.tenant, model.id);
      // the files of a job's model stay among the job's artifacts
      if (model.source.kind === "upload") await services.storage.remove(keys.model(caller.tenant, model.id));
    },
  }),
  route("Models", "POST /v1/models/{id}/completions", {
    summary: "Complete a text, or answer it where the model has a chat template; server-sent events: text, then end",
    needs: "user",
    parameters: idParameter,
    body: completionBody,
    reply: { media: "text/event-stream" },
    answer: async ({ parameters, body, caller, signal }, services): Promise<Events> => {
      const model = orNotFound(await services.library.model(caller.tenant, parameters.id), "model");
      if (model.state !== "ready") throw new ApiError(409, "the model is not complete yet");
      return { events: completionEvents(model, body, caller.tenant, services, signal) };
    },
  }),
];
