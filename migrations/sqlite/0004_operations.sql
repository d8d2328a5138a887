-- What operators see: workers, tenants, deferred jobs, leases, dead letters, API keys.

-- A claim holds while its own lease or that of its worker runs, so that one heartbeat, written to one row,
-- extends the leases of all jobs of a worker.
create table workers (
    worker text primary key,
    tier text not null,
    model text not null,
    revision text not null,
    batch_max integer not null,
    context_tokens integer,
    takes_affinity_queues integer not null default 0,
    running integer not null,
    draining integer not null,
    lease_until text not null,
    seen_at text not null
) without rowid;

create table tenants (
    tenant text primary key,
    weight real not null default 1 check (weight > 0),
    tokens_per_minute integer check (tokens_per_minute > 0),
    running_max integer check (running_max > 0),
    requests_per_minute integer check (requests_per_minute > 0),
    changed_at text not null
) without rowid;

create table deferred_jobs (
    job_id blob primary key,
    tenant text not null,
    queue text not null check (queue in ('in', 'small', 'large')),
    rank text not null,
    tokens integer not null,
    extras text,
    deferred_at text not null,
    released_at text,
    published_at text
) without rowid;
create index deferred_jobs_waiting on deferred_jobs (queue, tenant, rank, job_id) where released_at is null;
create index deferred_jobs_released on deferred_jobs (tenant, released_at) where released_at is not null;

create table leaders (
    role text primary key,
    holder text not null,
    lease_until text not null
) without rowid;

create table dead_letters (
    id blob primary key,
    job_id blob,
    tenant text,
    queue text not null,
    reason_code text not null,
    reason_message text not null,
    body blob not null,
    died_at text not null,
    resolution text check (resolution in ('redriven', 'discarded')),
    resolved_at text
);
create index dead_letters_open on dead_letters (died_at, id) where resolution is null;

create table api_keys (
    id blob primary key,
    name text not null,
    tenant text,
    scopes text not null,
    digest blob not null unique,
    created_at text not null,
    expires_at text,
    revoked_at text
);
