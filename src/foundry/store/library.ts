import type { Database, Queryable } from "../database.js";
import type { StoredFile } from "../storage.js";
import { storedJson, storedText } from "./storable.js";

/** Where a model comes from. */
export type ModelSource =
  | { readonly kind: "embedded"; readonly path: string }
  | { readonly kind: "hub"; readonly id: string }
  | { readonly kind: "upload" }
  | { readonly kind: "job"; readonly key: string };

/** A model's architecture and size. */
export interface ModelFacts {
  readonly architecture: string;
  readonly parameters: number;
  readonly contextLength: number;
  readonly config: Readonly<Record<string, unknown>>;
}

export interface ModelRow {
  readonly id: string;
  /** Null for a model that is shared by all tenants. */
  readonly tenant: string | null;
  readonly name: string;
  readonly source: ModelSource;
  readonly state: "uploading" | "ready";
  readonly facts: ModelFacts | null;
  readonly bytes: number;
  readonly licence: string | null;
  readonly job_id: string | null;
  readonly created_at: Date;
}

export interface NamedFile extends StoredFile {
  readonly name: string;
  readonly storageKey: string;
}

export interface Dataset extends StoredFile {
  readonly id: string;
  readonly tenant: string | null;
  readonly name: string;
  readonly format: string;
  readonly storageKey: string;
  readonly created_at: Date;
}

const modelOf = (row: ModelRow): ModelRow => ({ ...row, bytes: Number(row.bytes) });
const datasetOf = (row: Record<string, unknown>): Dataset =>
  ({ ...row, bytes: Number(row.bytes), storageKey: row.storage_key }) as unknown as Dataset;

/** A tenant has as many bytes as it may. */
export class TooManyBytes extends Error {
  constructor(limit: number) {
    super(`the quota of ${limit} bytes is used up: delete something first`);
  }
}

/** Models and data sets. A tenant sees its own and the shared ones. */
export class Library {
  constructor(private readonly db: Database) {}

  async models(tenant: string): Promise<ModelRow[]> {
    const { rows } = await this.db.pool.query(
      "select * from foundry.models where tenant = $1 or tenant is null order by created_at desc, id",
      [tenant],
    );
    return rows.map(modelOf);
  }

  async model(tenant: string, id: string): Promise<ModelRow | undefined> {
    const { rows } = await this.db.pool.query(
      "select * from foundry.models where id = $2 and (tenant = $1 or tenant is null)",
      [tenant, id],
    );
    return rows[0] && modelOf(rows[0]);
  }

  async addModel(
    model: Pick<ModelRow, "tenant" | "name" | "source" | "state"> &
      Partial<Pick<ModelRow, "facts" | "licence" | "bytes" | "job_id">>,
    client: Queryable = this.db.pool,
  ): Promise<ModelRow> {
    const { rows } = await client.query(
      `insert into foundry.models (tenant, name, source, state, facts, licence, bytes, job_id)
       values ($1, $2, $3, $4, $5, $6, $7, $8) returning *`,
      [
        model.tenant,
        model.name,
        JSON.stringify(model.source),
        model.state,
        model.facts ? storedJson(model.facts) : null,
        model.licence == null ? null : storedText(model.licence),
        model.bytes ?? 0,
        model.job_id ?? null,
      ],
    );
    return modelOf(rows[0]);
  }

  /** Marks an uploaded model as complete. */
  async modelReady(id: string, facts: ModelFacts, licence: string | null, bytes: number): Promise<void> {
    await this.db.pool.query(
      "update foundry.models set state = 'ready', facts = $2, licence = $3, bytes = $4 where id = $1",
      [id, storedJson(facts), licence === null ? null : storedText(licence), bytes],
    );
  }

  /** Records the facts of a hub model, and its licence if it is known. */
  async addFacts(
    id: string,
    { facts, licence = null }: { facts: ModelFacts; licence?: string | null | undefined },
  ): Promise<void> {
    await this.db.pool.query(
      "update foundry.models set facts = $2, licence = coalesce($3, licence) where id = $1 and source->>'kind' = 'hub'",
      [id, storedJson(facts), licence === null ? null : storedText(licence)],
    );
  }

  async modelFiles(id: string): Promise<NamedFile[]> {
    const { rows } = await this.db.pool.query("select * from foundry.model_files where model_id = $1 order by name", [
      id,
    ]);
    return rows.map((row) => ({
      name: row.name,
      bytes: Number(row.bytes),
      sha256: row.sha256,
      storageKey: row.storage_key,
    }));
  }

  async addModelFile(id: string, file: NamedFile, client: Queryable = this.db.pool): Promise<void> {
    await client.query(
      `insert into foundry.model_files (model_id, name, bytes, sha256, storage_key) values ($1, $2, $3, $4, $5)
       on conflict (model_id, name) do update set bytes = $3, sha256 = $4, storage_key = $5`,
      [id, file.name, file.bytes, file.sha256, file.storageKey],
    );
  }

  async removeModelFile(id: string, name: string): Promise<void> {
    await this.db.pool.query("delete from foundry.model_files where model_id = $1 and name = $2", [id, name]);
  }

  async removeModel(tenant: string, id: string): Promise<boolean> {
    const { rowCount } = await this.db.pool.query("delete from foundry.models where tenant = $1 and id = $2", [
      tenant,
      id,
    ]);
    return rowCount === 1;
  }

  async datasets(tenant: string): Promise<Dataset[]> {
    const { rows } = await this.db.pool.query(
      "select * from foundry.datasets where tenant = $1 or tenant is null order by created_at desc, id",
      [tenant],
    );
    return rows.map(datasetOf);
  }

  async dataset(tenant: string, id: string): Promise<Dataset | undefined> {
    const { rows } = await this.db.pool.query(
      "select * from foundry.datasets where id = $2 and (tenant = $1 or tenant is null)",
      [tenant, id],
    );
    return rows[0] && datasetOf(rows[0]);
  }

  async addDataset(dataset: Omit<Dataset, "created_at">, client: Queryable = this.db.pool): Promise<Dataset> {
    const { id, tenant, name, format, bytes, sha256, storageKey } = dataset;
    const { rows } = await client.query(
      `insert into foundry.datasets (id, tenant, name, format, bytes, sha256, storage_key)
       values ($1, $2, $3, $4, $5, $6, $7) returning *`,
      [id, tenant, name, format, bytes, sha256, storageKey],
    );
    return datasetOf(rows[0]);
  }

  async removeDataset(tenant: string, id: string): Promise<boolean> {
    const { rowCount } = await this.db.pool.query("delete from foundry.datasets where tenant = $1 and id = $2", [
      tenant,
      id,
    ]);
    return rowCount === 1;
  }

  /**
   * Adds files to what a tenant has, one addition at a time: those that others add meanwhile would not be seen otherwise.
   * @param mostBytes what the tenant may have; any number where null
   * @throws TooManyBytes beyond it; nothing is added then
   */
  async withinBytes<T>(tenant: string, mostBytes: number | null, add: (client: Queryable) => Promise<T>): Promise<T> {
    return this.db.transaction(async (client) => {
      await client.query("select pg_advisory_xact_lock(hashtextextended($1, 0))", [`bytes of ${tenant}`]);
      const added = await add(client);
      if (mostBytes !== null && (await this.bytesOf(tenant, client)) > mostBytes) throw new TooManyBytes(mostBytes);
      return added;
    });
  }

  /** Bytes of a tenant's uploads and results. */
  async bytesOf(tenant: string, client: Queryable = this.db.pool): Promise<number> {
    const { rows } = await client.query(
      `select (select coalesce(sum(bytes), 0) from foundry.datasets where tenant = $1)
            + (select coalesce(sum(f.bytes), 0) from foundry.model_files f join foundry.models m on m.id = f.model_id where m.tenant = $1)
            + (select coalesce(sum(bytes), 0) from foundry.artifacts where tenant = $1) as bytes`,
      [tenant],
    );
    return Number(rows[0].bytes);
  }
}
