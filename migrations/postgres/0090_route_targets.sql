-- Targets that are set while routers run; they go before the configuration's.
create table route_targets (
    scope text primary key,
    target text not null,
    changed_at timestamptz not null
);
comment on table route_targets is 'What routers are to deliver, set while they run; a scope without a row follows the configuration.';
comment on column route_targets.scope is 'Whose jobs: all, tenant:NAME or tag:NAME.';
comment on column route_targets.target is 'threshold, threshold:0.4, share:30%, quality:99% or latency:2000ms.';
comment on column route_targets.changed_at is 'When the row last changed.';

do $$
begin
    if exists (select from pg_roles where rolname = 'promptyard_analyst') then
        grant select on route_targets to promptyard_analyst;
    end if;
end $$;
