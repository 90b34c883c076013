import { randomBytes } from "node:crypto";
import { hashKey } from "../../serve/index.js";
import { UsageError } from "../../system/errors.js";
import type { Database } from "../database.js";
import type { Secrets } from "../secrets.js";
import type { Role } from "./roles.js";

/** The tenant of callers without a key, where none is needed. */
export const LOCAL_TENANT = "local";

/** A tenant's name, which becomes part of paths. */
export const TENANT_NAME = /^[a-z0-9][a-z0-9-]{0,40}$/;

/** Who sent a request. */
export interface Caller {
  readonly tenant: string;
  readonly name: string;
  readonly role: Role;
}

/** A key as it is listed: not the key itself. */
export interface KeyRow {
  readonly id: string;
  readonly tenant: string;
  readonly name: string;
  readonly role: Role;
  readonly created_at: Date;
}

/** A tenant's limits; null for none. */
export interface Quota {
  /** Bytes of uploads and results. */
  readonly max_bytes: number | null;
  /** Jobs that wait or run. */
  readonly max_jobs: number | null;
  /** Tokens of one job. */
  readonly max_tokens: number | null;
}

/** Keys, quotas and hub tokens. */
export class Tenants {
  constructor(
    private readonly db: Database,
    private readonly secrets: Secrets,
    private readonly defaults: Quota,
  ) {}

  /** Whether there are keys: then every caller needs one. */
  async anyKeys(): Promise<boolean> {
    const { rows } = await this.db.pool.query("select exists (select from foundry.keys) as any");
    return rows[0].any;
  }

  /** Creates a key. @returns the key itself, of which only a hash is stored @throws UsageError for an invalid tenant name */
  async addKey(tenant: string, name: string, role: Role): Promise<{ readonly key: string; readonly row: KeyRow }> {
    if (!TENANT_NAME.test(tenant))
      throw new UsageError(
        `"${tenant}" is not a tenant name: use up to 41 lower-case letters, digits and hyphens, a letter or digit first`,
      );
    const key = `cpk_${randomBytes(32).toString("base64url")}`;
    const { rows } = await this.db.pool.query(
      "insert into foundry.keys (tenant, name, role, hash) values ($1, $2, $3, $4) returning id, tenant, name, role, created_at",
      [tenant, name, role, hashKey(key)],
    );
    return { key, row: rows[0] };
  }

  /** Finds the owner of a key by its hash, so that timing reveals nothing about the key. */
  async callerOf(key: string): Promise<Caller | undefined> {
    const { rows } = await this.db.pool.query("select tenant, name, role from foundry.keys where hash = $1", [
      hashKey(key),
    ]);
    return rows[0];
  }

  async keys(): Promise<KeyRow[]> {
    const { rows } = await this.db.pool.query(
      "select id, tenant, name, role, created_at from foundry.keys order by created_at",
    );
    return rows;
  }

  async removeKey(id: string): Promise<boolean> {
    const { rowCount } = await this.db.pool.query("delete from foundry.keys where id::text = lower($1)", [id]);
    return rowCount === 1;
  }

  async quota(tenant: string): Promise<Quota> {
    const { rows } = await this.db.pool.query(
      "select max_bytes, max_jobs, max_tokens from foundry.quotas where tenant = $1",
      [tenant],
    );
    const [own] = rows;
    if (own === undefined) return this.defaults;
    const number = (value: unknown) => (value === null ? null : Number(value));
    return { max_bytes: number(own.max_bytes), max_jobs: number(own.max_jobs), max_tokens: number(own.max_tokens) };
  }

  async setQuota(tenant: string, quota: Quota): Promise<void> {
    await this.db.pool.query(
      `insert into foundry.quotas (tenant, max_bytes, max_jobs, max_tokens) values ($1, $2, $3, $4)
       on conflict (tenant) do update set max_bytes = $2, max_jobs = $3, max_tokens = $4`,
      [tenant, quota.max_bytes, quota.max_jobs, quota.max_tokens],
    );
  }

  async setHubToken(tenant: string, token: string): Promise<void> {
    await this.db.pool.query(
      "insert into foundry.hub_tokens (tenant, sealed) values ($1, $2) on conflict (tenant) do update set sealed = $2, created_at = now()",
      [tenant, this.secrets.seal(token, tenant)],
    );
  }

  async removeHubToken(tenant: string): Promise<void> {
    await this.db.pool.query("delete from foundry.hub_tokens where tenant = $1", [tenant]);
  }

  async hubToken(tenant: string): Promise<string | undefined> {
    const { rows } = await this.db.pool.query("select sealed from foundry.hub_tokens where tenant = $1", [tenant]);
    return rows[0] && this.secrets.unseal(rows[0].sealed, tenant);
  }
}
