-- What the router thought of a job, whole: enough to learn from and to audit.
alter table jobs add column tags text;
alter table jobs add column features_version integer;
alter table jobs add column threshold_base real;
alter table jobs add column target text;
alter table jobs add column target_scope text;
alter table jobs add column route_reason text
    check (route_reason in ('score', 'load', 'explore', 'rule', 'producer', 'shadow'));
alter table jobs add column propensity real;
alter table jobs add column shadow_of blob;

alter table workers add column context_tokens integer;
