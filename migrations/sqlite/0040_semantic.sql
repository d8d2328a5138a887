-- Answers to questions that ask the same in other words (cache: semantic). A check cannot be changed,
-- so the column of sources is made anew; the views that name it go meanwhile.
drop view cache_savings;
drop view token_savings;
drop view tenant_usage;
alter table jobs rename column source to source_before;
alter table jobs add column source text check (source in ('computed', 'cache', 'shared', 'semantic'));
update jobs set source = source_before where source_before is not null;
alter table jobs drop column source_before;
alter table jobs add column cosine real;

-- Questions whose answers may serve others. A row counts while the cache entry of its key is ready.
create table cache_questions (
    key blob primary key,
    tenant text not null,
    scope blob not null,
    embedder text not null,
    question text not null,
    embedding blob not null,
    cosine_min real not null,
    rechecks integer not null default 0,
    disagreements integer not null default 0,
    created_at text not null,
    changed_at text not null
);
create index cache_questions_changed on cache_questions (changed_at);
create index cache_entries_ready on cache_entries (created_at) where state = 'ready';

-- What each question came to that had a near one.
create table semantic_lookups (
    job_id blob primary key,
    tenant text not null,
    entry blob not null,
    outcome text not null check (outcome in ('hit', 'candidate', 'miss')),
    veto text,
    cosine real not null,
    cosine_min real not null,
    looked_at text not null,
    recheck_propensity real,
    recheck_id blob,
    made_at text,
    rechecked_at text,
    agrees integer
);
create index semantic_lookups_open on semantic_lookups (job_id)
    where recheck_propensity is not null and rechecked_at is null;

create view semantic_reuse as
select strftime('%Y-%m-%dT%H:00:00Z', l.looked_at) as hour, l.tenant,
       count(*) as near_questions,
       count(*) filter (where j.source = 'semantic') as hits,
       count(*) filter (where l.outcome = 'miss') as misses,
       count(*) filter (where l.agrees is not null) as rechecks,
       count(*) filter (where not l.agrees) as disagreements,
       cast(count(*) filter (where not l.agrees) as real)
           / nullif(count(*) filter (where l.agrees is not null), 0) as wrong_share
  from semantic_lookups l
  join jobs j on j.id = l.job_id
 group by 1, 2;

create view semantic_vetoes as
select strftime('%Y-%m-%d', looked_at) as day, tenant, coalesce(veto, 'none') as veto, count(*) as lookups,
       avg(cosine) as cosine_mean
  from semantic_lookups
 group by 1, 2, 3;

create view cache_savings as
select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, tenant,
       count(*) filter (where source = 'computed') as computed,
       count(*) filter (where source = 'cache') as from_cache,
       count(*) filter (where source = 'shared') as shared,
       count(*) filter (where source = 'semantic') as semantic,
       cast(count(*) filter (where source <> 'computed') as real) / count(*) as reused_share,
       coalesce(sum(prompt_tokens) filter (where source <> 'computed'), 0) as prompt_tokens_saved,
       coalesce(sum(completion_tokens) filter (where source <> 'computed'), 0) as completion_tokens_saved
  from jobs
 where state = 'succeeded' and shadow_of is null
 group by 1, 2;

create view tenant_usage as
select strftime('%Y-%m-%d', submitted_at) as day, tenant, count(*) as jobs,
       count(*) filter (where state = 'succeeded') as succeeded,
       count(*) filter (where state in ('failed', 'rejected', 'cancelled', 'expired')) as unanswered,
       count(*) filter (where finished_at is null) as unfinished,
       coalesce(sum(prompt_tokens) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens), 0) as prompt_tokens,
       coalesce(sum(completion_tokens) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_completion_tokens), 0) as completion_tokens
  from jobs
 where shadow_of is null
 group by 1, 2;

create view token_savings as
select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, tenant,
       coalesce(sum(prompt_tokens) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens), 0) as prompt_tokens_sent,
       coalesce(sum(prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens_computed), 0) as prompt_tokens_computed,
       coalesce(sum(prompt_tokens) filter (where source <> 'computed'), 0) as reused_tokens,
       coalesce(sum(prompt_tokens - prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens - escalated_prompt_tokens_computed), 0) as prefix_tokens,
       coalesce(sum(cleaned_tokens), 0) as cleaned_tokens,
       coalesce(sum(pruned_tokens), 0) as pruned_tokens
  from jobs
 where state = 'succeeded'
 group by 1, 2;
