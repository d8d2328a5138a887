-- Which small-routed jobs were drawn to run on large as well, and how far that is. A row is written
-- with the job's decision; the copy is made once the job has its answer and large is idle.
create table shadows (
    job_id blob primary key,
    propensity real not null,
    shadow_id blob,
    drawn_at text not null,
    made_at text,
    ended_at text
);
create index shadows_open on shadows (job_id) where ended_at is null;
