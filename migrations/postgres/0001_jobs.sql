-- Jobs, their requests and their answers. Texts stand apart from metadata, so that a change of state
-- rewrites a narrow row and analysts can be given everything but the texts.
-- All three are partitioned by the UUIDv7 id, that is by time; 0007 makes the partitions.
create table jobs (
    id uuid primary key,
    tenant text not null,
    key text,
    custom_id text,
    batch text,
    state text not null check (state in (
        'queued', 'routed', 'running', 'succeeded', 'failed', 'rejected', 'cancelled', 'expired')),
    model_asked text,
    tier text check (tier in ('small', 'large')),
    score double precision,
    threshold double precision,
    scorer text,
    features jsonb,
    cache_key bytea,
    waits_for bytea,
    source text check (source in ('computed', 'cache', 'shared')),
    answered_by uuid,
    attempts integer not null default 0,
    attempts_returned integer not null default 0,
    worker text,
    lease_until timestamptz,
    prompt_tokens integer,
    prompt_tokens_computed integer,
    completion_tokens integer,
    finish_reason text,
    model text,
    revision text,
    mean_logprob real,
    reason_code text,
    reason_message text,
    digest bytea,
    redrive_of uuid,
    reply_to text,
    correlation_id text,
    priority smallint not null default 0,
    deadline timestamptz,
    submitted_at timestamptz not null,
    routed_at timestamptz,
    started_at timestamptz,
    first_token_at timestamptz,
    finished_at timestamptz
) partition by range (id);

-- No index names a column that a claim changes, so claims stay heap-only updates.
create index jobs_open on jobs (id) where finished_at is null;
create index jobs_waiting on jobs (waits_for, id) where waits_for is not null;
create index jobs_finished on jobs (finished_at, id) where finished_at is not null;
create index jobs_batch on jobs (batch, finished_at, id) where batch is not null and finished_at is not null;
create index jobs_submitted on jobs using brin (submitted_at);

comment on table jobs is 'Every job and where it stands; no prompt or answer text.';
comment on column jobs.id is 'The job; a UUIDv7, so ids sort by the time they were made.';
comment on column jobs.tenant is 'Whose job it is.';
comment on column jobs.key is 'The producer''s idempotency key, unique within its tenant.';
comment on column jobs.custom_id is 'The producer''s own name for the line.';
comment on column jobs.batch is 'The submission it belongs to.';
comment on column jobs.state is 'queued, routed, running, succeeded, failed, rejected, cancelled or expired; the last five never change.';
comment on column jobs.model_asked is 'The model the producer asked for: auto, small, large or a name.';
comment on column jobs.tier is 'The tier chosen last.';
comment on column jobs.score is 'The router''s score, 0 to 1, higher for large.';
comment on column jobs.threshold is 'The score from which a job went to large.';
comment on column jobs.scorer is 'Name and version of the scorer.';
comment on column jobs.features is 'What the scorer saw, by name.';
comment on column jobs.cache_key is 'BLAKE3 key under which the answer may be reused.';
comment on column jobs.waits_for is 'Set while the job waits for the answer of an identical one: its cache key.';
comment on column jobs.source is 'How the answer was come by: computed, cache or shared.';
comment on column jobs.answered_by is 'The job that computed the answer, when another did.';
comment on column jobs.attempts is 'Attempts begun.';
comment on column jobs.attempts_returned is 'Attempts that a stopping worker gave back; they do not count.';
comment on column jobs.worker is 'The worker that claimed it last.';
comment on column jobs.lease_until is 'Until when that claim holds without a sign of life of the worker.';
comment on column jobs.prompt_tokens is 'Prompt tokens of the answer; not sent again when the source is cache or shared.';
comment on column jobs.prompt_tokens_computed is 'Prompt tokens computed for it; the rest came from a prefix cache.';
comment on column jobs.completion_tokens is 'Tokens of the answer.';
comment on column jobs.finish_reason is 'stop or length.';
comment on column jobs.model is 'The model that answered.';
comment on column jobs.revision is 'Its revision.';
comment on column jobs.mean_logprob is 'Mean log-probability of the generated tokens (natural logarithm).';
comment on column jobs.reason_code is 'Why there is no answer: a stable code.';
comment on column jobs.reason_message is 'Why there is no answer: a sentence.';
comment on column jobs.digest is 'BLAKE3 of what was asked.';
comment on column jobs.redrive_of is 'The job that this one repeats.';
comment on column jobs.reply_to is 'The queue that gets the answer.';
comment on column jobs.correlation_id is 'Copied to the reply.';
comment on column jobs.priority is '0 normal, 5 high.';
comment on column jobs.deadline is 'After this instant it is not started any more.';
comment on column jobs.submitted_at is 'When the producer handed it over.';
comment on column jobs.routed_at is 'When the router chose its tier.';
comment on column jobs.started_at is 'When its last attempt began.';
comment on column jobs.first_token_at is 'When the first token of its answer was there.';
comment on column jobs.finished_at is 'When it became terminal.';

create table requests (
    job_id uuid primary key,
    request text not null
) partition by range (job_id);
comment on table requests is 'What was asked, as JSON text; holds prompts.';
comment on column requests.request is 'The validated request. Text rather than jsonb, which cannot hold U+0000.';

create table answers (
    job_id uuid primary key,
    text text not null
) partition by range (job_id);
comment on table answers is 'What was answered; holds model output.';
comment on column answers.text is 'The answer; U+0000, which text cannot hold, is written U+FDD0 "0", and U+FDD0 itself U+FDD0 "1".';
