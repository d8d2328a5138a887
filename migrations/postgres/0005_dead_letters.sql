-- Messages that were given up, kept until a person redrives or discards them.
create table dead_letters (
    id uuid primary key,
    job_id uuid,
    tenant text,
    queue text not null,
    reason_code text not null,
    reason_message text not null,
    body bytea not null,
    died_at timestamptz not null,
    resolution text check (resolution in ('redriven', 'discarded')),
    resolved_at timestamptz
);
create index dead_letters_open on dead_letters (died_at, id) where resolution is null;
comment on table dead_letters is 'Messages that were given up.';
comment on column dead_letters.id is 'The dead letter''s own identity.';
comment on column dead_letters.job_id is 'The job it was, if that could be told.';
comment on column dead_letters.tenant is 'Whose it was, if that could be told.';
comment on column dead_letters.queue is 'The queue it died in.';
comment on column dead_letters.reason_code is 'Why: a stable code.';
comment on column dead_letters.reason_message is 'Why: a sentence.';
comment on column dead_letters.body is 'What is published again on a redrive; holds prompts.';
comment on column dead_letters.died_at is 'When it died.';
comment on column dead_letters.resolution is 'redriven, discarded, or null while nobody has dealt with it.';
comment on column dead_letters.resolved_at is 'When somebody dealt with it.';
