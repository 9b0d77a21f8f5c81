-- Lists by input and by time of the end; deletion of old runs.

-- Whether the exact JSON text of an input contains a value. jsonb refuses what JSON may hold (\u0000, lone surrogates, numbers
-- beyond numeric, nesting beyond its stack): such an input contains nothing, and fails no list. Only lists call it, so it costs
-- nothing when a run is written. plpgsql, since nothing else catches an error before PostgreSQL 16; a statement that is
-- cancelled is not caught. Costly to the planner, so that every other filter is asked first.
create function json_contains(document text, part jsonb) returns boolean
    language plpgsql immutable strict parallel unsafe cost 10000
as $$
begin
    return document::jsonb @> part;
exception
    when data_exception or program_limit_exceeded then return false;
end $$;

-- What ended when: the oldest are deleted first. Made at the end of a run, when its row is not HOT anyhow.
create index run_finished on run (phase, finished_at) where phase is not null;

-- When anybody last looked for runs that are kept no longer; no row: nobody has.
create table purge_check (
    is_only    boolean     primary key default true check (is_only),
    checked_at timestamptz not null
);
