-- What operators see: workers, tenants, deferred jobs, leases, dead letters, API keys.

-- A claim holds while its own lease or that of its worker runs, so that one heartbeat, written to one row,
-- extends the leases of all jobs of a worker.
create table workers (
    worker text primary key,
    tier text not null,
    model text not null,
    revision text not null,
    batch_max integer not null,
    context_tokens bigint,
    takes_affinity_queues boolean not null default false,
    running integer not null,
    draining boolean not null,
    lease_until timestamptz not null,
    seen_at timestamptz not null
) with (fillfactor = 50);

comment on table workers is 'Workers and their last heartbeats.';
comment on column workers.worker is 'Worker name, unique for each process and tier.';
comment on column workers.tier is 'Tier that it serves.';
comment on column workers.model is 'Model that it serves.';
comment on column workers.revision is 'Revision of the model.';
comment on column workers.batch_max is 'Sequences that run at once.';
comment on column workers.context_tokens is 'Context length of the model in tokens, prompt and answer together; null if unknown.';
comment on column workers.takes_affinity_queues is 'True if it consumes affinity queues of its tier (jobs.small.affinity.0 and so on), which routers fill by prompt prefix.';
comment on column workers.running is 'Jobs running at the last heartbeat.';
comment on column workers.draining is 'True once it was told to stop.';
comment on column workers.lease_until is 'Time until which its jobs are not taken over.';
comment on column workers.seen_at is 'Last heartbeat.';

create table tenants (
    tenant text primary key,
    weight double precision not null default 1 check (weight > 0),
    tokens_per_minute bigint check (tokens_per_minute > 0),
    running_max integer check (running_max > 0),
    requests_per_minute integer check (requests_per_minute > 0),
    changed_at timestamptz not null
);

comment on table tenants is 'Scheduling weights and limits of tenants; a tenant without a row has weight 1 and no limits.';
comment on column tenants.tenant is 'Tenant.';
comment on column tenants.weight is 'Share of model time relative to other tenants'' weights while several wait.';
comment on column tenants.tokens_per_minute is 'Maximum of prompt tokens (estimated) and answer tokens (requested) sent to models in a minute.';
comment on column tenants.running_max is 'Maximum of jobs with the workers at once, queued ones included.';
comment on column tenants.requests_per_minute is 'Maximum of HTTP requests accepted in a minute.';
comment on column tenants.changed_at is 'When the row last changed.';

create table deferred_jobs (
    job_id uuid primary key,
    tenant text not null,
    queue text not null check (queue in ('in', 'small', 'large')),
    rank timestamptz not null,
    tokens integer not null,
    extras text,
    deferred_at timestamptz not null,
    released_at timestamptz,
    published_at timestamptz
);
create index deferred_jobs_waiting on deferred_jobs (queue, tenant, rank, job_id) where released_at is null;
create index deferred_jobs_released on deferred_jobs (tenant, released_at) where released_at is not null;

comment on table deferred_jobs is 'Jobs deferred until their tenant is scheduled or their start time comes.';
comment on column deferred_jobs.job_id is 'Job id.';
comment on column deferred_jobs.tenant is 'Tenant that owns the job.';
comment on column deferred_jobs.queue is 'Destination queue: small or large, or in for jobs whose start time has not come.';
comment on column deferred_jobs.rank is 'Order within the tenant and earliest release time; high priority ranks a minute earlier.';
comment on column deferred_jobs.tokens is 'Prompt tokens (estimated) plus answer tokens (requested).';
comment on column deferred_jobs.extras is 'Message fields kept besides the job; may hold prompt text.';
comment on column deferred_jobs.deferred_at is 'When the job was deferred.';
comment on column deferred_jobs.released_at is 'When it was released; the row stays while the job counts against its tenant''s limits.';
comment on column deferred_jobs.published_at is 'When the broker confirmed its message; stays null if the releasing router died and another published it.';

create table leaders (
    role text primary key,
    holder text not null,
    lease_until timestamptz not null
);

comment on table leaders is 'Leases of tasks that run in one process at a time.';
comment on column leaders.role is 'Task: release (deferred jobs) or rescuer (stuck jobs).';
comment on column leaders.holder is 'Process that holds the lease.';
comment on column leaders.lease_until is 'When another process may take over.';

create table dead_letters (
    id uuid primary key,
    job_id uuid,
    tenant text,
    queue text not null,
    reason_code text not null,
    reason_message text not null,
    body bytea not null,
    died_at timestamptz not null,
    resolution text check (resolution in ('redriven', 'discarded')),
    resolved_at timestamptz
);
create index dead_letters_open on dead_letters (died_at, id) where resolution is null;

comment on table dead_letters is 'Messages that could not be processed, kept until someone redrives or discards them.';
comment on column dead_letters.id is 'Dead letter id.';
comment on column dead_letters.job_id is 'Job id, if it could be read.';
comment on column dead_letters.tenant is 'Tenant, if it could be read.';
comment on column dead_letters.queue is 'Queue that dead-lettered the message.';
comment on column dead_letters.reason_code is 'Stable code of the reason.';
comment on column dead_letters.reason_message is 'The reason as a sentence.';
comment on column dead_letters.body is 'Message body, published again on a redrive; holds prompts.';
comment on column dead_letters.died_at is 'When it was dead-lettered.';
comment on column dead_letters.resolution is 'redriven or discarded; null while unresolved.';
comment on column dead_letters.resolved_at is 'When it was resolved.';

create table api_keys (
    id uuid primary key,
    name text not null,
    tenant text,
    scopes text not null,
    digest bytea not null unique,
    created_at timestamptz not null,
    expires_at timestamptz,
    revoked_at timestamptz
);

comment on table api_keys is 'API keys; only their digests are stored.';
comment on column api_keys.id is 'Public id of the key.';
comment on column api_keys.name is 'Purpose of the key.';
comment on column api_keys.tenant is 'Tenant that the key is limited to; null for all tenants.';
comment on column api_keys.scopes is 'Comma-separated scopes: submit, read, admin.';
comment on column api_keys.digest is 'BLAKE3 digest of the key.';
comment on column api_keys.created_at is 'When it was created.';
comment on column api_keys.expires_at is 'When it expires.';
comment on column api_keys.revoked_at is 'When it was revoked.';
