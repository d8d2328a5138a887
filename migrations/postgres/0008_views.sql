-- What analysts ask most. None of these shows a text.
create view latency as
select date_trunc('hour', finished_at) as hour, tier, count(*) as jobs,
       percentile_disc(0.50) within group (order by extract(epoch from finished_at - submitted_at)::float8) as p50_s,
       percentile_disc(0.95) within group (order by extract(epoch from finished_at - submitted_at)::float8) as p95_s,
       percentile_disc(0.99) within group (order by extract(epoch from finished_at - submitted_at)::float8) as p99_s
  from jobs
 where state = 'succeeded'
 group by 1, 2;
comment on view latency is 'Seconds from submission to the answer, by hour and tier.';
comment on column latency.hour is 'The hour in which the jobs finished.';
comment on column latency.tier is 'The tier chosen last.';
comment on column latency.jobs is 'Jobs answered.';
comment on column latency.p50_s is 'Half of them took at most so many seconds.';
comment on column latency.p95_s is '95 % took at most so many seconds.';
comment on column latency.p99_s is '99 % took at most so many seconds.';

create view route_mix as
select date_trunc('hour', routed_at) as hour, scorer, tier, count(*) as jobs,
       count(*)::float8 / sum(count(*)) over (partition by date_trunc('hour', routed_at), scorer)::float8 as share,
       avg(score) as score_mean
  from jobs
 where tier is not null and routed_at is not null
 group by 1, 2, 3;
comment on view route_mix is 'Jobs by the tier chosen last, by hour and scorer.';
comment on column route_mix.hour is 'The hour in which they were routed.';
comment on column route_mix.scorer is 'Name and version of the scorer.';
comment on column route_mix.tier is 'The tier.';
comment on column route_mix.jobs is 'Jobs.';
comment on column route_mix.share is 'Their share of the hour''s jobs of that scorer, 0 to 1.';
comment on column route_mix.score_mean is 'Mean score.';

create view cache_savings as
select date_trunc('hour', finished_at) as hour, tenant,
       count(*) filter (where source = 'computed') as computed,
       count(*) filter (where source = 'cache') as from_cache,
       count(*) filter (where source = 'shared') as shared,
       count(*) filter (where source <> 'computed')::float8 / count(*)::float8 as reused_share,
       coalesce(sum(prompt_tokens) filter (where source <> 'computed'), 0)::bigint as prompt_tokens_saved,
       coalesce(sum(completion_tokens) filter (where source <> 'computed'), 0)::bigint as completion_tokens_saved
  from jobs
 where state = 'succeeded'
 group by 1, 2;
comment on view cache_savings is 'Answers that no model had to compute, by hour and tenant.';
comment on column cache_savings.hour is 'The hour in which the jobs finished.';
comment on column cache_savings.tenant is 'Whose jobs they were.';
comment on column cache_savings.computed is 'Jobs a model ran for.';
comment on column cache_savings.from_cache is 'Jobs answered from an earlier identical job.';
comment on column cache_savings.shared is 'Jobs answered with an identical one that was in flight.';
comment on column cache_savings.reused_share is 'Share of the answers that were reused, 0 to 1.';
comment on column cache_savings.prompt_tokens_saved is 'Prompt tokens that were not sent.';
comment on column cache_savings.completion_tokens_saved is 'Tokens that were not generated.';

create view tokens as
select date_trunc('hour', finished_at) as hour, tier, model,
       coalesce(sum(prompt_tokens), 0)::bigint as prompt_tokens_sent,
       coalesce(sum(prompt_tokens_computed), 0)::bigint as prompt_tokens_computed,
       coalesce(sum(completion_tokens), 0)::bigint as completion_tokens
  from attempts
 where finished_at is not null
 group by 1, 2, 3;
comment on view tokens is 'Tokens sent to models and computed by them, by hour, tier and model.';
comment on column tokens.hour is 'The hour in which the attempts ended.';
comment on column tokens.tier is 'The tier they ran on.';
comment on column tokens.model is 'The model they ran on.';
comment on column tokens.prompt_tokens_sent is 'Prompt tokens sent.';
comment on column tokens.prompt_tokens_computed is 'Prompt tokens computed; the rest came from a prefix cache.';
comment on column tokens.completion_tokens is 'Tokens generated.';

create view attempt_outcomes as
select date_trunc('hour', claimed_at) as hour, tier, model, outcome, reason_code, count(*) as attempts,
       avg(extract(epoch from finished_at - coalesce(started_at, claimed_at))::float8) as seconds_mean
  from attempts
 group by 1, 2, 3, 4, 5;
comment on view attempt_outcomes is 'What attempts came to, by hour, tier and model.';
comment on column attempt_outcomes.hour is 'The hour in which they were claimed.';
comment on column attempt_outcomes.tier is 'The tier they ran on.';
comment on column attempt_outcomes.model is 'The model they ran on.';
comment on column attempt_outcomes.outcome is 'running, succeeded, failed, expired, retried, escalated, returned or lost.';
comment on column attempt_outcomes.reason_code is 'Why they did not succeed.';
comment on column attempt_outcomes.attempts is 'Attempts.';
comment on column attempt_outcomes.seconds_mean is 'Mean seconds they ran.';

create view tenant_usage as
select date_trunc('day', submitted_at) as day, tenant, count(*) as jobs,
       count(*) filter (where state = 'succeeded') as succeeded,
       count(*) filter (where state in ('failed', 'rejected', 'cancelled', 'expired')) as unanswered,
       count(*) filter (where finished_at is null) as unfinished,
       coalesce(sum(prompt_tokens) filter (where source = 'computed'), 0)::bigint as prompt_tokens,
       coalesce(sum(completion_tokens) filter (where source = 'computed'), 0)::bigint as completion_tokens
  from jobs
 group by 1, 2;
comment on view tenant_usage is 'Jobs and computed tokens, by day and tenant.';
comment on column tenant_usage.day is 'The day of submission.';
comment on column tenant_usage.tenant is 'Whose jobs they were.';
comment on column tenant_usage.jobs is 'Jobs submitted.';
comment on column tenant_usage.succeeded is 'Jobs answered.';
comment on column tenant_usage.unanswered is 'Jobs that ended without an answer.';
comment on column tenant_usage.unfinished is 'Jobs not yet terminal.';
comment on column tenant_usage.prompt_tokens is 'Prompt tokens of computed answers.';
comment on column tenant_usage.completion_tokens is 'Tokens of computed answers.';

create view dead_letter_causes as
select date_trunc('day', died_at) as day, queue, reason_code,
       coalesce(resolution, 'open') as resolution, count(*) as letters
  from dead_letters
 group by 1, 2, 3, 4;
comment on view dead_letter_causes is 'Dead letters by day, queue and cause.';
comment on column dead_letter_causes.day is 'The day they died.';
comment on column dead_letter_causes.queue is 'The queue they died in.';
comment on column dead_letter_causes.reason_code is 'Why.';
comment on column dead_letter_causes.resolution is 'open, redriven or discarded.';
comment on column dead_letter_causes.letters is 'Dead letters.';
