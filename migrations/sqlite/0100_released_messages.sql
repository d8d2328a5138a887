-- A router may die after it released jobs and before it published them: the next one that leads publishes
-- what nobody is known to have published.
alter table deferred_jobs add column published_at text;
