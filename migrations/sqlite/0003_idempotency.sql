-- Which job owns a producer's key.
create table idempotency (
    tenant text not null,
    key text not null,
    job_id blob not null,
    primary key (tenant, key)
) without rowid;
