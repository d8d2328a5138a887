-- Jobs, requests, answers and attempts. Texts are kept apart from metadata, so that a state change rewrites a
-- narrow row and analysts can be granted everything but the texts. The large tables are partitioned by their
-- UUIDv7 ids, that is by time: see 0002. Append only from the first release on.

create table jobs (
    id uuid primary key,
    tenant text not null,
    key text,
    custom_id text,
    batch text,
    state text not null check (state in (
        'queued', 'routed', 'running', 'succeeded', 'failed', 'rejected', 'cancelled', 'expired')),
    model_asked text,
    tags jsonb,
    tier text check (tier in ('small', 'large')),
    score double precision,
    threshold double precision,
    threshold_base double precision,
    scorer text,
    features jsonb,
    features_version integer,
    target text,
    target_scope text,
    route_reason text check (route_reason in ('score', 'load', 'explore', 'rule', 'producer', 'shadow')),
    propensity double precision,
    shadow_of uuid,
    cache_key bytea,
    waits_for bytea,
    source text check (source in ('computed', 'cache', 'shared', 'semantic')),
    answered_by uuid,
    cosine real,
    attempts integer not null default 0,
    attempts_returned integer not null default 0,
    attempts_max integer,
    worker text,
    lease_until timestamptz,
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
    digest bytea,
    redrive_of uuid,
    reply_to text,
    correlation_id text,
    priority smallint not null default 0,
    deadline timestamptz,
    not_before timestamptz,
    submitted_at timestamptz not null,
    routed_at timestamptz,
    rescued_at timestamptz,
    started_at timestamptz,
    first_token_at timestamptz,
    finished_at timestamptz
) partition by range (id);
-- No index names a column that a claim changes, so that claims stay heap-only updates.
create index jobs_open on jobs (id) where finished_at is null;
create index jobs_waiting on jobs (waits_for, id) where waits_for is not null;
create index jobs_finished on jobs (finished_at, id) where finished_at is not null;
create index jobs_batch on jobs (batch, finished_at, id) where batch is not null and finished_at is not null;
create index jobs_submitted on jobs using brin (submitted_at);
-- Jobs answered with another job's answer: found again when their message is redelivered.
create index jobs_answered_along on jobs (cache_key)
    where source in ('shared', 'semantic') and reply_to is not null;
-- Jobs whose deadline has passed, and unfinished jobs of a submission.
create index jobs_due on jobs (deadline) where deadline is not null and finished_at is null;
create index jobs_batch_open on jobs (batch, id) where batch is not null and finished_at is null;

comment on table jobs is 'Every job with its state, route, cost and outcome; holds no prompt or answer text.';
comment on column jobs.id is 'Job id, a UUIDv7: ids sort by creation time.';
comment on column jobs.tenant is 'Tenant that owns the job.';
comment on column jobs.key is 'Idempotency key given by the producer, unique within the tenant.';
comment on column jobs.custom_id is 'Name that the producer gave the request, as in OpenAI batch files.';
comment on column jobs.batch is 'Submission that the job belongs to.';
comment on column jobs.state is 'queued, routed, running, succeeded, failed, rejected, cancelled or expired; the last five are terminal.';
comment on column jobs.model_asked is 'Model named in the request: auto, small, large or a served model.';
comment on column jobs.tags is 'Tags given by the producer, a JSON array of strings.';
comment on column jobs.tier is 'Tier that the job was last sent to: small or large.';
comment on column jobs.score is 'Complexity score from the router, 0 to 1; higher means large is more likely to be needed.';
comment on column jobs.threshold is 'Effective threshold: jobs with this score or more went to large, load shift included.';
comment on column jobs.threshold_base is 'Threshold derived from the target alone, before load shifted it.';
comment on column jobs.scorer is 'Name and version of the scorer.';
comment on column jobs.features is 'Features that the scorer read from the prompt, by name.';
comment on column jobs.features_version is 'Version of the feature extraction.';
comment on column jobs.target is 'Routing target in force: threshold, share:30%, quality:99% or latency:2000ms.';
comment on column jobs.target_scope is 'Scope of that target: all, tenant:NAME or tag:NAME.';
comment on column jobs.route_reason is 'Why the tier was chosen: score, load (load shifted the threshold), explore (random, for learning), rule (too long for small), producer (named in the request) or shadow (a copy for learning).';
comment on column jobs.propensity is 'Probability of the decision, 0 to 1; below 1 only for randomised decisions.';
comment on column jobs.shadow_of is 'Job that this one repeats on large for learning; such copies belong to no producer.';
comment on column jobs.cache_key is 'BLAKE3 key under which the answer may be reused.';
comment on column jobs.waits_for is 'Cache key of the identical job in flight whose answer this job waits for; null otherwise.';
comment on column jobs.source is 'Where the answer came from: computed, cache (an earlier identical request), shared (an identical request in flight) or semantic (a paraphrase).';
comment on column jobs.answered_by is 'Job that computed the answer, if it was another one.';
comment on column jobs.cosine is 'Cosine similarity to the question whose answer was reused; set when the source is semantic.';
comment on column jobs.attempts is 'Attempts started.';
comment on column jobs.attempts_returned is 'Attempts returned by a stopping worker; these do not count against the limit.';
comment on column jobs.attempts_max is 'Attempt limit set by the producer; null for the default.';
comment on column jobs.worker is 'Worker that claimed the job last.';
comment on column jobs.lease_until is 'Time at which that claim lapses unless the worker sends heartbeats.';
comment on column jobs.prompt_tokens is 'Prompt tokens of the answer; sent to a model only when the source is computed.';
comment on column jobs.prompt_tokens_computed is 'Prompt tokens computed; the rest came from a prefix cache.';
comment on column jobs.completion_tokens is 'Tokens in the answer.';
comment on column jobs.cleaned_tokens is 'Estimated prompt tokens removed by lossless clean-up in the last attempt.';
comment on column jobs.pruned_tokens is 'Estimated prompt tokens removed by context pruning in the last attempt.';
comment on column jobs.escalated_prompt_tokens is 'Prompt tokens of escalated attempts, in addition to prompt_tokens; null if none was escalated.';
comment on column jobs.escalated_prompt_tokens_computed is 'Of these, prompt tokens computed; the rest came from a prefix cache.';
comment on column jobs.escalated_completion_tokens is 'Tokens generated by escalated attempts.';
comment on column jobs.finish_reason is 'Why generation ended: stop or length.';
comment on column jobs.model is 'Model that produced the answer.';
comment on column jobs.revision is 'Revision of that model.';
comment on column jobs.mean_logprob is 'Mean log-probability of the generated tokens (natural logarithm).';
comment on column jobs.confidence is 'Calibrated probability that the small model''s answer is right; null if not computed. Kept after an escalation.';
comment on column jobs.reason_code is 'Stable code of the reason why there is no answer.';
comment on column jobs.reason_message is 'The same reason as a sentence.';
comment on column jobs.digest is 'BLAKE3 digest of the request; detects an idempotency key reused for another request.';
comment on column jobs.redrive_of is 'Job that this one repeats after a redrive.';
comment on column jobs.reply_to is 'Reply queue.';
comment on column jobs.correlation_id is 'Correlation id copied to the reply.';
comment on column jobs.priority is '0 for normal, 5 for high.';
comment on column jobs.deadline is 'Time after which the job is no longer started, and is stopped if it runs.';
comment on column jobs.not_before is 'Earliest time at which the job is routed; it stays queued until then.';
comment on column jobs.submitted_at is 'When the producer submitted the job.';
comment on column jobs.routed_at is 'When the router chose the tier.';
comment on column jobs.rescued_at is 'When the rescuer last republished the message because the job was stuck.';
comment on column jobs.started_at is 'When the last attempt started.';
comment on column jobs.first_token_at is 'When the first token of the answer was generated.';
comment on column jobs.finished_at is 'When the job reached a terminal state.';

create table requests (
    job_id uuid primary key,
    request text not null
) partition by range (job_id);

comment on table requests is 'Requests as JSON text; holds prompts.';
comment on column requests.job_id is 'Job id.';
comment on column requests.request is 'Validated request. Stored as text because jsonb cannot hold U+0000.';

create table answers (
    job_id uuid primary key,
    text text not null,
    logprobs text
) partition by range (job_id);

comment on table answers is 'Answers; holds model output.';
comment on column answers.job_id is 'Job id.';
comment on column answers.text is 'Answer text. U+0000, which text cannot hold, is stored as U+FDD0 "0", and U+FDD0 as U+FDD0 "1".';
comment on column answers.logprobs is 'Log-probability of each generated token, if requested: JSON as in OpenAI''s choices[].logprobs.content.';

-- One row per attempt, written before the model runs.
create table attempts (
    job_id uuid not null,
    attempt integer not null,
    tier text not null,
    model text not null,
    revision text not null,
    worker text not null,
    outcome text not null check (outcome in (
        'running', 'succeeded', 'failed', 'expired', 'retried', 'escalated', 'returned', 'lost', 'cancelled')),
    claimed_at timestamptz not null,
    started_at timestamptz,
    first_token_at timestamptz,
    finished_at timestamptz,
    prompt_tokens integer,
    prompt_tokens_computed integer,
    completion_tokens integer,
    mean_logprob real,
    finish_reason text,
    confidence real,
    signals jsonb,
    reason_code text,
    reason_message text,
    primary key (job_id, attempt)
) partition by range (job_id);
create index attempts_claimed on attempts using brin (claimed_at);

comment on table attempts is 'Every attempt at a job: where it ran, for how long and with what outcome.';
comment on column attempts.job_id is 'Job id.';
comment on column attempts.attempt is 'Attempt number, counted from 1 and never reused.';
comment on column attempts.tier is 'Tier that it ran on.';
comment on column attempts.model is 'Model that it ran on.';
comment on column attempts.revision is 'Revision of the model.';
comment on column attempts.worker is 'Worker that ran it.';
comment on column attempts.outcome is 'running, succeeded, failed, expired, retried, escalated, returned (the worker stopped), lost (the worker vanished) or cancelled.';
comment on column attempts.claimed_at is 'When the worker claimed it.';
comment on column attempts.started_at is 'When the engine started on it.';
comment on column attempts.first_token_at is 'When the first token was generated.';
comment on column attempts.finished_at is 'When it ended, or was found lost.';
comment on column attempts.prompt_tokens is 'Prompt tokens sent to the model.';
comment on column attempts.prompt_tokens_computed is 'Prompt tokens computed; the rest came from a prefix cache.';
comment on column attempts.completion_tokens is 'Tokens generated.';
comment on column attempts.mean_logprob is 'Mean log-probability of the generated tokens (natural logarithm).';
comment on column attempts.finish_reason is 'Why generation stopped: stop or length.';
comment on column attempts.confidence is 'Calibrated probability that the answer is right; null if not computed.';
comment on column attempts.signals is 'Statistics of the answer''s token log-probabilities from which the confidence is computed.';
comment on column attempts.reason_code is 'Stable code of the reason why it did not succeed.';
comment on column attempts.reason_message is 'The same reason as a sentence.';

create table attempt_answers (
    job_id uuid not null,
    attempt integer not null,
    text text not null,
    logprobs text,
    primary key (job_id, attempt)
) partition by range (job_id);

comment on table attempt_answers is 'Answers of attempts that did not become the job''s answer: escalated ones, and partial ones of cancelled or expired attempts; holds model output.';
comment on column attempt_answers.job_id is 'Job id.';
comment on column attempt_answers.attempt is 'Attempt number.';
comment on column attempt_answers.text is 'Answer text, encoded as in answers.';
comment on column attempt_answers.logprobs is 'As in answers.';

create table idempotency (
    tenant text not null,
    key text not null,
    job_id uuid not null,
    primary key (tenant, key)
);

comment on table idempotency is 'Maps idempotency keys to jobs. Not partitioned: a key stays unique forever.';
comment on column idempotency.tenant is 'Tenant that owns the key.';
comment on column idempotency.key is 'Idempotency key.';
comment on column idempotency.job_id is 'Job created for it.';

create table cancelled_batches (
    batch text not null,
    tenant text not null default '',
    cancelled_at timestamptz not null,
    primary key (batch, tenant)
);
create index cancelled_batches_at on cancelled_batches (cancelled_at);

comment on table cancelled_batches is 'Cancelled submissions; their jobs that arrive later are cancelled too.';
comment on column cancelled_batches.batch is 'Submission.';
comment on column cancelled_batches.tenant is 'Tenant whose jobs were cancelled; empty for all tenants.';
comment on column cancelled_batches.cancelled_at is 'Jobs submitted up to this time are cancelled.';
