-- Which small-routed jobs were drawn to run on large as well, and how far that is. A row is written
-- with the job's decision; the copy is made once the job has its answer and large is idle.
create table shadows (
    job_id uuid primary key,
    propensity double precision not null,
    shadow_id uuid,
    drawn_at timestamptz not null,
    made_at timestamptz,
    ended_at timestamptz
);
create index shadows_open on shadows (job_id) where ended_at is null;
comment on table shadows is 'Jobs drawn by chance to run on large as well, for unbiased labels.';
comment on column shadows.job_id is 'The producer''s job, answered by small.';
comment on column shadows.propensity is 'Probability, 0 to 1, with which it was drawn.';
comment on column shadows.shadow_id is 'The job of its own that runs on large; null while it waits for large to be idle, or when none was made.';
comment on column shadows.drawn_at is 'When it was drawn.';
comment on column shadows.made_at is 'When the copy was made.';
comment on column shadows.ended_at is 'When the copy ended, or when it was seen that none is to be made.';
