-- One row for each attempt at a job, written before the model runs.
create table attempts (
    job_id blob not null,
    attempt integer not null,
    tier text not null,
    model text not null,
    revision text not null,
    worker text not null,
    outcome text not null check (outcome in (
        'running', 'succeeded', 'failed', 'expired', 'retried', 'escalated', 'returned', 'lost')),
    claimed_at text not null,
    started_at text,
    first_token_at text,
    finished_at text,
    prompt_tokens integer,
    prompt_tokens_computed integer,
    completion_tokens integer,
    mean_logprob real,
    reason_code text,
    reason_message text,
    primary key (job_id, attempt)
) without rowid;
