-- When a job may begin, how often it may be tried, and when its message was last sent again.
alter table jobs add column not_before text;
alter table jobs add column attempts_max integer;
alter table jobs add column rescued_at text;

-- Finding jobs whose deadline has passed, and the unfinished jobs of a submission.
create index jobs_due on jobs (deadline) where deadline is not null and finished_at is null;
create index jobs_batch_open on jobs (batch, id) where batch is not null and finished_at is null;

-- Attempts may be cancelled. A check cannot be changed, so the column is made anew; the views that name
-- it go meanwhile.
drop view attempt_outcomes;
drop view escalations;
alter table attempts rename column outcome to outcome_before;
alter table attempts add column outcome text not null default 'running' check (outcome in (
    'running', 'succeeded', 'failed', 'expired', 'retried', 'escalated', 'returned', 'lost', 'cancelled'));
update attempts set outcome = outcome_before;
alter table attempts drop column outcome_before;
create view attempt_outcomes as
select strftime('%Y-%m-%dT%H:00:00Z', claimed_at) as hour, tier, model, outcome, reason_code,
       count(*) as attempts,
       avg((julianday(finished_at) - julianday(coalesce(started_at, claimed_at))) * 86400.0) as seconds_mean
  from attempts
 group by 1, 2, 3, 4, 5;
create view escalations as
select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, model,
       count(*) filter (where confidence is not null) as judged,
       count(*) filter (where outcome = 'escalated' and reason_code = 'low_confidence') as unsure,
       count(*) filter (where outcome = 'escalated' and reason_code <> 'low_confidence') as unfit,
       avg(confidence) as confidence_mean,
       coalesce(sum(completion_tokens) filter (where outcome = 'escalated'), 0) as completion_tokens
  from attempts
 where tier = 'small' and finished_at is not null
 group by 1, 2;

-- What tenants are entitled to; one without a row has the defaults.
create table tenants (
    tenant text primary key,
    weight real not null default 1 check (weight > 0),
    tokens_per_minute integer check (tokens_per_minute > 0),
    running_max integer check (running_max > 0),
    requests_per_minute integer check (requests_per_minute > 0),
    changed_at text not null
) without rowid;

-- Jobs that are held back from a queue until it is their tenant's turn, or their time.
create table deferred_jobs (
    job_id blob primary key,
    tenant text not null,
    queue text not null check (queue in ('in', 'small', 'large')),
    rank text not null,
    tokens integer not null,
    extras text,
    deferred_at text not null,
    released_at text
) without rowid;
create index deferred_jobs_waiting on deferred_jobs (queue, tenant, rank, job_id) where released_at is null;
create index deferred_jobs_released on deferred_jobs (tenant, released_at) where released_at is not null;

-- Who does what only one process does at a time.
create table leaders (
    role text primary key,
    holder text not null,
    lease_until text not null
) without rowid;

-- Keys of the HTTP interface; only their digests are kept.
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

-- Submissions that were taken back: what of them comes in later is, too.
create table cancelled_batches (
    batch text not null,
    tenant text not null default '',
    cancelled_at text not null,
    primary key (batch, tenant)
) without rowid;
