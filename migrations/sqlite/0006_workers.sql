-- Workers and their signs of life. A claim holds while its own lease or its worker's runs, so one
-- heartbeat extends the leases of all jobs of a worker by writing one row.
create table workers (
    worker text primary key,
    tier text not null,
    model text not null,
    revision text not null,
    batch_max integer not null,
    running integer not null,
    draining integer not null,
    lease_until text not null,
    seen_at text not null
) without rowid;
