-- Answers that may be reused, and jobs that compute one for others to share.
create table cache_entries (
    key bytea primary key,
    tenant text not null,
    state text not null check (state in ('computing', 'ready')),
    leader uuid not null,
    lease_until timestamptz,
    model text,
    revision text,
    answer text,
    created_at timestamptz not null,
    expires_at timestamptz,
    hits bigint not null default 0,
    last_hit_at timestamptz
) with (fillfactor = 80);
comment on table cache_entries is 'Answers that may be reused, and those being computed.';
comment on column cache_entries.key is 'BLAKE3 over tenant, model, revision, messages and sampling parameters.';
comment on column cache_entries.tenant is 'Whose answer it is.';
comment on column cache_entries.state is 'computing or ready.';
comment on column cache_entries.leader is 'The job that computes or computed the answer.';
comment on column cache_entries.lease_until is 'While computing: after this instant another job may take over.';
comment on column cache_entries.model is 'The model that answered.';
comment on column cache_entries.revision is 'Its revision.';
comment on column cache_entries.answer is 'The answer as JSON; holds model output.';
comment on column cache_entries.created_at is 'When the answer was there, or when its computing began.';
comment on column cache_entries.expires_at is 'When the answer is not reused any more.';
comment on column cache_entries.hits is 'Jobs answered from it.';
comment on column cache_entries.last_hit_at is 'When the last of them was.';
