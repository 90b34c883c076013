import { randomUUID } from "node:crypto";
import { z } from "zod";
import { isHubId } from "../../checkpoint/index.js";
import { checkRunnable } from "../../generate/index.js";
import { openCheckpoint } from "../../models/index.js";
import { ApiError } from "../../serve/errors.js";
import { CoppiceError } from "../../system/errors.js";
import { factsOf, keys, licenceOf } from "../materials.js";
import type { Dataset, ModelRow } from "../store/library.js";
import { checkDocuments, dataForm, storeUpload, type UploadForm } from "../uploads.js";
import { type Events, type FoundryServices, found, idParameter, listOf, type Route, route, time } from "./route.js";

const modelSchema = z.object({
  ...{ id: z.uuid(), name: z.string(), state: z.enum(["uploading", "ready"]) },
  source: z.enum(["embedded", "hub", "upload", "job"]),
  hub_id: z.string().nullable(),
  parameters: z.number().int().nullable(),
  context_length: z.number().int().nullable(),
  architecture: z.string().nullable(),
  bytes: z.number().int(),
  licence: z.string().nullable(),
  job_id: z.uuid().nullable().describe("the job that made it"),
  shared: z.boolean().describe("whether everybody has it"),
  created_at: time,
});

const shownModel = (model: ModelRow): z.input<typeof modelSchema> => ({
  ...{ id: model.id, name: model.name, state: model.state, source: model.source.kind },
  hub_id: model.source.kind === "hub" ? model.source.id : null,
  parameters: model.facts?.parameters ?? null,
  context_length: model.facts?.contextLength ?? null,
  architecture: model.facts?.architecture ?? null,
  ...{ bytes: model.bytes, licence: model.licence, job_id: model.job_id, shared: model.tenant === null },
  created_at: model.created_at as unknown as string,
});

const datasetSchema = z.object({
  ...{ id: z.uuid(), name: z.string(), format: z.string(), bytes: z.number().int(), sha256: z.string() },
  created_at: time,
});
const shownDataset = ({ id, name, format, bytes, sha256, created_at }: Dataset) => ({
  ...{ id, name, format, bytes, sha256, created_at },
});

const name = z.string().min(1).max(120);
/** Bytes of a weight where a model is run as it is stored. */
const EXPORTED_BYTES = 2;
/** Files that a model may have, by the form that they must be of. */
const MODEL_FILE_FORMS: readonly (readonly [pattern: RegExp, form: UploadForm, most?: number])[] = [
  [
    /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|model\.safetensors\.index)\.json$/,
    "json",
    256 << 20,
  ],
  [/^model(-\d{5}-of-\d{5})?\.safetensors$/, "safetensors"],
  [/^[A-Za-z0-9][\w.-]{0,120}\.gguf$/, "gguf"],
  [/^(README\.md|LICENSE|LICENSE\.md|LICENSE\.txt)$/, "text", 1 << 20],
];

/** A model that a tenant may change. @throws ApiError 404 */
async function ownModel(id: string, tenant: string, { library }: FoundryServices): Promise<ModelRow> {
  const model = found(await library.model(tenant, id), "model");
  if (model.tenant === null) throw new ApiError(403, "this model is everybody's: it stays as it is");
  return model;
}

/** Reads what was sent as a model. @throws ApiError 400 saying what is wrong with it */
async function complete(model: ModelRow, services: FoundryServices): Promise<void> {
  const at = await services.materials.model(model).catch(() => {
    throw new ApiError(400, "no file of the model was sent yet", { code: "invalid_model" });
  });
  try {
    openCheckpoint(at);
    if (at.endsWith(".gguf")) checkRunnable(at);
    const files = await services.library.modelFiles(model.id);
    const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
    await services.library.modelReady(model.id, factsOf(at), licenceOf(at), bytes);
  } catch (error) {
    if (!(error instanceof CoppiceError)) throw error;
    throw new ApiError(400, `this is no model that can be used: ${error.message.replaceAll(at, "it")}`, {
      code: "invalid_model",
    });
  }
}

export const modelRoutes: readonly Route[] = [
  route("Models", "GET /v1/models", {
    ...{ summary: "Models: own ones and everybody's", needs: "viewer", reply: listOf(modelSchema) },
    answer: async ({ caller }, { library }) => ({ data: (await library.models(caller.tenant)).map(shownModel) }),
  }),
  route("Models", "POST /v1/models", {
    summary: "A model of the hub; or, without hub_id, one whose files are sent next and which is then completed",
    ...{ needs: "user", status: 201, reply: modelSchema },
    body: z.strictObject({ name: name.optional(), hub_id: z.string().max(200).optional() }),
    answer: async ({ body, caller }, { library }) => {
      const { hub_id: id } = body;
      if (id !== undefined && !isHubId(id))
        throw new ApiError(400, `"${id}" is no id of the hub: organisation/name, or organisation/name@revision`, {
          param: "hub_id",
        });
      if (id === undefined && body.name === undefined)
        throw new ApiError(400, "a model needs a name", { param: "name" });
      const source = id === undefined ? ({ kind: "upload" } as const) : ({ kind: "hub", id } as const);
      const state = id === undefined ? "uploading" : "ready";
      return shownModel(await library.addModel({ tenant: caller.tenant, name: body.name ?? id ?? "", source, state }));
    },
  }),
  route("Models", "GET /v1/models/{id}", {
    ...{ summary: "A model", needs: "viewer", parameters: idParameter, reply: modelSchema },
    answer: async ({ parameters, caller }, { library }) =>
      shownModel(found(await library.model(caller.tenant, parameters.id), "model")),
  }),
  route("Models", "PUT /v1/models/{id}/files/{name}", {
    summary: "Sends a file of a model: config.json, tokenizer.json, model.safetensors, ...; or a .gguf file",
    ...{ needs: "user", status: 201, body: { upload: "application/octet-stream" } },
    parameters: z.strictObject({ id: z.uuid(), name: z.string().max(140) }),
    reply: z.object({ name: z.string(), bytes: z.number().int(), sha256: z.string() }),
    answer: async ({ parameters, caller, content }, services) => {
      const model = await ownModel(parameters.id, caller.tenant, services);
      if (model.state !== "uploading" || model.source.kind !== "upload")
        throw new ApiError(409, "the model is complete: its files stay as they are");
      const form = MODEL_FILE_FORMS.find(([pattern]) => pattern.test(parameters.name));
      if (form === undefined)
        throw new ApiError(
          400,
          "a model has config.json, tokenizer.json, *.safetensors and the like, or one .gguf file; never a pickle",
          { param: "name" },
        );
      const key = `${keys.model(caller.tenant, model.id)}/${parameters.name}`;
      const most = Math.min(form[2] ?? services.maxUploadBytes, services.maxUploadBytes);
      const stored = await storeUpload(services, {
        tenant: caller.tenant,
        key,
        name: parameters.name,
        form: form[1],
        content,
        most,
      });
      await services.library.addModelFile(model.id, { name: parameters.name, storageKey: key, ...stored });
      return { name: parameters.name, ...stored };
    },
  }),
  route("Models", "POST /v1/models/{id}/complete", {
    summary: "Says that all files of a model were sent: they are checked",
    ...{ needs: "user", parameters: idParameter, reply: modelSchema },
    answer: async ({ parameters, caller }, services) => {
      const model = await ownModel(parameters.id, caller.tenant, services);
      if (model.state === "uploading") await complete(model, services);
      return shownModel(found(await services.library.model(caller.tenant, model.id), "model"));
    },
  }),
  route("Models", "DELETE /v1/models/{id}", {
    ...{ summary: "Forgets a model and its files", needs: "user", parameters: idParameter, status: 204 },
    answer: async ({ parameters, caller }, services) => {
      const model = await ownModel(parameters.id, caller.tenant, services);
      await services.library.removeModel(caller.tenant, model.id);
      // what a job made stays among its artifacts
      if (model.source.kind === "upload") await services.storage.remove(keys.model(caller.tenant, model.id));
    },
  }),
  route("Models", "POST /v1/models/{id}/completions", {
    summary:
      "Has a model continue a text, or answer it where it has a template for chats; server-sent events: text, then end",
    ...{ needs: "user", parameters: idParameter, reply: { media: "text/event-stream" } },
    body: z.strictObject({
      prompt: z.string().min(1).max(100_000),
      max_tokens: z.number().int().min(1).max(2048).default(128),
      temperature: z.number().min(0).max(2).default(0.8),
      seed: z
        .number()
        .int()
        .min(0)
        .max(2 ** 32 - 1)
        .optional(),
    }),
    answer: async ({ parameters, body, caller, signal }, services): Promise<Events> => {
      const model = found(await services.library.model(caller.tenant, parameters.id), "model");
      if (model.state !== "ready") throw new ApiError(409, "the model is not complete yet");
      const { materials, playground } = services;
      const request = {
        prompt: body.prompt,
        maxTokens: body.max_tokens,
        temperature: body.temperature,
        seed: body.seed,
      };
      return {
        events: (async function* () {
          try {
            const reference = await materials.model(model);
            const hub = await materials.hub(caller.tenant);
            const { parameters } = await materials.facts(caller.tenant, model);
            const bytes = model.source.kind === "upload" ? model.bytes : EXPORTED_BYTES * parameters;
            const tried = { id: model.id, reference, hub, bytes };
            for await (const text of playground.write(tried, request, caller.tenant, signal))
              yield { event: "text", data: { text } };
            yield { event: "end", data: {} };
          } catch (error) {
            if (!(error instanceof CoppiceError) || error instanceof ApiError) throw error;
            throw new ApiError(409, `the model cannot be tried: ${materials.withoutPlaces(error.message)}`);
          }
        })(),
      };
    },
  }),
];

export const datasetRoutes: readonly Route[] = [
  route("Data", "GET /v1/datasets", {
    ...{ summary: "Data sets", needs: "viewer", reply: listOf(datasetSchema) },
    answer: async ({ caller }, { library }) => ({ data: (await library.datasets(caller.tenant)).map(shownDataset) }),
  }),
  route("Data", "POST /v1/datasets", {
    summary: "Sends a data set: .txt, .jsonl, .json or .parquet, also .txt.gz and .jsonl.gz",
    ...{ needs: "user", status: 201, reply: datasetSchema, body: { upload: "application/octet-stream" } },
    query: z.strictObject({ name }),
    answer: async ({ query, caller, content }, services) => {
      const { ending, form } = dataForm(query.name);
      const id = randomUUID();
      const key = keys.dataset(caller.tenant, id, ending);
      const stored = await storeUpload(services, {
        tenant: caller.tenant,
        key,
        name: query.name,
        form,
        content,
      });
      try {
        await checkDocuments(await services.storage.local(key));
      } catch (error) {
        await services.storage.remove(key);
        throw error;
      }
      const made = { id, tenant: caller.tenant, name: query.name, format: ending.slice(1), storageKey: key, ...stored };
      return shownDataset(await services.library.addDataset(made));
    },
  }),
  route("Data", "GET /v1/datasets/{id}", {
    ...{ summary: "A data set", needs: "viewer", parameters: idParameter, reply: datasetSchema },
    answer: async ({ parameters, caller }, { library }) =>
      shownDataset(found(await library.dataset(caller.tenant, parameters.id), "data set")),
  }),
  route("Data", "DELETE /v1/datasets/{id}", {
    ...{ summary: "Forgets a data set", needs: "user", parameters: idParameter, status: 204 },
    answer: async ({ parameters, caller }, { library, storage }) => {
      const dataset = found(await library.dataset(caller.tenant, parameters.id), "data set");
      await library.removeDataset(caller.tenant, dataset.id);
      await storage.remove(dataset.storageKey);
    },
  }),
];
