-- What the router learns from.

create table shadows (
    job_id uuid primary key,
    propensity double precision not null,
    shadow_id uuid,
    drawn_at timestamptz not null,
    made_at timestamptz,
    ended_at timestamptz
);
create index shadows_open on shadows (job_id) where ended_at is null;

comment on table shadows is 'Jobs drawn at random to run on large as well, for unbiased labels.';
comment on column shadows.job_id is 'Job of the producer, answered by small.';
comment on column shadows.propensity is 'Probability with which it was drawn, 0 to 1.';
comment on column shadows.shadow_id is 'Copy that runs on large; null while large is busy, or if none was made.';
comment on column shadows.drawn_at is 'When it was drawn.';
comment on column shadows.made_at is 'When the copy was created.';
comment on column shadows.ended_at is 'When the copy ended, or was found not to be needed.';

create table feedback (
    job_id uuid not null,
    source text not null default 'sql' check (length(source) between 1 and 64),
    score double precision not null check (score >= 0 and score <= 1),
    comment text check (length(comment) <= 2000),
    created_at timestamptz not null default now(),
    primary key (job_id, source)
);

comment on table feedback is 'Ratings of answers, one per job and source; the latest counts.';
comment on column feedback.job_id is 'Rated job.';
comment on column feedback.source is 'Who rates: api, sql, a name of your own, or expect (exact marks from a file).';
comment on column feedback.score is 'Rating, 0 (useless) to 1 (right).';
comment on column feedback.comment is 'Comment; may quote prompts and answers.';
comment on column feedback.created_at is 'When the first rating from this source arrived.';

create table router_weights (
    version text primary key,
    created_at timestamptz not null,
    metrics jsonb not null,
    weights bytea not null,
    active boolean not null
);
create unique index router_weights_active on router_weights (active) where active;

comment on table router_weights is 'Fitted router weights, all stored versions.';
comment on column router_weights.version is 'Name and version, as in jobs.scorer.';
comment on column router_weights.created_at is 'When they were stored.';
comment on column router_weights.metrics is 'How router train evaluated them, as JSON: prompts, seed, held_out (domains or folds), against (the version in use then, or length) and, by set, the exact APGR of the new and the previous weights on prompts that the latter were not fitted to.';
comment on column router_weights.weights is 'Weights, in the format of the weights file.';
comment on column router_weights.active is 'True for the weights that routers use; at most one row.';

create table route_targets (
    scope text primary key,
    target text not null,
    changed_at timestamptz not null
);

comment on table route_targets is 'Routing targets set at run time; scopes without a row follow the configuration.';
comment on column route_targets.scope is 'Scope: all, tenant:NAME or tag:NAME.';
comment on column route_targets.target is 'Target: threshold, threshold:0.4, share:30%, quality:99% or latency:2000ms.';
comment on column route_targets.changed_at is 'When the row last changed.';
