-- What the router thought of a job, whole: enough to learn from and to audit.
alter table jobs
    add column tags jsonb,
    add column features_version integer,
    add column threshold_base double precision,
    add column target text,
    add column target_scope text,
    add column route_reason text check (route_reason in ('score', 'load', 'explore', 'rule', 'producer', 'shadow')),
    add column propensity double precision,
    add column shadow_of uuid;

comment on column jobs.threshold is 'The effective threshold: the score from which the job went to large, load counted in.';
comment on column jobs.tags is 'The producer''s tags, a JSON array of strings.';
comment on column jobs.features_version is 'Version of the features that the scorer saw.';
comment on column jobs.threshold_base is 'The threshold that the target alone gave, before load moved it.';
comment on column jobs.target is 'What the router was asked to deliver for the job: threshold, share:30%, quality:99%, latency:2000ms.';
comment on column jobs.target_scope is 'Whose target it was: all, tenant:NAME or tag:NAME.';
comment on column jobs.route_reason is 'Why the job went to its tier: score, load (moved the threshold), explore (chance, to learn), rule (too long for small), producer (asked for it) or shadow (a copy for learning).';
comment on column jobs.propensity is 'Probability, 0 to 1, with which the decision was taken; below 1 only where chance had a say.';
comment on column jobs.shadow_of is 'The job that this one repeats on large for learning; it is no producer''s job.';

alter table workers add column context_tokens bigint;
comment on column workers.context_tokens is 'Longest context of its model in tokens, prompt and answer together, where it is known.';
