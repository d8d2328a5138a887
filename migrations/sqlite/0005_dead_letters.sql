-- Messages that were given up, kept until a person redrives or discards them.
create table dead_letters (
    id blob primary key,
    job_id blob,
    tenant text,
    queue text not null,
    reason_code text not null,
    reason_message text not null,
    body blob not null,
    died_at text not null,
    resolution text check (resolution in ('redriven', 'discarded')),
    resolved_at text
);
create index dead_letters_open on dead_letters (died_at, id) where resolution is null;
