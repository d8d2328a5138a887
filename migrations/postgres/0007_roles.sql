-- Roles for people who query the database. Roles belong to the whole server, and another schema's migration
-- may create one at the same moment. Where this user may not create roles, create them and grant what is
-- listed below.
do $$
declare
    name text;
begin
    foreach name in array array['promptyard_analyst', 'promptyard_labeller'] loop
        begin
            execute format('create role %I nologin', name);
        exception
            when duplicate_object or unique_violation then
                null;
            when insufficient_privilege then
                raise notice 'this user may not create roles: create % and grant it what migration 0007 lists', name;
        end;
    end loop;
end $$;

-- Reads views and metadata but no prompt or answer text: "grant promptyard_analyst to NAME".
do $$
begin
    if not exists (select from pg_roles where rolname = 'promptyard_analyst') then
        return;
    end if;
    execute format('grant usage on schema %I to promptyard_analyst', current_schema());
    grant execute on function uuid7_floor to promptyard_analyst;
    grant select on jobs, attempts, cancelled_batches, semantic_lookups, workers, tenants, leaders, shadows, route_targets
        to promptyard_analyst;
    grant select on latency, tokens, attempt_outcomes, escalations, tenant_usage, dead_letter_causes, route_mix,
                    route_decisions, share_delivered, score_distribution, shadow_pairs, shadow_costs, cache_savings,
                    token_savings, semantic_reuse, semantic_vetoes
        to promptyard_analyst;
    grant select (key, tenant, state, leader, lease_until, model, revision, created_at, expires_at, hits, last_hit_at)
        on cache_entries to promptyard_analyst;
    grant select (key, tenant, embedder, cosine_min, rechecks, disagreements, created_at, changed_at)
        on cache_questions to promptyard_analyst;
    grant select (job_id, tenant, queue, rank, tokens, deferred_at, released_at)
        on deferred_jobs to promptyard_analyst;
    grant select (id, job_id, tenant, queue, reason_code, reason_message, died_at, resolution, resolved_at)
        on dead_letters to promptyard_analyst;
    grant select (id, name, tenant, scopes, created_at, expires_at, revoked_at) on api_keys to promptyard_analyst;
    -- Comments may quote prompts and answers.
    grant select (job_id, source, score, created_at) on feedback to promptyard_analyst;
    grant select (version, created_at, metrics, active) on router_weights to promptyard_analyst;
end $$;

-- Rates answers over SQL and nothing else: "grant promptyard_labeller to NAME".
do $$
begin
    if not exists (select from pg_roles where rolname = 'promptyard_labeller') then
        return;
    end if;
    execute format('grant usage on schema %I to promptyard_labeller', current_schema());
    -- An upsert reads the key that it conflicts with.
    grant insert (job_id, source, score, comment), update (score, comment), select (job_id, source, score)
        on feedback to promptyard_labeller;
end $$;
