-- Whether a worker takes jobs from its tier's lanes.
alter table workers add column takes_affinity_queues integer not null default 0;
