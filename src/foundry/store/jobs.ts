import { randomUUID } from "node:crypto";
import type { DeviceKind } from "../../ggml/index.js";
import { required } from "../../system/errors.js";
import type { Database, Queryable } from "../database.js";
import type { JobSpec } from "../specification.js";
import type { StoredFile } from "../storage.js";
import { storedJson, storedText } from "./storable.js";

export const JOB_STATES = ["queued", "running", "done", "failed", "cancelled"] as const;
export type JobState = (typeof JOB_STATES)[number];

export interface JobProgress {
  readonly stage: string;
  readonly done: number;
  readonly total: number;
  readonly unit: string;
  readonly detail?: string | undefined;
  readonly secondsLeft?: number | undefined;
}

export interface StageSummary {
  readonly name: string;
  readonly seconds: number;
  readonly peakMemoryBytes: number;
}

export interface Job {
  readonly id: string;
  readonly tenant: string;
  readonly number: number;
  readonly name: string;
  readonly spec: JobSpec;
  readonly state: JobState;
  readonly stage: string | null;
  readonly progress: JobProgress | null;
  readonly stages: readonly StageSummary[];
  readonly attempts: number;
  readonly deaths: number;
  readonly lease: string | null;
  readonly cancel_requested: boolean;
  readonly error: string | null;
  readonly result: Readonly<Record<string, unknown>> | null;
  readonly created_at: Date;
  readonly started_at: Date | null;
  readonly finished_at: Date | null;
}

export type EventKind = "state" | "stage" | "metrics" | "log";

export interface JobEvent {
  readonly id: number;
  readonly at: Date;
  readonly kind: EventKind;
  readonly data: Readonly<Record<string, unknown>>;
}

export interface Artifact extends StoredFile {
  readonly id: string;
  readonly name: string;
  readonly mediaType: string;
  readonly storageKey: string;
}

/** Whether a worker still holds a job, a user has cancelled it, or another worker has it. */
export type LeaseState = "held" | "cancelled" | "lost";

export interface NewJob {
  readonly tenant: string;
  readonly name: string;
  readonly spec: JobSpec;
  /** A second job with the same key is not created. */
  readonly idempotencyKey?: string | undefined;
  /** How many of the tenant's jobs may wait or run; any number by default. */
  readonly maxUnfinished?: number | undefined;
}

export interface JobFilter {
  readonly state?: JobState | undefined;
  readonly kind?: string | undefined;
  /** Only jobs with a smaller number: older ones. */
  readonly before?: number | undefined;
  readonly limit?: number | undefined;
}

/** How a job ended, and what it left. */
export interface JobEnd {
  readonly state: "done" | "failed" | "cancelled";
  readonly error?: string | undefined;
  readonly result?: object | undefined;
  readonly artifacts?: readonly Omit<Artifact, "id">[] | undefined;
}

/** A job fails when this many workers have died at the same stage. */
const MAX_DEATHS = 5;

/** The most events that are read at once. */
export const MAX_EVENTS = 1000;

const jobOf = (row: Job & { number: unknown }): Job => ({ ...row, number: Number(row.number) });

/** What a worker has for its jobs. */
export interface WorkerFacts {
  readonly device: DeviceKind;
  /** Memory of the device, of one of them where there are several. */
  readonly memoryBytes: number;
  /** Processes that share each job. */
  readonly ranks: number;
}

/** A tenant has as many jobs as it may. */
export class TooManyJobs extends Error {
  constructor(readonly limit: number) {
    super(`the quota allows at most ${limit} jobs that wait or run`);
  }
}

/** Lets one transaction at a time add to a tenant's jobs: those that others add are not seen otherwise. */
async function lockJobs(client: Queryable, tenant: string): Promise<void> {
  await client.query("select pg_advisory_xact_lock(hashtextextended($1, 0))", [`jobs of ${tenant}`]);
}

/** @throws TooManyJobs */
async function checkUnfinished(client: Queryable, tenant: string, limit: number | undefined): Promise<void> {
  if (limit !== undefined && (await countUnfinished(client, tenant)) > limit) throw new TooManyJobs(limit);
}

/** The table of jobs. A worker can change a job only while it holds the job's lease. */
export class Jobs {
  constructor(private readonly db: Database) {}

  /** Queues a job. @returns the job, or the one that has its idempotency key already @throws TooManyJobs beyond the limit */
  async create({
    tenant,
    name,
    spec,
    idempotencyKey,
    maxUnfinished,
  }: NewJob): Promise<{ readonly job: Job; readonly existed: boolean }> {
    return this.db.transaction(async (client) => {
      await lockJobs(client, tenant);
      const { rows } = await client.query(
        `insert into foundry.jobs (tenant, name, spec, state, idempotency_key) values ($1, $2, $3, 'queued', $4)
         on conflict (tenant, idempotency_key) do nothing returning *`,
        [tenant, name, storedJson(spec), idempotencyKey ?? null],
      );
      const [created] = rows;
      if (created !== undefined) {
        await checkUnfinished(client, tenant, maxUnfinished);
        await addEvent(client, created.id, "state", { state: "queued" });
        await this.db.enqueue(client, created.id);
        return { job: jobOf(created), existed: false };
      }
      const known = await this.byIdempotencyKey(tenant, idempotencyKey ?? "", client);
      return { job: required(known, "a job has the key, and is not there"), existed: true };
    });
  }

  async get(tenant: string, id: string): Promise<Job | undefined> {
    const { rows } = await this.db.pool.query("select * from foundry.jobs where tenant = $1 and id = $2", [tenant, id]);
    return rows[0] && jobOf(rows[0]);
  }

  /** Newest first, 50 by default. */
  async list(tenant: string, { state, kind, before, limit = 50 }: JobFilter): Promise<Job[]> {
    const { rows } = await this.db.pool.query(
      `select * from foundry.jobs where tenant = $1 and ($2::text is null or state = $2) and ($3::text is null or spec->>'kind' = $3)
       and ($4::bigint is null or number < $4) order by number desc limit $5`,
      [tenant, state ?? null, kind ?? null, before ?? null, limit],
    );
    return rows.map(jobOf);
  }

  /** The job that a tenant created with an idempotency key. */
  async byIdempotencyKey(tenant: string, key: string, client: Queryable = this.db.pool): Promise<Job | undefined> {
    const { rows } = await client.query("select * from foundry.jobs where tenant = $1 and idempotency_key = $2", [
      tenant,
      key,
    ]);
    return rows[0] && jobOf(rows[0]);
  }

  /** Cancels a job: at once while it waits, by its worker while it runs. Nothing happens to a job that has ended. */
  async cancel(tenant: string, id: string): Promise<void> {
    await this.db.transaction(async (client) => {
      const { rows } = await client.query(
        `update foundry.jobs set state = 'cancelled', finished_at = now(), cancel_requested = true
         where tenant = $1 and id = $2 and state = 'queued' returning id`,
        [tenant, id],
      );
      if (rows.length > 0) await addEvent(client, id, "state", { state: "cancelled" });
      else
        await client.query(
          "update foundry.jobs set cancel_requested = true where tenant = $1 and id = $2 and state = 'running'",
          [tenant, id],
        );
    });
  }

  /**
   * Queues a failed or cancelled job again, to resume where it was.
   * @param maxUnfinished how many of the tenant's jobs may wait or run; any number by default
   * @returns whether it was failed or cancelled
   * @throws TooManyJobs beyond the limit
   */
  async retry(tenant: string, id: string, maxUnfinished?: number): Promise<boolean> {
    return this.db.transaction(async (client) => {
      await lockJobs(client, tenant);
      const { rows } = await client.query(
        `update foundry.jobs set state = 'queued', cancel_requested = false, error = null, finished_at = null, deaths = 0
         where tenant = $1 and id = $2 and state in ('failed', 'cancelled') returning id`,
        [tenant, id],
      );
      if (rows.length === 0) return false;
      await checkUnfinished(client, tenant, maxUnfinished);
      await addEvent(client, id, "state", { state: "queued" });
      await this.db.enqueue(client, id);
      return true;
    });
  }

  /** Deletes a job that has ended, its events and its model. @returns whether it had ended */
  async remove(tenant: string, id: string): Promise<boolean> {
    return this.db.transaction(async (client) => {
      const { rowCount } = await client.query(
        "delete from foundry.jobs where tenant = $1 and id = $2 and state not in ('queued', 'running')",
        [tenant, id],
      );
      if (rowCount === 0) return false;
      await client.query("delete from foundry.models where tenant = $1 and job_id = $2", [tenant, id]);
      return true;
    });
  }

  /** Gives a waiting job to a worker, with a new lease; undefined when it no longer waits, or asks for more than the worker has. */
  async claim(id: string, workerId: string, { device, memoryBytes, ranks }: WorkerFacts): Promise<Job | undefined> {
    return this.db.transaction(async (client) => {
      const { rows } = await client.query(
        `update foundry.jobs set state = 'running', lease = $2, worker_id = $3, attempts = attempts + 1,
         started_at = coalesce(started_at, now()) where id = $1 and state = 'queued'
         and coalesce(spec->'requires'->>'device', $4) = $4
         and coalesce((spec->'requires'->>'memory_bytes')::bigint, 0) <= $5
         and coalesce((spec->'requires'->>'ranks')::int, 1) <= $6 returning *`,
        [id, randomUUID(), workerId, device, memoryBytes, ranks],
      );
      if (rows[0] === undefined) return undefined;
      await addEvent(client, id, "state", { state: "running", attempt: rows[0].attempts });
      return jobOf(rows[0]);
    });
  }

  /** Whether a job waits for a worker. */
  async waits(id: string): Promise<boolean> {
    const { rows } = await this.db.pool.query("select from foundry.jobs where id = $1 and state = 'queued'", [id]);
    return rows.length > 0;
  }

  async leaseState({ id, lease }: Job): Promise<LeaseState> {
    const { rows } = await this.db.pool.query(
      "select lease = $2 as held, cancel_requested from foundry.jobs where id = $1 and state = 'running'",
      [id, lease],
    );
    const [row] = rows;
    return row?.held !== true ? "lost" : row.cancel_requested ? "cancelled" : "held";
  }

  /** Records a running job's stage and progress. */
  async report(
    { id, lease }: Job,
    {
      stage,
      progress,
      stages,
    }: { stage: string | null; progress: JobProgress | null; stages: readonly StageSummary[] },
  ): Promise<void> {
    await this.db.pool.query(
      "update foundry.jobs set stage = $3, progress = $4, stages = $5 where id = $1 and lease = $2 and state = 'running'",
      [id, lease, stage, progress && storedJson(progress), storedJson(stages)],
    );
  }

  /** Records events of a running job. */
  async addEvents({ id, lease }: Job, kind: EventKind, events: readonly object[]): Promise<void> {
    if (events.length === 0) return;
    await this.db.pool.query(
      `insert into foundry.events (job_id, kind, data) select $1, $3, value from jsonb_array_elements($4::jsonb)
       where exists (select from foundry.jobs where id = $1 and lease = $2 and state = 'running')`,
      [id, lease, kind, storedJson(events)],
    );
  }

  /**
   * Ends a job, if the worker still holds its lease.
   * @param inTransaction more work of the same transaction
   * @returns whether the lease was held
   */
  async finish(
    job: Job,
    end: JobEnd,
    inTransaction: (client: Queryable) => Promise<void> = async () => {},
  ): Promise<boolean> {
    const error = end.error === undefined ? null : storedText(end.error);
    const result = end.result === undefined ? null : storedJson(end.result);
    return this.db.transaction(async (client) => {
      const { rows } = await client.query(
        `update foundry.jobs set state = $3, error = $4, result = $5, finished_at = now(), lease = null, progress = null
         where id = $1 and lease = $2 and state = 'running' returning id`,
        [job.id, job.lease, end.state, error, result],
      );
      if (rows.length === 0) return false;
      for (const { name, mediaType, bytes, sha256, storageKey } of end.artifacts ?? [])
        await client.query(
          `insert into foundry.artifacts (job_id, tenant, name, media_type, bytes, sha256, storage_key)
           values ($1, $2, $3, $4, $5, $6, $7)`,
          [job.id, job.tenant, name, mediaType, bytes, sha256, storageKey],
        );
      await inTransaction(client);
      await addEvent(client, job.id, "state", { state: end.state, error: end.error });
      return true;
    });
  }

  /** Puts a job back in the queue. */
  async release(job: Job): Promise<void> {
    await this.db.transaction(async (client) => {
      const { rows } = await client.query(
        "update foundry.jobs set state = 'queued', lease = null where id = $1 and lease = $2 and state = 'running' returning id",
        [job.id, job.lease],
      );
      if (rows.length === 0) return;
      await addEvent(client, job.id, "state", { state: "queued" });
      await this.db.enqueue(client, job.id);
    });
  }

  /**
   * Puts jobs whose workers have sent no heartbeat for so many seconds back in the queue, and jobs that a worker has let go of by mistake.
   * @param idleWorkerId a worker that works on no job @returns how many jobs there were
   */
  async recoverFromDeadWorkers(seconds: number, idleWorkerId?: string): Promise<number> {
    return this.db.transaction(async (client) => {
      const { rows } = await client.query(
        `select j.id, j.deaths, j.cancel_requested from foundry.jobs j left join foundry.workers w on w.id = j.worker_id
         where j.state = 'running'
         and (w.seen_at is null or w.seen_at < now() - make_interval(secs => $1) or j.worker_id = $2)
         for update of j skip locked`,
        [seconds, idleWorkerId ?? null],
      );
      for (const { id, deaths, cancel_requested: cancelled } of rows) {
        const isHopeless = deaths + 1 >= MAX_DEATHS;
        const state = cancelled ? "cancelled" : isHopeless ? "failed" : "queued";
        const error =
          state === "failed"
            ? `its worker died or could not go on ${deaths + 1} times: it may need more memory or room than there is; the worker's log says more`
            : undefined;
        await client.query(
          `update foundry.jobs set state = $2, lease = null, deaths = deaths + 1, error = $3,
           finished_at = case when $2 = 'queued' then null else now() end where id = $1`,
          [id, state, error ?? null],
        );
        await addEvent(client, id, "state", { state, error, workerDied: true });
        if (state === "queued") await this.db.enqueue(client, id);
      }
      await client.query("delete from foundry.workers where seen_at < now() - interval '1 hour'");
      return rows.length;
    });
  }

  /** Forgets earlier deaths of workers: a job that gets further does not kill them. */
  async resetDeaths({ id, lease }: Job): Promise<void> {
    await this.db.pool.query("update foundry.jobs set deaths = 0 where id = $1 and lease = $2", [id, lease]);
  }

  /** Points of a job's loss curve, in the order of their steps, evenly thinned to at most `limit`. A step that was repeated counts once. */
  async metrics(id: string, limit = 2000): Promise<Readonly<Record<string, unknown>>[]> {
    const { rows } = await this.db.pool.query(
      `with latest as (
         select distinct on (step) step, data from (
           select (data->>'step')::int as step, id, data from foundry.events where job_id = $1 and kind = 'metrics') as points
         order by step, id desc),
       numbered as (
         select data, row_number() over (order by step desc) - 1 as place, count(*) over () as count from latest)
       select data from numbered where place % ceil(count / $2::numeric) = 0 order by place desc`,
      [id, limit],
    );
    return rows.map(({ data }) => data);
  }

  /** Events after one of them, in order. */
  async events(id: string, after: number, limit = MAX_EVENTS): Promise<JobEvent[]> {
    const { rows } = await this.db.pool.query(
      "select id, at, kind, data from foundry.events where job_id = $1 and id > $2 order by id limit $3",
      [id, after, limit],
    );
    return rows.map((row) => ({ ...row, id: Number(row.id) }));
  }

  async artifacts(id: string): Promise<Artifact[]> {
    const { rows } = await this.db.pool.query("select * from foundry.artifacts where job_id = $1 order by name", [id]);
    return rows.map((row) => ({
      id: row.id,
      name: row.name,
      mediaType: row.media_type,
      bytes: Number(row.bytes),
      sha256: row.sha256,
      storageKey: row.storage_key,
    }));
  }
}

/** How many of a tenant's jobs wait or run. */
async function countUnfinished(client: Queryable, tenant: string): Promise<number> {
  const { rows } = await client.query(
    "select count(*)::int as count from foundry.jobs where tenant = $1 and state in ('queued', 'running')",
    [tenant],
  );
  return rows[0].count;
}

const addEvent = (client: Queryable, jobId: string, kind: EventKind, data: object) =>
  client.query("insert into foundry.events (job_id, kind, data) values ($1, $2, $3)", [jobId, kind, storedJson(data)]);
