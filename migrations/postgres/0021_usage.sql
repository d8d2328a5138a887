-- Usage with escalated tokens in it (0020) and shadow copies left out (0014).
create or replace view tenant_usage as
select date_trunc('day', submitted_at) as day, tenant, count(*) as jobs,
       count(*) filter (where state = 'succeeded') as succeeded,
       count(*) filter (where state in ('failed', 'rejected', 'cancelled', 'expired')) as unanswered,
       count(*) filter (where finished_at is null) as unfinished,
       (coalesce(sum(prompt_tokens) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_prompt_tokens), 0))::bigint as prompt_tokens,
       (coalesce(sum(completion_tokens) filter (where source = 'computed'), 0)
           + coalesce(sum(escalated_completion_tokens), 0))::bigint as completion_tokens
  from jobs
 where shadow_of is null
 group by 1, 2;
