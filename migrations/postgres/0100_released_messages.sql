-- A router may die after it released jobs and before it published them: the next one that leads publishes
-- what nobody is known to have published.
alter table deferred_jobs add column published_at timestamptz;
comment on column deferred_jobs.published_at is 'When the broker had its message; null before, and for good if the router died meanwhile and another published it.';
