-- Learned weights of the router. Routers look for another active row every minute.
create table router_weights (
    version text primary key,
    created_at text not null,
    metrics text not null,
    weights blob not null,
    active integer not null
);
create unique index router_weights_active on router_weights (active) where active;
