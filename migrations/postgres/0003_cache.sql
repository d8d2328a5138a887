-- Reusable answers: exact (cache_entries) and semantic (cache_questions).

create table cache_entries (
    key bytea primary key,
    tenant text not null,
    state text not null check (state in ('computing', 'ready')),
    leader uuid not null,
    lease_until timestamptz,
    model text,
    revision text,
    answer text,
    created_at timestamptz not null,
    expires_at timestamptz,
    hits bigint not null default 0,
    last_hit_at timestamptz
) with (fillfactor = 80);
create index cache_entries_ready on cache_entries (created_at) where state = 'ready';
create index cache_entries_expiry on cache_entries (expires_at) where state = 'ready';
create index cache_entries_tenant on cache_entries (tenant) where state = 'ready';

comment on table cache_entries is 'Answers that may be reused, and answers being computed.';
comment on column cache_entries.key is 'BLAKE3 over tenant, model, revision, messages and sampling parameters.';
comment on column cache_entries.tenant is 'Tenant that owns the answer.';
comment on column cache_entries.state is 'computing or ready.';
comment on column cache_entries.leader is 'Job that computes, or computed, the answer.';
comment on column cache_entries.lease_until is 'While computing: time at which another job may take over.';
comment on column cache_entries.model is 'Model that produced the answer.';
comment on column cache_entries.revision is 'Revision of that model.';
comment on column cache_entries.answer is 'The answer as JSON; holds model output.';
comment on column cache_entries.created_at is 'When the answer was stored, or when computing started.';
comment on column cache_entries.expires_at is 'When the answer stops being reused.';
comment on column cache_entries.hits is 'Jobs answered from it.';
comment on column cache_entries.last_hit_at is 'When it last answered a job.';

create table cache_questions (
    key bytea primary key,
    tenant text not null,
    scope bytea not null,
    embedder text not null,
    question text not null,
    embedding real[] not null,
    cosine_min real not null,
    rechecks integer not null default 0,
    disagreements integer not null default 0,
    created_at timestamptz not null,
    changed_at timestamptz not null
);
create index cache_questions_scope on cache_questions (scope);
create index cache_questions_changed on cache_questions (changed_at);

comment on table cache_questions is 'Questions whose answers may serve paraphrases; holds prompt text.';
comment on column cache_questions.key is 'Cache entry that holds the answer.';
comment on column cache_questions.tenant is 'Tenant that asked.';
comment on column cache_questions.scope is 'BLAKE3 digest of everything but the question that requests must share: tenant, models, revisions, system message, parameters.';
comment on column cache_questions.embedder is 'Revision of the embedding model.';
comment on column cache_questions.question is 'Last user message.';
comment on column cache_questions.embedding is 'Its unit vector.';
comment on column cache_questions.cosine_min is 'Cosine similarity that another question must reach; raised when a recheck disagrees.';
comment on column cache_questions.rechecks is 'Hits that were computed again to compare the answers.';
comment on column cache_questions.disagreements is 'Rechecks whose answer differed.';
comment on column cache_questions.created_at is 'When the question was asked.';
comment on column cache_questions.changed_at is 'When the row last changed.';

create table semantic_lookups (
    job_id uuid primary key,
    tenant text not null,
    entry bytea not null,
    outcome text not null check (outcome in ('hit', 'candidate', 'miss')),
    veto text,
    cosine real not null,
    cosine_min real not null,
    looked_at timestamptz not null,
    recheck_propensity double precision,
    recheck_id uuid,
    made_at timestamptz,
    rechecked_at timestamptz,
    agrees boolean
);
create index semantic_lookups_open on semantic_lookups (job_id)
    where recheck_propensity is not null and rechecked_at is null;

comment on table semantic_lookups is 'One row for each lookup that found a near question: the outcome, and why.';
comment on column semantic_lookups.job_id is 'Job that asked.';
comment on column semantic_lookups.tenant is 'Tenant that owns the job.';
comment on column semantic_lookups.entry is 'Cache entry of the nearest question; jobs.answered_by names the job that computed it.';
comment on column semantic_lookups.outcome is 'hit: its answer was reused; candidate: the model was asked first whether it fits (jobs.source has the result); miss: it was not reused.';
comment on column semantic_lookups.veto is 'Why it was a miss: cosine (not similar enough) or the guard that rejected it; gone if the answer had just been removed; exact if the identical request was cached.';
comment on column semantic_lookups.cosine is 'Cosine similarity of the two questions.';
comment on column semantic_lookups.cosine_min is 'Similarity that the entry required at that time.';
comment on column semantic_lookups.looked_at is 'When the lookup was made.';
comment on column semantic_lookups.recheck_propensity is 'Probability with which the hit was drawn for a recheck; null if it was not drawn.';
comment on column semantic_lookups.recheck_id is 'Job that computes the answer again.';
comment on column semantic_lookups.made_at is 'When that job was created.';
comment on column semantic_lookups.rechecked_at is 'When the answers were compared, or found not to be comparable.';
comment on column semantic_lookups.agrees is 'Whether the answers agree; null if there was nothing to compare.';
