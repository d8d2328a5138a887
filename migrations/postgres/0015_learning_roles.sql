-- What analysts may read of the above, and a role that may judge answers over SQL and nothing else:
-- grant it to people and programs with "grant promptyard_labeller to NAME". Analysts stay readers.
do $$
begin
    create role promptyard_labeller nologin;
exception
    when duplicate_object or unique_violation then
        null;
    when insufficient_privilege then
        raise notice 'this user may not create roles: create promptyard_labeller and grant it what migration 0015 lists';
end $$;

do $$
begin
    if exists (select from pg_roles where rolname = 'promptyard_analyst') then
        grant select on shadows, route_decisions, share_delivered, score_distribution, shadow_pairs, shadow_costs
            to promptyard_analyst;
        -- Comments may quote prompts and answers.
        grant select (job_id, source, score, created_at) on feedback to promptyard_analyst;
        grant select (version, created_at, metrics, active) on router_weights to promptyard_analyst;
    end if;
    if exists (select from pg_roles where rolname = 'promptyard_labeller') then
        execute format('grant usage on schema %I to promptyard_labeller', current_schema());
        -- An upsert reads the key it meets.
        grant insert (job_id, source, score, comment), update (score, comment), select (job_id, source, score)
            on feedback to promptyard_labeller;
    end if;
end $$;
