/** Steps from each version of the schema to the next, in order. A released step never changes. */
export const MIGRATIONS: readonly string[] = [
  `
  create table foundry.keys (
    id uuid primary key default gen_random_uuid(),
    tenant text not null,
    name text not null,
    role text not null check (role in ('viewer', 'user', 'admin')),
    hash text not null unique,
    created_at timestamptz not null default now()
  );
  create table foundry.quotas (
    tenant text primary key,
    max_bytes bigint,
    max_jobs int,
    max_tokens bigint
  );
  create table foundry.hub_tokens (
    tenant text primary key,
    sealed text not null,
    created_at timestamptz not null default now()
  );
  create table foundry.datasets (
    id uuid primary key default gen_random_uuid(),
    tenant text,
    name text not null,
    format text not null,
    bytes bigint not null,
    sha256 text not null,
    storage_key text not null,
    created_at timestamptz not null default now()
  );
  create table foundry.models (
    id uuid primary key default gen_random_uuid(),
    tenant text,
    name text not null,
    source jsonb not null,
    state text not null check (state in ('uploading', 'ready')),
    facts jsonb,
    bytes bigint not null default 0,
    licence text,
    job_id uuid,
    created_at timestamptz not null default now()
  );
  create table foundry.model_files (
    model_id uuid not null references foundry.models on delete cascade,
    name text not null,
    bytes bigint not null,
    sha256 text not null,
    storage_key text not null,
    primary key (model_id, name)
  );
  create table foundry.jobs (
    id uuid primary key default gen_random_uuid(),
    tenant text not null,
    number bigserial,
    idempotency_key text,
    name text not null,
    spec jsonb not null,
    state text not null check (state in ('queued', 'running', 'done', 'failed', 'cancelled')),
    stage text,
    progress jsonb,
    stages jsonb not null default '[]',
    attempts int not null default 0,
    deaths int not null default 0,
    lease uuid,
    worker_id uuid,
    cancel_requested boolean not null default false,
    error text,
    result jsonb,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    finished_at timestamptz,
    unique (tenant, idempotency_key)
  );
  create index jobs_by_tenant on foundry.jobs (tenant, number desc);
  create index jobs_running on foundry.jobs (worker_id) where state = 'running';
  create table foundry.events (
    id bigserial primary key,
    job_id uuid not null references foundry.jobs on delete cascade,
    at timestamptz not null default now(),
    kind text not null check (kind in ('state', 'stage', 'metrics', 'log')),
    data jsonb not null
  );
  create index events_by_job on foundry.events (job_id, id);
  create table foundry.artifacts (
    id uuid primary key default gen_random_uuid(),
    job_id uuid not null references foundry.jobs on delete cascade,
    tenant text not null,
    name text not null,
    media_type text not null,
    bytes bigint not null,
    sha256 text not null,
    storage_key text not null,
    unique (job_id, name)
  );
  create table foundry.workers (
    id uuid primary key,
    host text not null,
    pid int not null,
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now()
  );
  `,
  `
  alter table foundry.workers
    add column device text not null default 'cpu',
    add column memory_bytes bigint not null default 0,
    add column ranks int not null default 1;
  `,
];
