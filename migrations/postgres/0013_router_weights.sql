-- Learned weights of the router. Routers look for another active row every minute.
create table router_weights (
    version text primary key,
    created_at timestamptz not null,
    metrics jsonb not null,
    weights bytea not null,
    active boolean not null
);
create unique index router_weights_active on router_weights (active) where active;
comment on table router_weights is 'Learned weights of the router, every version that was kept.';
comment on column router_weights.version is 'Name and version, as jobs.scorer has it.';
comment on column router_weights.created_at is 'When they were stored.';
comment on column router_weights.metrics is 'What they reached in training, as JSON.';
comment on column router_weights.weights is 'The weights, as the weight file holds them.';
comment on column router_weights.active is 'True for the ones that routers use; at most one row.';
