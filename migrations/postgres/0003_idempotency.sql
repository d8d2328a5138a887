-- Which job owns a producer's key. Not partitioned: a key stays unique over all time.
create table idempotency (
    tenant text not null,
    key text not null,
    job_id uuid not null,
    primary key (tenant, key)
);
comment on table idempotency is 'Which job owns a producer''s idempotency key.';
comment on column idempotency.tenant is 'Whose key it is.';
comment on column idempotency.key is 'The key.';
comment on column idempotency.job_id is 'The job that owns it.';
