-- Targets that are set while routers run; they go before the configuration's. A scope is all,
-- tenant:NAME or tag:NAME.
create table route_targets (
    scope text primary key,
    target text not null,
    changed_at text not null
) without rowid;
