-- A role that reads views and metadata but no text: grant it to people with "grant promptyard_analyst to NAME".
-- Roles belong to the whole server: another schema's migration may make it at the same moment.
do $$
begin
    create role promptyard_analyst nologin;
exception
    when duplicate_object or unique_violation then
        null;
    when insufficient_privilege then
        raise notice 'this user may not create roles: create promptyard_analyst and grant it what migration 0009 lists';
end $$;

do $$
begin
    if not exists (select from pg_roles where rolname = 'promptyard_analyst') then
        return;
    end if;
    execute format('grant usage on schema %I to promptyard_analyst', current_schema());
    grant select on jobs, attempts, workers,
                    latency, route_mix, cache_savings, tokens, attempt_outcomes, tenant_usage, dead_letter_causes
        to promptyard_analyst;
    grant select (key, tenant, state, leader, lease_until, model, revision, created_at, expires_at, hits, last_hit_at)
        on cache_entries to promptyard_analyst;
    grant select (id, job_id, tenant, queue, reason_code, reason_message, died_at, resolution, resolved_at)
        on dead_letters to promptyard_analyst;
    grant execute on function uuid7_floor to promptyard_analyst;
end $$;
