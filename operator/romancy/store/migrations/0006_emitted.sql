-- Events that runs have emitted and no sink has taken yet. They leave the outbox in one statement that brings them here, and do not
-- belong to their run any more: it may end, and be purged.
create table emitted (
    run_id    uuid        not null,
    position  bigint      generated always as identity,
    namespace text        not null,
    at        timestamptz not null,  -- when it was written with the entry that led to it
    payload   text        not null,  -- the CloudEvent in its JSON format
    primary key (run_id, position)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

-- The runs of these, so that each has its events delivered in order, and one that fails holds up its own run alone. A claim moves
-- `due_at` to the end of its lease; `version` is raised by each event that comes, and compared when nothing is left.
create table emitter (
    run_id        uuid        primary key,
    due_at        timestamptz not null,
    version       integer     not null default 1,
    claim         integer     not null default 0,
    attempts      integer     not null default 0,  -- failed ones of its first event
    failing_since timestamptz,
    failure       text        not null default ''
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
create index emitter_due on emitter (due_at) where attempts = 0;
create index emitter_failing on emitter (due_at) where attempts > 0;

-- What a sink has refused, or has not taken for too long.
create table dead_letter (
    id        bigint      generated always as identity primary key,
    run_id    uuid        not null,
    namespace text        not null,
    at        timestamptz not null,
    died_at   timestamptz not null default now(),
    attempts  integer     not null,
    failure   text        not null,
    payload   text        not null
);
create index dead_letter_listed on dead_letter (namespace, id);

do $$
begin
    alter table emitted alter column payload set compression lz4;
    alter table dead_letter alter column payload set compression lz4;
exception
    when feature_not_supported then null;
end $$;
