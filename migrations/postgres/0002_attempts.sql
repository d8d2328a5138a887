-- One row for each attempt at a job, written before the model runs.
create table attempts (
    job_id uuid not null,
    attempt integer not null,
    tier text not null,
    model text not null,
    revision text not null,
    worker text not null,
    outcome text not null check (outcome in (
        'running', 'succeeded', 'failed', 'expired', 'retried', 'escalated', 'returned', 'lost')),
    claimed_at timestamptz not null,
    started_at timestamptz,
    first_token_at timestamptz,
    finished_at timestamptz,
    prompt_tokens integer,
    prompt_tokens_computed integer,
    completion_tokens integer,
    mean_logprob real,
    reason_code text,
    reason_message text,
    primary key (job_id, attempt)
) partition by range (job_id);
create index attempts_claimed on attempts using brin (claimed_at);

comment on table attempts is 'Every attempt at a job: where it ran, how long and with what outcome.';
comment on column attempts.job_id is 'The job.';
comment on column attempts.attempt is 'Counted from 1, never reused.';
comment on column attempts.tier is 'The tier it ran on.';
comment on column attempts.model is 'The served model''s name.';
comment on column attempts.revision is 'The model''s revision.';
comment on column attempts.worker is 'The worker that ran it.';
comment on column attempts.outcome is 'running, succeeded, failed, expired, retried, escalated, returned (does not count) or lost.';
comment on column attempts.claimed_at is 'When the worker claimed it.';
comment on column attempts.started_at is 'When the engine began with it.';
comment on column attempts.first_token_at is 'When the first token was there.';
comment on column attempts.finished_at is 'When the engine was done with it, or when it was found lost.';
comment on column attempts.prompt_tokens is 'Prompt tokens sent to the model.';
comment on column attempts.prompt_tokens_computed is 'Prompt tokens computed; the rest came from a prefix cache.';
comment on column attempts.completion_tokens is 'Tokens generated.';
comment on column attempts.mean_logprob is 'Mean log-probability of the generated tokens (natural logarithm).';
comment on column attempts.reason_code is 'Why it did not succeed: a stable code.';
comment on column attempts.reason_message is 'Why it did not succeed: a sentence.';
