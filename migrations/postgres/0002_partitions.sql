-- Weekly partitions, Monday to Monday in UTC, created ahead of need; the default ones take ids outside of them.

create function uuid7_floor(at timestamptz) returns uuid
    language sql immutable parallel safe
    return (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;

comment on function uuid7_floor is 'Smallest UUIDv7 of an instant; compare ids with it to select by time.';

create table jobs_default partition of jobs default with (fillfactor = 80);
create table requests_default partition of requests default;
create table answers_default partition of answers default;
create table attempts_default partition of attempts default with (fillfactor = 80);
create table attempt_answers_default partition of attempt_answers default;

-- Fills a partition with the rows that the default one holds of its range, then attaches it: the server refuses
-- to attach it otherwise. Attaching, unlike CREATE … PARTITION OF, does not block the other partitions.
create or replace function make_partitions(since timestamptz, weeks integer) returns integer
    language plpgsql as $$
declare
    spec record;
    made integer := 0;
begin
    perform pg_advisory_xact_lock(hashtext(current_schema() || '.make_partitions'));
    for spec in
        select t.parent, t.options, t.parent || to_char(w.at, '"_"YYYYMMDD') as child, t.id_column,
               uuid7_floor(w.at at time zone 'UTC') as low,
               uuid7_floor((w.at + interval '7 days') at time zone 'UTC') as high
          from (values (1, 'jobs', 'id', ' with (fillfactor = 80)'), (2, 'requests', 'job_id', ''),
                       (3, 'answers', 'job_id', ''), (4, 'attempts', 'job_id', ' with (fillfactor = 80)'),
                       (5, 'attempt_answers', 'job_id', ''))
               as t (nr, parent, id_column, options),
               generate_series(date_trunc('week', since at time zone 'UTC'),
                               date_trunc('week', since at time zone 'UTC') + make_interval(weeks => weeks),
                               interval '7 days') as w (at)
         where to_regclass(quote_ident(current_schema()) || '.'
                           || quote_ident(t.parent || to_char(w.at, '"_"YYYYMMDD'))) is null
         order by w.at, t.nr
    loop
        execute format('create table %I (like %I including all)%s', spec.child, spec.parent, spec.options);
        execute format('lock table %I in access exclusive mode', spec.parent || '_default');
        execute format(
            'with moved as (delete from %1$I where %2$I >= %3$L and %2$I < %4$L returning *) '
            'insert into %5$I select * from moved',
            spec.parent || '_default', spec.id_column, spec.low, spec.high, spec.child);
        execute format('alter table %I attach partition %I for values from (%L) to (%L)',
                       spec.parent, spec.child, spec.low, spec.high);
        made := made + 1;
    end loop;
    return made;
end $$;

comment on function make_partitions is 'Creates missing weekly partitions from the week of an instant on, for so many weeks; returns how many it created.';
