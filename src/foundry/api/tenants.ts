import { z } from "zod";
import { ROLES } from "../store/roles.js";
import { TENANT_NAME } from "../store/tenants.js";
import { version } from "../version.js";
import { idParameter, listOf, orNotFound, type Route, route, time } from "./route.js";

const tenant = z.string().regex(TENANT_NAME);
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
    summary: "Get the caller's tenant, role, quota and use",
    needs: "viewer",
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
    summary: "Store a hub token, encrypted, for models that need one; it is never shown",
    needs: "user",
    status: 204,
    body: z.strictObject({ token: z.string().regex(/^[\w-]{1,300}$/) }),
    answer: async ({ body, caller }, { tenants }) => tenants.setHubToken(caller.tenant, body.token),
  }),
  route("Access", "DELETE /v1/hub-token", {
    summary: "Delete the hub token",
    needs: "user",
    status: 204,
    answer: async ({ caller }, { tenants }) => tenants.removeHubToken(caller.tenant),
  }),
  route("Access", "GET /v1/keys", {
    summary: "List keys, without their secrets",
    needs: "admin",
    reply: listOf(key),
    answer: async (_, { tenants }) => ({ data: await tenants.keys() }),
  }),
  route("Access", "POST /v1/keys", {
    summary: "Create a key, which is shown once. From the first key on, every caller needs one",
    needs: "admin",
    status: 201,
    body: z.strictObject({ tenant, name: z.string().min(1).max(80), role }),
    reply: key.extend({ key: z.string() }),
    answer: async ({ body }, { tenants }) => {
      const { row, key } = await tenants.addKey(body.tenant, body.name, body.role);
      return { ...row, key };
    },
  }),
  route("Access", "DELETE /v1/keys/{id}", {
    summary: "Revoke a key",
    needs: "admin",
    parameters: idParameter,
    status: 204,
    answer: async ({ parameters }, { tenants }) => {
      orNotFound((await tenants.removeKey(parameters.id)) || undefined, "key");
    },
  }),
  route("Access", "PUT /v1/quotas/{tenant}", {
    summary: "Set a tenant's quota; null for no limit",
    needs: "admin",
    parameters: z.strictObject({ tenant }),
    body: quota.strict(),
    reply: quota,
    answer: async ({ parameters, body }, { tenants }) => {
      await tenants.setQuota(parameters.tenant, body);
      return body;
    },
  }),
];

export const healthRoutes: readonly Route[] = [
  route("Service", "GET /v1/health/live", {
    summary: "Whether the process is alive",
    needs: "anyone",
    reply: status,
    answer: async () => ({ status: "live" }),
  }),
  route("Service", "GET /v1/health/ready", {
    summary: "Whether the database answers",
    needs: "anyone",
    reply: status,
    answer: async (_, { db }) => {
      await db.pool.query("select 1");
      return { status: "ready" };
    },
  }),
  route("Service", "GET /v1/version", {
    summary: "Get the service's version",
    needs: "anyone",
    reply: z.object({ version: z.string() }),
    answer: async () => ({ version }),
  }),
  route("Service", "GET /v1/workers", {
    summary: "List worker processes",
    needs: "admin",
    reply: listOf(
      z.object({
        id: z.uuid(),
        host: z.string(),
        pid: z.number().int(),
        device: z.string(),
        memory_bytes: z.number().int(),
        ranks: z.number().int(),
        started_at: time,
        seen_at: time,
      }),
    ),
    answer: async (_, { db }) => {
      const { rows } = await db.pool.query("select * from foundry.workers order by started_at");
      return { data: rows.map((row) => ({ ...row, memory_bytes: Number(row.memory_bytes) })) };
    },
  }),
];
