import { randomUUID } from "node:crypto";
import { z } from "zod";
import { keys } from "../materials.js";
import { displayName } from "../specification.js";
import type { Dataset } from "../store/library.js";
import { checkDocuments, datasetFormat, storeUpload } from "../uploads.js";
import { idParameter, listOf, orNotFound, type Route, route, time } from "./route.js";

const datasetSchema = z.object({
  id: z.uuid(),
  name: z.string(),
  format: z.string(),
  bytes: z.number().int(),
  sha256: z.string(),
  created_at: time,
});

const datasetToJson = ({ id, name, format, bytes, sha256, created_at }: Dataset) => ({
  id,
  name,
  format,
  bytes,
  sha256,
  created_at,
});

export const datasetRoutes: readonly Route[] = [
  route("Data", "GET /v1/datasets", {
    summary: "List data sets",
    needs: "viewer",
    reply: listOf(datasetSchema),
    answer: async ({ caller }, { library }) => ({ data: (await library.datasets(caller.tenant)).map(datasetToJson) }),
  }),
  route("Data", "POST /v1/datasets", {
    summary: "Upload a data set: .txt, .jsonl, .json or .parquet, also .txt.gz and .jsonl.gz",
    needs: "user",
    status: 201,
    query: z.strictObject({ name: displayName }),
    body: { upload: "application/octet-stream" },
    reply: datasetSchema,
    answer: async ({ query: { name }, caller: { tenant }, content }, services) => {
      const { extension, format } = datasetFormat(name);
      const id = randomUUID();
      const key = keys.dataset(tenant, id, extension);
      const onStored = async () => checkDocuments(await services.storage.local(key));
      const dataset = { id, tenant, name, format: extension.slice(1), storageKey: key };
      return storeUpload(services, { tenant, key, name, format, content, onStored }, async (stored, client) =>
        datasetToJson(await services.library.addDataset({ ...dataset, ...stored }, client)),
      );
    },
  }),
  route("Data", "GET /v1/datasets/{id}", {
    summary: "Get a data set",
    needs: "viewer",
    parameters: idParameter,
    reply: datasetSchema,
    answer: async ({ parameters, caller }, { library }) =>
      datasetToJson(orNotFound(await library.dataset(caller.tenant, parameters.id), "data set")),
  }),
  route("Data", "DELETE /v1/datasets/{id}", {
    summary: "Delete a data set",
    needs: "user",
    parameters: idParameter,
    status: 204,
    answer: async ({ parameters, caller }, { library, storage }) => {
      const dataset = orNotFound(await library.dataset(caller.tenant, parameters.id), "data set");
      await library.removeDataset(caller.tenant, dataset.id);
      await storage.remove(dataset.storageKey);
    },
  }),
];
