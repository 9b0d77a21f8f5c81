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
-- Without a list of what is to be indexed later: each look back would read all of that, up to 500 pages.
create index event_attributes on event using gin (attributes jsonb_path_ops) with (fastupdate = off);

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

-- A run that begins anew keeps its id. The iteration that is over becomes a run of its own that nobody finds by name; `numbers` is what
-- an iteration counts on from, as JSON.
alter table run add column numbers text not null default '{}', add column recurred_into uuid,
    add column first_input text,  -- what it was started with, if that is not its input any more
    -- Positions and numbers go on from one iteration to the next: what a late copy of an old flush writes is of the past by these.
    add column history_from integer not null default 0, add column outbox_from integer not null default 0;

-- What a run shows to outsiders.
create table value (
    run_id  uuid    not null,
    name    text    not null,
    number  integer not null,  -- of the outbox row that set it: an older one changes nothing
    payload text    not null,
    primary key (run_id, name)
);

-- The first use of a channel decides its mode. Its messages are events.
create table channel (
    name text primary key,
    mode text not null
);

-- Messages of competing channels that nobody has taken, and runs that want one: oldest to oldest.
create table pending (
    channel  text   not null,
    event_id bigint not null,
    primary key (channel, event_id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
create index pending_event on pending (event_id);
create table demand (
    channel text        not null,
    at      timestamptz not null default clock_timestamp(),
    run_id  uuid        not null,
    number  integer     not null,  -- of the outbox row that asks
    primary key (run_id, number)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
create index demand_oldest on demand (channel, at, run_id, number);

create table member (
    group_name text not null,
    run_id     uuid not null,
    primary key (group_name, run_id)
);
create index member_run on member (run_id);

-- Workflows that events start, as whoever offers them says. Few.
create table starter (
    namespace text not null,
    workflow  text not null,
    type      text not null,
    wanted    text not null,  -- values by attributes, as JSON
    form      text not null,
    primary key (namespace, workflow)
);
create index starter_type on starter (type);

alter table inbox add column is_had boolean not null default false;  -- by an iteration that is over
alter table inbox add column event_id bigint;  -- what it brings, if that is an event
create index inbox_event on inbox (event_id) where event_id is not null;

create or replace view run_shown as
select run.id, run.namespace, run.name, run.workflow, run.input, coalesce(due.form, run.form) as form, run.priority,
       coalesce(due.phase, run.phase) as phase, coalesce(due.reason, run.reason) as reason,
       coalesce(due.message, run.message) as message, run.labels::text as labels, run.created_at,
       coalesce(due.started_at, run.started_at) as started_at, run.finished_at, due.wake_at, worker.name as worker,
       coalesce(due.python, run.python) as python, run.timeout_seconds, run.output, run.failure, run.is_resource,
       run.wish_suspend, run.wish_cancel, run.deletion_policy, run.ttl_seconds, run.numbers, run.recurred_into,
       run.first_input
  from run
  left join due on due.id = run.id
  left join worker on worker.id = due.worker_id;

do $$
begin
    alter table outbox alter column payload set compression lz4;
    alter table event alter column payload set compression lz4;
    alter table value alter column payload set compression lz4;
exception
    when feature_not_supported then null;
end $$;
