-- Reusable answers: exact (cache_entries) and semantic (cache_questions).

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
create index cache_entries_ready on cache_entries (created_at) where state = 'ready';
create index cache_entries_expiry on cache_entries (expires_at) where state = 'ready';
create index cache_entries_tenant on cache_entries (tenant) where state = 'ready';

create table cache_questions (
    key blob primary key,
    tenant text not null,
    scope blob not null,
    embedder text not null,
    question text not null,
    embedding blob not null,
    cosine_min real not null,
    rechecks integer not null default 0,
    disagreements integer not null default 0,
    created_at text not null,
    changed_at text not null
);
create index cache_questions_changed on cache_questions (changed_at);

create table semantic_lookups (
    job_id blob primary key,
    tenant text not null,
    entry blob not null,
    outcome text not null check (outcome in ('hit', 'candidate', 'miss')),
    veto text,
    cosine real not null,
    cosine_min real not null,
    looked_at text not null,
    recheck_propensity real,
    recheck_id blob,
    made_at text,
    rechecked_at text,
    agrees integer
);
create index semantic_lookups_open on semantic_lookups (job_id)
    where recheck_propensity is not null and rechecked_at is null;
