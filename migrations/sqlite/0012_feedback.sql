-- How good answers were, as people, programs and marked files say. Over SQL:
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
