-- Jobs, requests, answers and attempts. Texts are kept apart from metadata, so that a state change rewrites a
-- narrow row. Ids are 16-byte blobs; times are RFC 3339 text in UTC, which sorts. The same tables as in
-- migrations/postgres, where columns are commented. Append only from the first release on.

create table jobs (
    id blob primary key,
    tenant text not null,
    key text,
    custom_id text,
    batch text,
    state text not null check (state in (
        'queued', 'routed', 'running', 'succeeded', 'failed', 'rejected', 'cancelled', 'expired')),
    model_asked text,
    tags text,
    tier text check (tier in ('small', 'large')),
    score real,
    threshold real,
    threshold_base real,
    scorer text,
    features text,
    features_version integer,
    target text,
    target_scope text,
    route_reason text check (route_reason in ('score', 'load', 'explore', 'rule', 'producer', 'shadow')),
    propensity real,
    shadow_of blob,
    cache_key blob,
    waits_for blob,
    source text check (source in ('computed', 'cache', 'shared', 'semantic')),
    answered_by blob,
    cosine real,
    attempts integer not null default 0,
    attempts_returned integer not null default 0,
    attempts_max integer,
    worker text,
    lease_until text,
    prompt_tokens integer,
    prompt_tokens_computed integer,
    completion_tokens integer,
    cleaned_tokens integer,
    pruned_tokens integer,
    escalated_prompt_tokens integer,
    escalated_prompt_tokens_computed integer,
    escalated_completion_tokens integer,
    finish_reason text,
    model text,
    revision text,
    mean_logprob real,
    confidence real,
    reason_code text,
    reason_message text,
    digest blob,
    redrive_of blob,
    reply_to text,
    correlation_id text,
    priority integer not null default 0,
    deadline text,
    not_before text,
    submitted_at text not null,
    routed_at text,
    rescued_at text,
    started_at text,
    first_token_at text,
    finished_at text
);
create index jobs_open on jobs (id) where finished_at is null;
create index jobs_waiting on jobs (waits_for, id) where waits_for is not null;
create index jobs_finished on jobs (finished_at, id) where finished_at is not null;
-- Jobs answered with another job's answer: found again when their message is redelivered.
create index jobs_answered_along on jobs (cache_key)
    where source in ('shared', 'semantic') and reply_to is not null;
-- Jobs whose deadline has passed, and unfinished jobs of a submission.
create index jobs_due on jobs (deadline) where deadline is not null and finished_at is null;
create index jobs_batch_open on jobs (batch, id) where batch is not null and finished_at is null;

create table requests (
    job_id blob primary key,
    request text not null
);

create table answers (
    job_id blob primary key,
    text text not null,
    logprobs text
);

-- One row per attempt, written before the model runs.
create table attempts (
    job_id blob not null,
    attempt integer not null,
    tier text not null,
    model text not null,
    revision text not null,
    worker text not null,
    outcome text not null check (outcome in (
        'running', 'succeeded', 'failed', 'expired', 'retried', 'escalated', 'returned', 'lost', 'cancelled')),
    claimed_at text not null,
    started_at text,
    first_token_at text,
    finished_at text,
    prompt_tokens integer,
    prompt_tokens_computed integer,
    completion_tokens integer,
    mean_logprob real,
    finish_reason text,
    confidence real,
    signals text,
    reason_code text,
    reason_message text,
    primary key (job_id, attempt)
) without rowid;

create table attempt_answers (
    job_id blob not null,
    attempt integer not null,
    text text not null,
    logprobs text,
    primary key (job_id, attempt)
) without rowid;

create table idempotency (
    tenant text not null,
    key text not null,
    job_id blob not null,
    primary key (tenant, key)
) without rowid;

create table cancelled_batches (
    batch text not null,
    tenant text not null default '',
    cancelled_at text not null,
    primary key (batch, tenant)
) without rowid;
