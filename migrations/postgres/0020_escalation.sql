-- Escalation by confidence: both answers and what they took stay in the ledger.
alter table jobs
    add column confidence real,
    add column escalated_prompt_tokens integer,
    add column escalated_prompt_tokens_computed integer,
    add column escalated_completion_tokens integer;
comment on column jobs.confidence is 'Calibrated probability that the small model''s answer is right, where it was judged; also when the large one took over.';
comment on column jobs.escalated_prompt_tokens is 'Prompt tokens of attempts that were escalated, besides those of the answer; null when there was none.';
comment on column jobs.escalated_prompt_tokens_computed is 'Of these, prompt tokens computed; the rest came from a prefix cache.';
comment on column jobs.escalated_completion_tokens is 'Tokens that escalated attempts generated.';

alter table attempts
    add column finish_reason text,
    add column confidence real,
    add column signals jsonb;
comment on column attempts.finish_reason is 'Why generation stopped: stop or length.';
comment on column attempts.confidence is 'Calibrated probability that the attempt''s answer is right, where it was judged.';
comment on column attempts.signals is 'Figures over the answer''s token log-probabilities from which the confidence is made.';

create table attempt_answers (
    job_id uuid not null,
    attempt integer not null,
    text text not null,
    primary key (job_id, attempt)
) partition by range (job_id);
comment on table attempt_answers is 'Answers of attempts that were escalated; the answer of a job stands in answers.';
comment on column attempt_answers.job_id is 'The job.';
comment on column attempt_answers.attempt is 'The attempt.';
comment on column attempt_answers.text is 'The answer.';
create table attempt_answers_default partition of attempt_answers default;

-- As before, with one more table.
create or replace function make_partitions(since timestamptz, weeks integer) returns integer
    language plpgsql as $$
declare
    spec record;
    made integer := 0;
begin
    perform pg_advisory_xact_lock(hashtext(current_schema() || '.make_partitions'));
    for spec in
        select t.parent, t.options, t.parent || to_char(w.at, '"_"YYYYMMDD') as child, t.id_column,
               uuid7_floor(w.at at time zone 'UTC') as low,
               uuid7_floor((w.at + interval '7 days') at time zone 'UTC') as high
          from (values (1, 'jobs', 'id', ' with (fillfactor = 80)'), (2, 'requests', 'job_id', ''),
                       (3, 'answers', 'job_id', ''), (4, 'attempts', 'job_id', ' with (fillfactor = 80)'),
                       (5, 'attempt_answers', 'job_id', ''))
               as t (nr, parent, id_column, options),
               generate_series(date_trunc('week', since at time zone 'UTC'),
                               date_trunc('week', since at time zone 'UTC') + make_interval(weeks => weeks),
                               interval '7 days') as w (at)
         where to_regclass(quote_ident(current_schema()) || '.'
                           || quote_ident(t.parent || to_char(w.at, '"_"YYYYMMDD'))) is null
         order by w.at, t.nr
    loop
        execute format('create table %I (like %I including all)%s', spec.child, spec.parent, spec.options);
        execute format('lock table %I in access exclusive mode', spec.parent || '_default');
        execute format(
            'with moved as (delete from %1$I where %2$I >= %3$L and %2$I < %4$L returning *) '
            'insert into %5$I select * from moved',
            spec.parent || '_default', spec.id_column, spec.low, spec.high, spec.child);
        execute format('alter table %I attach partition %I for values from (%L) to (%L)',
                       spec.parent, spec.child, spec.low, spec.high);
        made := made + 1;
    end loop;
    return made;
end $$;

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
 group by 1, 2;
comment on column tenant_usage.prompt_tokens is 'Prompt tokens of computed answers, escalated ones included.';
comment on column tenant_usage.completion_tokens is 'Tokens of computed answers, escalated ones included.';

create view escalations as
select date_trunc('hour', finished_at) as hour, model,
       count(*) filter (where confidence is not null) as judged,
       count(*) filter (where outcome = 'escalated' and reason_code = 'low_confidence') as unsure,
       count(*) filter (where outcome = 'escalated' and reason_code <> 'low_confidence') as unfit,
       avg(confidence)::float8 as confidence_mean,
       coalesce(sum(completion_tokens) filter (where outcome = 'escalated'), 0)::bigint as completion_tokens
  from attempts
 where tier = 'small' and finished_at is not null
 group by 1, 2;
comment on view escalations is 'How sure the small model was and what went on to the large one, by hour and model.';
comment on column escalations.hour is 'The hour in which the small model''s attempts ended.';
comment on column escalations.model is 'The small model.';
comment on column escalations.judged is 'Answers whose confidence was told.';
comment on column escalations.unsure is 'Answers escalated for a low confidence.';
comment on column escalations.unfit is 'Prompts escalated because the small model cannot take them.';
comment on column escalations.confidence_mean is 'Mean confidence, 0 to 1.';
comment on column escalations.completion_tokens is 'Tokens generated by escalated attempts.';

do $$
begin
    if exists (select from pg_roles where rolname = 'promptyard_analyst') then
        grant select on escalations to promptyard_analyst;
    end if;
end $$;
