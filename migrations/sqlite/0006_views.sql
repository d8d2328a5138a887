-- Views for analysts, the same as in Postgres. Times are cut to hours and days as text in UTC.

create view latency as
with timed as (
    select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, tier,
           (julianday(finished_at) - julianday(submitted_at)) * 86400.0 as seconds
      from jobs
     where state = 'succeeded' and shadow_of is null
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

create view escalations as
select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, model,
       count(*) filter (where confidence is not null) as scored,
       count(*) filter (where outcome = 'escalated' and reason_code = 'low_confidence') as low_confidence,
       count(*) filter (where outcome = 'escalated' and reason_code <> 'low_confidence') as not_servable,
       avg(confidence) as confidence_mean,
       coalesce(sum(completion_tokens) filter (where outcome = 'escalated'), 0) as completion_tokens
  from attempts
 where tier = 'small' and finished_at is not null
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

create view dead_letter_causes as
select strftime('%Y-%m-%d', died_at) as day, queue, reason_code,
       coalesce(resolution, 'open') as resolution, count(*) as letters
  from dead_letters
 group by 1, 2, 3, 4;

create view route_mix as
select strftime('%Y-%m-%dT%H:00:00Z', routed_at) as hour, scorer, tier, count(*) as jobs,
       cast(count(*) as real)
           / sum(count(*)) over (partition by strftime('%Y-%m-%dT%H:00:00Z', routed_at), scorer) as share,
       avg(score) as score_mean
  from jobs
 where tier is not null and routed_at is not null and shadow_of is null
 group by 1, 2, 3;

create view route_decisions as
select strftime('%Y-%m-%dT%H:00:00Z', routed_at) as hour, scorer, target_scope, target, route_reason, tier,
       count(*) as jobs, avg(score) as score_mean, avg(threshold) as threshold_mean
  from jobs
 where routed_at is not null
 group by 1, 2, 3, 4, 5, 6;

create view share_delivered as
select strftime('%Y-%m-%dT%H:00:00Z', routed_at) as hour, target_scope, target, count(*) as jobs,
       avg(case when (score >= threshold) = (route_reason <> 'explore') then 1.0 else 0.0 end) as share,
       case when target like 'share:%' then cast(rtrim(substr(target, 7), '%') as real) / 100.0 end as share_asked
  from jobs
 where route_reason in ('score', 'load', 'explore')
 group by 1, 2, 3;

create view score_distribution as
select strftime('%Y-%m-%d', routed_at) as day, scorer, min(cast(score * 20 as integer), 19) / 20.0 as score_from,
       count(*) as jobs,
       avg(case when tier = 'large' then 1.0 else 0.0 end) as large_share
  from jobs
 where score is not null and routed_at is not null and shadow_of is null
 group by 1, 2, 3;

create view shadow_pairs as
select j.id as job_id, s.shadow_id, j.tenant, j.scorer, j.score, s.propensity, l.finished_at,
       trim(a.text, char(32, 9, 13, 10)) = trim(b.text, char(32, 9, 13, 10)) as agrees,
       l.prompt_tokens, l.completion_tokens,
       (julianday(l.finished_at) - julianday(l.started_at)) * 86400.0 as seconds,
       coalesce(j.propensity, 1.0) as decision_propensity
  from shadows s
  join jobs j on j.id = s.job_id
  join jobs l on l.id = s.shadow_id
  join answers a on a.job_id = s.job_id
  join answers b on b.job_id = s.shadow_id
 where j.state = 'succeeded' and l.state = 'succeeded';

create view shadow_costs as
select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, tenant, count(*) as copies,
       count(*) filter (where state = 'succeeded') as answered,
       coalesce(sum(prompt_tokens), 0) as prompt_tokens,
       coalesce(sum(completion_tokens), 0) as completion_tokens,
       coalesce(sum((julianday(finished_at) - julianday(started_at)) * 86400.0), 0.0) as seconds
  from jobs
 where shadow_of is not null and finished_at is not null
 group by 1, 2;

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

create view token_savings as
select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, tenant,
       coalesce(sum(prompt_tokens) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens), 0) as prompt_tokens_sent,
       coalesce(sum(prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens_computed), 0) as prompt_tokens_computed,
       coalesce(sum(prompt_tokens) filter (where source in ('cache', 'shared')), 0) as reused_tokens,
       coalesce(sum(prompt_tokens) filter (where source = 'semantic'), 0) as semantic_tokens,
       coalesce(sum(prompt_tokens - prompt_tokens_computed) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens - escalated_prompt_tokens_computed), 0) as prefix_tokens,
       coalesce(sum(cleaned_tokens), 0) as cleaned_tokens,
       coalesce(sum(pruned_tokens), 0) as pruned_tokens
  from jobs
 where state = 'succeeded' and shadow_of is null
 group by 1, 2;

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
