-- What analysts ask most; the same views as in Postgres, where 0007 makes partitions, which SQLite
-- does not have. Times are cut to hours and days as text.
create view latency as
with timed as (
    select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, tier,
           (julianday(finished_at) - julianday(submitted_at)) * 86400.0 as seconds
      from jobs
     where state = 'succeeded'
), ranked as (
    select hour, tier, seconds,
           row_number() over (partition by hour, tier order by seconds) as nr,
           count(*) over (partition by hour, tier) as jobs
      from timed
)
select hour, tier, jobs,
       min(seconds) filter (where nr >= 0.50 * jobs) as p50_s,
       min(seconds) filter (where nr >= 0.95 * jobs) as p95_s,
       min(seconds) filter (where nr >= 0.99 * jobs) as p99_s
  from ranked
 group by hour, tier, jobs;

create view route_mix as
select strftime('%Y-%m-%dT%H:00:00Z', routed_at) as hour, scorer, tier, count(*) as jobs,
       cast(count(*) as real)
           / sum(count(*)) over (partition by strftime('%Y-%m-%dT%H:00:00Z', routed_at), scorer) as share,
       avg(score) as score_mean
  from jobs
 where tier is not null and routed_at is not null
 group by 1, 2, 3;

create view cache_savings as
select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, tenant,
       count(*) filter (where source = 'computed') as computed,
       count(*) filter (where source = 'cache') as from_cache,
       count(*) filter (where source = 'shared') as shared,
       cast(count(*) filter (where source <> 'computed') as real) / count(*) as reused_share,
       coalesce(sum(prompt_tokens) filter (where source <> 'computed'), 0) as prompt_tokens_saved,
       coalesce(sum(completion_tokens) filter (where source <> 'computed'), 0) as completion_tokens_saved
  from jobs
 where state = 'succeeded'
 group by 1, 2;

create view tokens as
select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, tier, model,
       coalesce(sum(prompt_tokens), 0) as prompt_tokens_sent,
       coalesce(sum(prompt_tokens_computed), 0) as prompt_tokens_computed,
       coalesce(sum(completion_tokens), 0) as completion_tokens
  from attempts
 where finished_at is not null
 group by 1, 2, 3;

create view attempt_outcomes as
select strftime('%Y-%m-%dT%H:00:00Z', claimed_at) as hour, tier, model, outcome, reason_code,
       count(*) as attempts,
       avg((julianday(finished_at) - julianday(coalesce(started_at, claimed_at))) * 86400.0) as seconds_mean
  from attempts
 group by 1, 2, 3, 4, 5;

create view tenant_usage as
select strftime('%Y-%m-%d', submitted_at) as day, tenant, count(*) as jobs,
       count(*) filter (where state = 'succeeded') as succeeded,
       count(*) filter (where state in ('failed', 'rejected', 'cancelled', 'expired')) as unanswered,
       count(*) filter (where finished_at is null) as unfinished,
       coalesce(sum(prompt_tokens) filter (where source = 'computed'), 0) as prompt_tokens,
       coalesce(sum(completion_tokens) filter (where source = 'computed'), 0) as completion_tokens
  from jobs
 group by 1, 2;

create view dead_letter_causes as
select strftime('%Y-%m-%d', died_at) as day, queue, reason_code,
       coalesce(resolution, 'open') as resolution, count(*) as letters
  from dead_letters
 group by 1, 2, 3, 4;
