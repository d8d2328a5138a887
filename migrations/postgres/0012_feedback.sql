-- How good answers were, as people, programs and marked files say. Over SQL:
--   insert into feedback (job_id, source, score, comment) values ('…', 'review', 0.5, 'half right')
--       on conflict (job_id, source) do update set score = excluded.score, comment = excluded.comment;
create table feedback (
    job_id uuid not null,
    source text not null default 'sql' check (length(source) between 1 and 64),
    score double precision not null check (score >= 0 and score <= 1),
    comment text check (length(comment) <= 2000),
    created_at timestamptz not null default now(),
    primary key (job_id, source)
);
comment on table feedback is 'How good answers were; one word a job and source, the latest counts.';
comment on column feedback.job_id is 'The job whose answer was judged.';
comment on column feedback.source is 'Who judges: api, sql, a name of your own, or expect (a marked file; exact).';
comment on column feedback.score is '0 useless to 1 right.';
comment on column feedback.comment is 'Why; may quote prompts and answers.';
comment on column feedback.created_at is 'When it was first said.';
