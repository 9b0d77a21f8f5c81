-- Events, and the outbox: what a run sends out is a row that is written with the entry that led to it.

create table outbox (
    run_id    uuid        not null,
    number    integer     not null,  -- of the run's own; 0 is its end
    kind      text        not null,
    payload   text        not null,
    worker_id bigint,                -- who wrote it and will send it
    at        timestamptz not null default now(),
    primary key (run_id, number)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
create index outbox_left on outbox (at);

-- An event once, for however many receive it, and for those that begin to wait for it later. `attributes` is a projection of
-- what a `where` may name, of values that jsonb can hold and compare; the text is in `payload`.
create table event (
    id         bigint      generated always as identity primary key,
    source     text        not null,
    event_id   text        not null,
    type       text        not null,
    target     uuid,                   -- the run that it was sent to; null: to all that wait for it
    at         timestamptz not null default clock_timestamp(),
    payload    text        not null,
    attributes jsonb       not null,
    unique (source, event_id)
) with (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);
create index event_type on event (type, at);
create index event_attributes on event using gin (attributes jsonb_path_ops);

-- The few sets of attributes that anybody has ever asked for, by type: an event is looked for under each of them.
create table shape (
    type       text not null,
    attributes text not null,  -- a JSON array of names
    primary key (type, attributes)
);

create table subscription (
    run_id uuid    not null,
    number integer not null,  -- of the outbox row that made it
    key    uuid    not null,  -- a digest of type and values
    primary key (run_id, number)
);
create index subscription_key on subscription (key, run_id);

-- The run that started this one, the number of its command, and what its end does to this one.
alter table run add column parent_id uuid, add column parent_number integer, add column parent_close text;
create index run_parent on run (parent_id) where parent_id is not null;

alter table inbox add column event_id bigint;  -- what it brings, if that is an event
create index inbox_event on inbox (event_id) where event_id is not null;

do $$
begin
    alter table outbox alter column payload set compression lz4;
    alter table event alter column payload set compression lz4;
exception
    when feature_not_supported then null;
end $$;
