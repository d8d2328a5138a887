-- What the router learns from.

create table shadows (
    job_id blob primary key,
    propensity real not null,
    shadow_id blob,
    drawn_at text not null,
    made_at text,
    ended_at text
);
create index shadows_open on shadows (job_id) where ended_at is null;

-- Over SQL:
--   insert into feedback (job_id, source, score, comment) values (x'…', 'review', 0.5, 'half right')
--       on conflict (job_id, source) do update set score = excluded.score, comment = excluded.comment;
create table feedback (
    job_id blob not null,
    source text not null default 'sql' check (length(source) between 1 and 64),
    score real not null check (typeof(score) in ('real', 'integer') and score >= 0 and score <= 1),
    comment text check (length(comment) <= 2000),
    created_at text not null default (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    primary key (job_id, source)
) without rowid;

create table router_weights (
    version text primary key,
    created_at text not null,
    metrics text not null,
    weights blob not null,
    active integer not null
);
create unique index router_weights_active on router_weights (active) where active;

create table route_targets (
    scope text primary key,
    target text not null,
    changed_at text not null
) without rowid;
