-- What the router decides, and what learning costs. The views of producers' jobs leave shadow copies out.
create or replace view latency as
select date_trunc('hour', finished_at) as hour, tier, count(*) as jobs,
       percentile_disc(0.50) within group (order by extract(epoch from finished_at - submitted_at)::float8) as p50_s,
       percentile_disc(0.95) within group (order by extract(epoch from finished_at - submitted_at)::float8) as p95_s,
       percentile_disc(0.99) within group (order by extract(epoch from finished_at - submitted_at)::float8) as p99_s
  from jobs
 where state = 'succeeded' and shadow_of is null
 group by 1, 2;

create or replace view route_mix as
select date_trunc('hour', routed_at) as hour, scorer, tier, count(*) as jobs,
       count(*)::float8 / sum(count(*)) over (partition by date_trunc('hour', routed_at), scorer)::float8 as share,
       avg(score) as score_mean
  from jobs
 where tier is not null and routed_at is not null and shadow_of is null
 group by 1, 2, 3;

create or replace view cache_savings as
select date_trunc('hour', finished_at) as hour, tenant,
       count(*) filter (where source = 'computed') as computed,
       count(*) filter (where source = 'cache') as from_cache,
       count(*) filter (where source = 'shared') as shared,
       count(*) filter (where source <> 'computed')::float8 / count(*)::float8 as reused_share,
       coalesce(sum(prompt_tokens) filter (where source <> 'computed'), 0)::bigint as prompt_tokens_saved,
       coalesce(sum(completion_tokens) filter (where source <> 'computed'), 0)::bigint as completion_tokens_saved
  from jobs
 where state = 'succeeded' and shadow_of is null
 group by 1, 2;

create or replace view tenant_usage as
select date_trunc('day', submitted_at) as day, tenant, count(*) as jobs,
       count(*) filter (where state = 'succeeded') as succeeded,
       count(*) filter (where state in ('failed', 'rejected', 'cancelled', 'expired')) as unanswered,
       count(*) filter (where finished_at is null) as unfinished,
       coalesce(sum(prompt_tokens) filter (where source = 'computed'), 0)::bigint as prompt_tokens,
       coalesce(sum(completion_tokens) filter (where source = 'computed'), 0)::bigint as completion_tokens
  from jobs
 where shadow_of is null
 group by 1, 2;

create view route_decisions as
select date_trunc('hour', routed_at) as hour, scorer, target_scope, target, route_reason, tier,
       count(*) as jobs, avg(score) as score_mean, avg(threshold) as threshold_mean
  from jobs
 where routed_at is not null
 group by 1, 2, 3, 4, 5, 6;
comment on view route_decisions is 'Why jobs went where, by hour, scorer and target; shadow copies are those of reason shadow.';
comment on column route_decisions.hour is 'The hour in which they were routed.';
comment on column route_decisions.scorer is 'Name and version of the scorer.';
comment on column route_decisions.target_scope is 'Whose target it was: all, tenant:NAME or tag:NAME.';
comment on column route_decisions.target is 'What the router was asked to deliver.';
comment on column route_decisions.route_reason is 'score, load, explore, rule, producer or shadow.';
comment on column route_decisions.tier is 'The tier chosen last.';
comment on column route_decisions.jobs is 'Jobs.';
comment on column route_decisions.score_mean is 'Mean score.';
comment on column route_decisions.threshold_mean is 'Mean effective threshold.';

create view share_delivered as
select date_trunc('hour', routed_at) as hour, target_scope, target, count(*) as jobs,
       avg(case when (score >= threshold) = (route_reason <> 'explore') then 1.0 else 0.0 end)::float8 as share,
       case when target like 'share:%' then rtrim(substr(target, 7), '%')::float8 / 100.0 end as share_asked
  from jobs
 where route_reason in ('score', 'load', 'explore')
 group by 1, 2, 3;
comment on view share_delivered is 'Share of the jobs left to the router that it sent to large, beside the share asked for, by hour and target.';
comment on column share_delivered.hour is 'The hour in which they were routed.';
comment on column share_delivered.target_scope is 'Whose target it was: all, tenant:NAME or tag:NAME.';
comment on column share_delivered.target is 'What the router was asked to deliver.';
comment on column share_delivered.jobs is 'Jobs whose tier was the router''s choice.';
comment on column share_delivered.share is 'Share of them that it sent to large, 0 to 1; what small escalated later is not in it.';
comment on column share_delivered.share_asked is 'The share asked for, 0 to 1; null for targets of another kind.';

create view score_distribution as
select date_trunc('day', routed_at) as day, scorer, least(floor(score * 20), 19)::float8 / 20.0 as score_from,
       count(*) as jobs,
       avg(case when tier = 'large' then 1.0 else 0.0 end)::float8 as large_share
  from jobs
 where score is not null and routed_at is not null and shadow_of is null
 group by 1, 2, 3;
comment on view score_distribution is 'How scores are spread, in twenty steps, by day and scorer.';
comment on column score_distribution.day is 'The day on which the jobs were routed.';
comment on column score_distribution.scorer is 'Name and version of the scorer.';
comment on column score_distribution.score_from is 'Lower end of the step of 0.05.';
comment on column score_distribution.jobs is 'Jobs with such a score.';
comment on column score_distribution.large_share is 'Share of them whose last tier is large, 0 to 1.';

create view shadow_pairs as
select j.id as job_id, s.shadow_id, j.tenant, j.scorer, j.score, s.propensity, l.finished_at,
       btrim(a.text, E' \t\r\n') = btrim(b.text, E' \t\r\n') as agrees,
       l.prompt_tokens, l.completion_tokens,
       extract(epoch from l.finished_at - l.started_at)::float8 as seconds
  from shadows s
  join jobs j on j.id = s.job_id
  join jobs l on l.id = s.shadow_id
  join answers a on a.job_id = s.job_id
  join answers b on b.job_id = s.shadow_id
 where j.state = 'succeeded' and l.state = 'succeeded';
comment on view shadow_pairs is 'Jobs that both models answered: whether large agreed, and what its run cost.';
comment on column shadow_pairs.job_id is 'The producer''s job, answered by small.';
comment on column shadow_pairs.shadow_id is 'The copy, answered by large.';
comment on column shadow_pairs.tenant is 'Whose job it was.';
comment on column shadow_pairs.scorer is 'Name and version of the scorer.';
comment on column shadow_pairs.score is 'The router''s score of the job.';
comment on column shadow_pairs.propensity is 'Probability with which the job was drawn.';
comment on column shadow_pairs.finished_at is 'When the copy was answered.';
comment on column shadow_pairs.agrees is 'True when both answers are the same but for white space at their ends.';
comment on column shadow_pairs.prompt_tokens is 'Prompt tokens of the copy.';
comment on column shadow_pairs.completion_tokens is 'Tokens generated for the copy.';
comment on column shadow_pairs.seconds is 'Seconds that the copy ran.';

create view shadow_costs as
select date_trunc('hour', finished_at) as hour, tenant, count(*) as copies,
       count(*) filter (where state = 'succeeded') as answered,
       coalesce(sum(prompt_tokens), 0)::bigint as prompt_tokens,
       coalesce(sum(completion_tokens), 0)::bigint as completion_tokens,
       coalesce(sum(extract(epoch from finished_at - started_at)), 0)::float8 as seconds
  from jobs
 where shadow_of is not null and finished_at is not null
 group by 1, 2;
comment on view shadow_costs is 'What shadow copies cost, by hour and tenant; tenant_usage leaves them out.';
comment on column shadow_costs.hour is 'The hour in which they ended.';
comment on column shadow_costs.tenant is 'Whose jobs were copied.';
comment on column shadow_costs.copies is 'Copies that ended.';
comment on column shadow_costs.answered is 'Copies that got an answer.';
comment on column shadow_costs.prompt_tokens is 'Prompt tokens sent for them.';
comment on column shadow_costs.completion_tokens is 'Tokens generated for them.';
comment on column shadow_costs.seconds is 'Seconds they ran, summed.';
