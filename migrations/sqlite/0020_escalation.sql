-- Escalation by confidence: both answers and what they took stay in the ledger.
alter table jobs add column confidence real;
alter table jobs add column escalated_prompt_tokens integer;
alter table jobs add column escalated_prompt_tokens_computed integer;
alter table jobs add column escalated_completion_tokens integer;
alter table attempts add column finish_reason text;
alter table attempts add column confidence real;
alter table attempts add column signals text;

-- Answers of attempts that were escalated; the answer of a job stands in answers.
create table attempt_answers (
    job_id blob not null,
    attempt integer not null,
    text text not null,
    primary key (job_id, attempt)
) without rowid;

drop view tenant_usage;
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
 group by 1, 2;

create view escalations as
select strftime('%Y-%m-%dT%H:00:00Z', finished_at) as hour, model,
       count(*) filter (where confidence is not null) as judged,
       count(*) filter (where outcome = 'escalated' and reason_code = 'low_confidence') as unsure,
       count(*) filter (where outcome = 'escalated' and reason_code <> 'low_confidence') as unfit,
       avg(confidence) as confidence_mean,
       coalesce(sum(completion_tokens) filter (where outcome = 'escalated'), 0) as completion_tokens
  from attempts
 where tier = 'small' and finished_at is not null
 group by 1, 2;
