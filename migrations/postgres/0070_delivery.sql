-- When a job may begin, how often it may be tried, and when its message was last sent again.
alter table jobs
    add column not_before timestamptz,
    add column attempts_max integer,
    add column rescued_at timestamptz;
comment on column jobs.deadline is 'After this instant it is not started any more, and stopped if it runs.';
comment on column jobs.not_before is 'Before this instant it is not routed; state queued until then.';
comment on column jobs.attempts_max is 'Attempts that its producer allows, where it says so.';
comment on column jobs.rescued_at is 'When its message was last sent again because it seemed lost.';

-- Finding jobs whose deadline has passed, and the unfinished jobs of a submission.
create index jobs_due on jobs (deadline) where deadline is not null and finished_at is null;
create index jobs_batch_open on jobs (batch, id) where batch is not null and finished_at is null;

alter table attempts drop constraint attempts_outcome_check;
alter table attempts add constraint attempts_outcome_check check (outcome in (
    'running', 'succeeded', 'failed', 'expired', 'retried', 'escalated', 'returned', 'lost', 'cancelled'));
comment on column attempts.outcome is
    'running, succeeded, failed, expired, retried, escalated, returned (its worker stopped), lost (its worker vanished) or cancelled (its producer took the job back).';
comment on table attempt_answers is
    'Answers that are not their job''s: escalated ones, and what attempts had written when they were cancelled or expired; holds model output.';

create table tenants (
    tenant text primary key,
    weight double precision not null default 1 check (weight > 0),
    tokens_per_minute bigint check (tokens_per_minute > 0),
    running_max integer check (running_max > 0),
    requests_per_minute integer check (requests_per_minute > 0),
    changed_at timestamptz not null
);
comment on table tenants is 'What tenants are entitled to; one without a row has weight 1 and no limits.';
comment on column tenants.tenant is 'The tenant.';
comment on column tenants.weight is 'Share of the models'' work beside other tenants'' weights while several wait.';
comment on column tenants.tokens_per_minute is 'Most prompt and answer tokens, as estimated and asked for, that go to the models within a minute.';
comment on column tenants.running_max is 'Most jobs that are with the workers at once, each queue''s own included.';
comment on column tenants.requests_per_minute is 'Most requests that the HTTP interface accepts within a minute.';
comment on column tenants.changed_at is 'When the row last changed.';

create table deferred_jobs (
    job_id uuid primary key,
    tenant text not null,
    queue text not null check (queue in ('in', 'small', 'large')),
    rank timestamptz not null,
    tokens integer not null,
    extras text,
    deferred_at timestamptz not null,
    released_at timestamptz
);
create index deferred_jobs_waiting on deferred_jobs (queue, tenant, rank, job_id) where released_at is null;
create index deferred_jobs_released on deferred_jobs (tenant, released_at) where released_at is not null;
comment on table deferred_jobs is 'Jobs that are held back from a queue until it is their tenant''s turn, or their time.';
comment on column deferred_jobs.job_id is 'The job.';
comment on column deferred_jobs.tenant is 'Whose job it is.';
comment on column deferred_jobs.queue is 'The queue it goes to: small or large, or in for jobs that are not to begin yet.';
comment on column deferred_jobs.rank is 'Order within the tenant, and the instant before which it does not go: high priority counts as a minute earlier.';
comment on column deferred_jobs.tokens is 'Prompt tokens (estimated) and answer tokens (as asked for).';
comment on column deferred_jobs.extras is 'What its message carries beside the job; may hold prompt text.';
comment on column deferred_jobs.deferred_at is 'Since when it is held.';
comment on column deferred_jobs.released_at is 'When it went; the row stays while the job counts against its tenant''s limits.';

create table leaders (
    role text primary key,
    holder text not null,
    lease_until timestamptz not null
);
comment on table leaders is 'Who does what only one process does at a time.';
comment on column leaders.role is 'What is done: release (of held jobs) or sweep.';
comment on column leaders.holder is 'The process that does it.';
comment on column leaders.lease_until is 'Until when no other takes over.';

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
comment on table api_keys is 'Keys of the HTTP interface; only their digests are kept.';
comment on column api_keys.id is 'The key''s public identity.';
comment on column api_keys.name is 'What it is for, in a person''s words.';
comment on column api_keys.tenant is 'The only tenant it is good for; null for all.';
comment on column api_keys.scopes is 'submit, read, admin, separated by commas.';
comment on column api_keys.digest is 'BLAKE3 of the key.';
comment on column api_keys.created_at is 'When it was made.';
comment on column api_keys.expires_at is 'From when it is good no more.';
comment on column api_keys.revoked_at is 'When somebody revoked it.';

create table cancelled_batches (
    batch text not null,
    tenant text not null default '',
    cancelled_at timestamptz not null,
    primary key (batch, tenant)
);
create index cancelled_batches_at on cancelled_batches (cancelled_at);
comment on table cancelled_batches is 'Submissions that were taken back: what of them comes in later is, too.';
comment on column cancelled_batches.batch is 'The submission.';
comment on column cancelled_batches.tenant is 'Whose jobs of it; empty for all.';
comment on column cancelled_batches.cancelled_at is 'Jobs that were submitted by then are meant.';

do $$
begin
    if exists (select from pg_roles where rolname = 'promptyard_analyst') then
        grant select on tenants, leaders, cancelled_batches to promptyard_analyst;
        grant select (job_id, tenant, queue, rank, tokens, deferred_at, released_at) on deferred_jobs to promptyard_analyst;
        grant select (id, name, tenant, scopes, created_at, expires_at, revoked_at) on api_keys to promptyard_analyst;
    end if;
end $$;
