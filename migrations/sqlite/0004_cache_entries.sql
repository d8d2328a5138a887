-- Answers that may be reused, and jobs that compute one for others to share.
create table cache_entries (
    key blob primary key,
    tenant text not null,
    state text not null check (state in ('computing', 'ready')),
    leader blob not null,
    lease_until text,
    model text,
    revision text,
    answer text,
    created_at text not null,
    expires_at text,
    hits integer not null default 0,
    last_hit_at text
);
