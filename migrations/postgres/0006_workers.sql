-- Workers and their signs of life. A claim holds while its own lease or its worker's runs, so one
-- heartbeat extends the leases of all jobs of a worker by writing one row.
create table workers (
    worker text primary key,
    tier text not null,
    model text not null,
    revision text not null,
    batch_max integer not null,
    running integer not null,
    draining boolean not null,
    lease_until timestamptz not null,
    seen_at timestamptz not null
) with (fillfactor = 50);
comment on table workers is 'Workers and their last signs of life.';
comment on column workers.worker is 'Unique for each process and tier.';
comment on column workers.tier is 'The tier it serves.';
comment on column workers.model is 'The served model''s name.';
comment on column workers.revision is 'The model''s revision.';
comment on column workers.batch_max is 'Sequences it runs at once.';
comment on column workers.running is 'Jobs it ran at its last sign of life.';
comment on column workers.draining is 'True from when it was told to stop.';
comment on column workers.lease_until is 'Until when its jobs are not taken over.';
comment on column workers.seen_at is 'Its last sign of life.';
