-- Answers to questions that ask the same in other words (cache: semantic).
alter table jobs drop constraint jobs_source_check;
alter table jobs add constraint jobs_source_check
    check (source in ('computed', 'cache', 'shared', 'semantic'));
alter table jobs add column cosine real;
comment on column jobs.source is
    'How the answer was come by: computed, cache (the same request, earlier), shared (the same request, in flight) or semantic (a request that asks the same in other words).';
comment on column jobs.prompt_tokens is 'Prompt tokens of the answer; sent for this job only when the source is computed.';
comment on column jobs.cosine is 'Likeness of the question to the one whose answer it was given; set when the source is semantic.';

-- Questions whose answers may serve others. A row counts while the cache entry of its key is ready.
-- It holds what users wrote: analysts do not see it.
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
create index cache_entries_ready on cache_entries (created_at) where state = 'ready';
comment on table cache_questions is 'Questions whose answers may serve others that ask the same; holds prompt text.';
comment on column cache_questions.key is 'The cache entry that holds the answer.';
comment on column cache_questions.tenant is 'Whose question it was.';
comment on column cache_questions.scope is 'BLAKE3 over all that requests must agree in beside the question: tenant, models, revisions, system message, parameters.';
comment on column cache_questions.embedder is 'Revision of the encoder that made the embedding.';
comment on column cache_questions.question is 'The last user message.';
comment on column cache_questions.embedding is 'Its unit vector.';
comment on column cache_questions.cosine_min is 'Likeness that another question must have; rises when a recheck disagrees.';
comment on column cache_questions.rechecks is 'Hits that were run again to see whether the answer fits.';
comment on column cache_questions.disagreements is 'Those whose own answer said something else.';
comment on column cache_questions.created_at is 'When the question came.';
comment on column cache_questions.changed_at is 'When the row last changed.';

-- What each question came to that had a near one.
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
comment on table semantic_lookups is 'For each question that asked for semantic reuse and had a near one: whose answer it was given, or why not.';
comment on column semantic_lookups.job_id is 'The job that asked.';
comment on column semantic_lookups.tenant is 'Whose job it is.';
comment on column semantic_lookups.entry is 'The cache entry of the nearest question; jobs.answered_by names the job that computed it.';
comment on column semantic_lookups.outcome is 'hit: its answer was given; candidate: the job''s own model was asked first whether it fits (jobs.source tells the end); miss: it was not.';
comment on column semantic_lookups.veto is 'Why not: cosine (not near enough) or the guard that forbade it; gone when the answer had just been removed; exact when the very same request had an answer.';
comment on column semantic_lookups.cosine is 'Likeness of the two questions.';
comment on column semantic_lookups.cosine_min is 'The likeness that the entry asked for at that time.';
comment on column semantic_lookups.looked_at is 'When it was decided.';
comment on column semantic_lookups.recheck_propensity is 'Set when the hit was drawn to be run again: the probability of that.';
comment on column semantic_lookups.recheck_id is 'The job that runs it again.';
comment on column semantic_lookups.made_at is 'When that job was made.';
comment on column semantic_lookups.rechecked_at is 'When its answer was compared, or when it was seen that there is none.';
comment on column semantic_lookups.agrees is 'Whether both answers say the same; null when there was none to compare.';

create view semantic_reuse as
select date_trunc('hour', l.looked_at) as hour, l.tenant,
       count(*) as near_questions,
       count(*) filter (where j.source = 'semantic') as hits,
       count(*) filter (where l.outcome = 'miss') as misses,
       count(*) filter (where l.agrees is not null) as rechecks,
       count(*) filter (where not l.agrees) as disagreements,
       (count(*) filter (where not l.agrees))::float8
           / nullif(count(*) filter (where l.agrees is not null), 0)::float8 as wrong_share
  from semantic_lookups l
  join jobs j on j.id = l.job_id
 group by 1, 2;
comment on view semantic_reuse is 'Answers given to questions that ask the same in other words, and how often a recheck disagreed, by hour and tenant.';
comment on column semantic_reuse.hour is 'The hour in which the questions came.';
comment on column semantic_reuse.tenant is 'Whose jobs they were.';
comment on column semantic_reuse.near_questions is 'Questions that had a near one.';
comment on column semantic_reuse.hits is 'Those that were given its answer.';
comment on column semantic_reuse.misses is 'Those that a guard or the threshold kept from it.';
comment on column semantic_reuse.rechecks is 'Hits that were run again and compared.';
comment on column semantic_reuse.disagreements is 'Those whose own answer said something else.';
comment on column semantic_reuse.wrong_share is 'Disagreements as a share of the rechecks: an estimate of the share of wrong hits.';

create view semantic_vetoes as
select date_trunc('day', looked_at) as day, tenant, coalesce(veto, 'none') as veto, count(*) as lookups,
       avg(cosine)::float8 as cosine_mean
  from semantic_lookups
 group by 1, 2, 3;
comment on view semantic_vetoes is 'Why near questions were not given each other''s answers, by day and tenant.';
comment on column semantic_vetoes.day is 'The day on which the questions came.';
comment on column semantic_vetoes.tenant is 'Whose jobs they were.';
comment on column semantic_vetoes.veto is 'What forbade it; none for hits.';
comment on column semantic_vetoes.lookups is 'Questions.';
comment on column semantic_vetoes.cosine_mean is 'Their mean likeness.';

drop view cache_savings;
create view cache_savings as
select date_trunc('hour', finished_at) as hour, tenant,
       count(*) filter (where source = 'computed') as computed,
       count(*) filter (where source = 'cache') as from_cache,
       count(*) filter (where source = 'shared') as shared,
       count(*) filter (where source = 'semantic') as semantic,
       count(*) filter (where source <> 'computed')::float8 / count(*)::float8 as reused_share,
       coalesce(sum(prompt_tokens) filter (where source <> 'computed'), 0)::bigint as prompt_tokens_saved,
       coalesce(sum(completion_tokens) filter (where source <> 'computed'), 0)::bigint as completion_tokens_saved
  from jobs
 where state = 'succeeded' and shadow_of is null
 group by 1, 2;
comment on view cache_savings is 'Answers reused instead of computed, by hour and tenant; shadow copies left out.';
comment on column cache_savings.hour is 'The hour in which the jobs finished.';
comment on column cache_savings.tenant is 'Whose jobs they were.';
comment on column cache_savings.computed is 'Jobs a model ran for.';
comment on column cache_savings.from_cache is 'Jobs given an earlier identical job''s answer.';
comment on column cache_savings.shared is 'Jobs that shared the run of an identical job in flight.';
comment on column cache_savings.semantic is 'Jobs given the answer to a question that asks the same in other words.';
comment on column cache_savings.reused_share is 'The last three as a share of all, 0 to 1.';
comment on column cache_savings.prompt_tokens_saved is 'Prompt tokens of reused answers.';
comment on column cache_savings.completion_tokens_saved is 'Generated tokens of reused answers.';

do $$
begin
    if exists (select from pg_roles where rolname = 'promptyard_analyst') then
        grant select on semantic_lookups, semantic_reuse, semantic_vetoes, cache_savings to promptyard_analyst;
        grant select (key, tenant, embedder, cosine_min, rechecks, disagreements, created_at, changed_at)
            on cache_questions to promptyard_analyst;
    end if;
end $$;
