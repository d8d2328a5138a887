-- Whether a worker takes jobs from its tier's lanes.
alter table workers add column takes_affinity_queues boolean not null default false;
comment on column workers.takes_affinity_queues is 'True when it takes jobs from its tier''s lanes (jobs.small.0 and so on), which routers fill by the jobs'' beginnings.';
