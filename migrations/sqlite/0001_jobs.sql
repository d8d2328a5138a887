-- Jobs, their requests and their answers. Texts stand apart from metadata, so that a change of state
-- rewrites a narrow row. Ids are 16-byte blobs; times are RFC 3339 text in UTC, which sorts.
create table jobs (
    id blob primary key,
    tenant text not null,
    key text,
    custom_id text,
    batch text,
    state text not null check (state in (
        'queued', 'routed', 'running', 'succeeded', 'failed', 'rejected', 'cancelled', 'expired')),
    model_asked text,
    tier text check (tier in ('small', 'large')),
    score real,
    threshold real,
    scorer text,
    features text,
    cache_key blob,
    waits_for blob,
    source text check (source in ('computed', 'cache', 'shared')),
    answered_by blob,
    attempts integer not null default 0,
    attempts_returned integer not null default 0,
    worker text,
    lease_until text,
    prompt_tokens integer,
    prompt_tokens_computed integer,
    completion_tokens integer,
    finish_reason text,
    model text,
    revision text,
    mean_logprob real,
    reason_code text,
    reason_message text,
    digest blob,
    redrive_of blob,
    reply_to text,
    correlation_id text,
    priority integer not null default 0,
    deadline text,
    submitted_at text not null,
    routed_at text,
    started_at text,
    first_token_at text,
    finished_at text
);
create index jobs_open on jobs (id) where finished_at is null;
create index jobs_waiting on jobs (waits_for, id) where waits_for is not null;
create index jobs_finished on jobs (finished_at, id) where finished_at is not null;

create table requests (
    job_id blob primary key,
    request text not null
);

create table answers (
    job_id blob primary key,
    text text not null
);
