import { z } from "zod";
import { version } from "../run-job.js";
import { ROLES } from "../store/roles.js";
import { TENANT } from "../store/tenants.js";
import { found, idParameter, listOf, type Route, route, time } from "./route.js";

const tenant = z.string().regex(TENANT);
const role = z.enum(ROLES);
const key = z.object({ id: z.uuid(), tenant: z.string(), name: z.string(), role, created_at: time });
const limit = z
  .number()
  .int()
  .min(0)
  .max(2 ** 53 - 1)
  .nullable();
const quota = z.object({
  max_bytes: limit,
  max_jobs: limit.refine((n) => n === null || n < 2 ** 31),
  max_tokens: limit,
});
const status = z.object({ status: z.string() });

export const tenantRoutes: readonly Route[] = [
  route("Access", "GET /v1/me", {
    ...{ summary: "Who asks, and what may be taken", needs: "viewer" },
    reply: z.object({
      tenant: z.string(),
      name: z.string(),
      role,
      quota,
      used_bytes: z.number().int(),
      hub_token: z.boolean(),
    }),
    answer: async ({ caller }, { tenants, library }) => ({
      ...caller,
      quota: await tenants.quota(caller.tenant),
      used_bytes: await library.bytesOf(caller.tenant),
      hub_token: (await tenants.hubToken(caller.tenant).catch(() => undefined)) !== undefined,
    }),
  }),
  route("Access", "PUT /v1/hub-token", {
    summary: "Keeps a token of the hub, encrypted, for models that need one; it is never shown",
    ...{ needs: "user", status: 204, body: z.strictObject({ token: z.string().regex(/^[\w-]{1,300}$/) }) },
    answer: async ({ body, caller }, { tenants }) => tenants.setHubToken(caller.tenant, body.token),
  }),
  route("Access", "DELETE /v1/hub-token", {
    ...{ summary: "Forgets the token of the hub", needs: "user", status: 204 },
    answer: async ({ caller }, { tenants }) => tenants.removeHubToken(caller.tenant),
  }),
  route("Access", "GET /v1/keys", {
    ...{ summary: "Keys, without what they are", needs: "admin", reply: listOf(key) },
    answer: async (_, { tenants }) => ({ data: await tenants.keys() }),
  }),
  route("Access", "POST /v1/keys", {
    summary: "A new key, shown once. From the first one on, everybody needs one",
    ...{ needs: "admin", status: 201, reply: key.extend({ key: z.string() }) },
    body: z.strictObject({ tenant, name: z.string().min(1).max(80), role }),
    answer: async ({ body }, { tenants }) => {
      const made = await tenants.addKey(body.tenant, body.name, body.role);
      return { ...made.row, key: made.key };
    },
  }),
  route("Access", "DELETE /v1/keys/{id}", {
    ...{ summary: "Takes a key back", needs: "admin", parameters: idParameter, status: 204 },
    answer: async ({ parameters }, { tenants }) => {
      found((await tenants.removeKey(parameters.id)) || undefined, "key");
    },
  }),
  route("Access", "PUT /v1/quotas/{tenant}", {
    summary: "What a tenant may take; null for no limit",
    ...{ needs: "admin", parameters: z.strictObject({ tenant }), body: quota.strict(), reply: quota },
    answer: async ({ parameters, body }, { tenants }) => {
      await tenants.setQuota(parameters.tenant, body);
      return body;
    },
  }),
];

export const healthRoutes: readonly Route[] = [
  route("Service", "GET /v1/health/live", {
    ...{ summary: "Whether the process lives", needs: "anyone", reply: status },
    answer: async () => ({ status: "live" }),
  }),
  route("Service", "GET /v1/health/ready", {
    ...{ summary: "Whether the database answers", needs: "anyone", reply: status },
    answer: async (_, { db }) => {
      await db.pool.query("select 1");
      return { status: "ready" };
    },
  }),
  route("Service", "GET /v1/version", {
    ...{ summary: "The service's version", needs: "anyone", reply: z.object({ version: z.string() }) },
    answer: async () => ({ version }),
  }),
  route("Service", "GET /v1/workers", {
    summary: "Processes that do jobs",
    needs: "admin",
    reply: listOf(z.object({ id: z.uuid(), host: z.string(), pid: z.number().int(), started_at: time, seen_at: time })),
    answer: async (_, { db }) => ({
      data: (await db.pool.query("select * from foundry.workers order by started_at")).rows,
    }),
  }),
];
