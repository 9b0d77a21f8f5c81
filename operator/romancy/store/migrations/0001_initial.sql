-- The first schema. Times are timestamptz of the database's clock; payloads are the exact text of JSON, never jsonb, which
-- reorders keys, changes -0.0 and refuses \u0000. No foreign keys: a reference would lock the run's row from the side and
-- break the lock order (own fence row, new runs by id, due rows by id, then what these guard).

-- One life of a process. Renewed every few seconds: what changes must not be indexed, so that a renewal is a HOT update.
create table worker (
    id         bigint generated always as identity primary key,
    name       text        not null,
    boot_id    uuid        not null,
    pod_uid    text        not null,
    namespace  text        not null,
    workflows  text[]      not null,
    forms      text[]      not null,  -- of the workflows, in their order
    build_id   text        not null,
    python     text        not null,  -- minor version, '3.12'
    started_at timestamptz not null default now(),
    expires_at timestamptz not null,
    is_draining boolean    not null default false
) with (fillfactor = 50);
create index worker_pod on worker (pod_uid) where pod_uid <> '';

-- One row a connection of a worker that writes, never updated: each is locked by one backend alone, so there are no
-- multixacts (with one shared row there was one in each flush, and autovacuum had to freeze whole tables for it).
create table fence (
    worker_id bigint   not null,
    slot      smallint not null,
    primary key (worker_id, slot)
);

-- Written at the start and at the end of a run: what lists show. While the run is open, `due` has its phase.
create table run (
    id               uuid        primary key,
    namespace        text        not null,
    name             text        not null,
    workflow         text        not null,
    priority         smallint    not null,
    labels           jsonb       not null default '{}',
    input            text        not null,
    timeout_seconds  double precision,
    is_resource      boolean     not null default false,
    resource_gone_at timestamptz,
    wish_suspend     boolean     not null default false,
    wish_cancel      boolean     not null default false,
    deletion_policy  text        not null default 'Cancel',
    ttl_seconds      integer,
    begun_by         bigint,      -- the worker that inserted it as its own, and the how manieth it was: tells a repeated
    begun_number     integer,     -- flush from a second start of the same id
    created_at       timestamptz not null default now(),
    -- from here on: written at the end
    form             text,
    python           text,
    started_at       timestamptz,
    phase            text,
    reason           text,
    message          text,
    output           text,
    failure          text,
    finished_at      timestamptz,
    resource_due_at  timestamptz  -- when the resource of a finished run is to be deleted
) with (fillfactor = 90);
create index run_name on run (namespace, name, created_at desc);
create index run_listed on run (created_at desc, id desc);
create index run_listed_by_namespace on run (namespace, created_at desc, id desc);
create index run_done on run (phase, created_at desc, id desc) where phase is not null;
create index run_labels on run using gin (labels jsonb_path_ops) where labels <> '{}';
create index run_resource on run (namespace, id) where is_resource and resource_gone_at is null;
create index run_resource_due on run (resource_due_at) where resource_due_at is not null and resource_gone_at is null;

-- The narrow hot row of an open run; gone at its end. Each index on it is written at each change (never HOT), so it has two
-- that matter and two that hold nearly nothing.
create table due (
    id             uuid        primary key,
    queue          text        not null,  -- what a worker must offer: the workflow; with the Python minor once it has begun
    workflow       text        not null,
    priority       smallint    not null,  -- higher is claimed first
    phase          text        not null,
    reason         text        not null default '',
    message        text        not null default '',
    worker_id      bigint,
    claim          integer     not null default 0,
    wake_at        timestamptz,           -- when the run is due; null: held, waits for mail, or blocked
    inbox_version  integer     not null default 0,
    started_at     timestamptz,
    python         text,
    form           text,
    lost_count     integer     not null default 0,
    lost_noted     integer     not null default 0,
    blocked_builds text[]      not null default '{}',
    is_resource    boolean     not null default false
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
create index due_claim on due (priority, queue, wake_at) where wake_at is not null;
create index due_held on due (worker_id) where worker_id is not null;
create index due_blocked on due (queue) where phase = 'Blocked';
create index due_stranded on due (queue) where reason = 'WorkflowNotRegistered';

create table history (
    run_id   uuid        not null,
    position integer     not null,
    kind     text        not null,
    at       timestamptz not null,
    number   integer     not null,
    inbox    integer,
    name     text        not null,
    digest   text        not null,
    payload  text        not null,
    primary key (run_id, position)
) with (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);

create table attempt (
    run_id    uuid        not null,
    number    integer     not null,  -- of the activity's command
    attempt   integer     not null,
    failed_at timestamptz not null,
    next_at   timestamptz not null,
    failure   text        not null,
    primary key (run_id, number, attempt)
);

-- The only way in. A row's number is the run's inbox version after the update that came with it: no gaps, in order of commit.
create table inbox (
    run_id  uuid        not null,
    number  integer     not null,
    kind    text        not null,
    at      timestamptz not null default now(),
    source  text        not null,
    payload text        not null,
    primary key (run_id, number),
    unique (run_id, source)
);

-- What is owed to the status of a run's resource. No row: no resource, or it is gone.
create table mirror (
    run_id    uuid        primary key,
    version   integer     not null default 1,
    mirrored  integer     not null default 0,  -- the version that was written last
    mirror_at timestamptz,                     -- since when a write is owed; null: none is
    is_final  boolean     not null default false
);
create index mirror_owed on mirror (is_final desc, mirror_at) where mirror_at is not null;

-- When anybody last looked for dead workers.
create table burial_check (
    is_only    boolean     primary key default true check (is_only),
    checked_at timestamptz not null
);
insert into burial_check (checked_at) values (now());

-- A run as people see it, whether it is open or done.
create view run_shown as
select run.id, run.namespace, run.name, run.workflow, run.input, coalesce(due.form, run.form) as form, run.priority,
       coalesce(due.phase, run.phase) as phase, coalesce(due.reason, run.reason) as reason,
       coalesce(due.message, run.message) as message, run.labels::text as labels, run.created_at,
       coalesce(due.started_at, run.started_at) as started_at, run.finished_at, due.wake_at, worker.name as worker,
       coalesce(due.python, run.python) as python, run.timeout_seconds, run.output, run.failure, run.is_resource,
       run.wish_suspend, run.wish_cancel, run.deletion_policy, run.ttl_seconds
  from run
  left join due on due.id = run.id
  left join worker on worker.id = due.worker_id;

-- lz4 makes a flush of 100 KB payloads three times faster; a PostgreSQL that was built without it keeps pglz.
do $$
declare
    payload record;
begin
    for payload in
        select * from (values ('run', 'input'), ('run', 'output'), ('run', 'failure'), ('history', 'payload'),
                              ('attempt', 'failure'), ('inbox', 'payload')) as p(on_table, on_column)
    loop
        execute format('alter table %I alter column %I set compression lz4', payload.on_table, payload.on_column);
    end loop;
exception
    when feature_not_supported then null;
end $$;
