-- name: register_worker
-- A new life of a process, with one fence row for each connection of it that writes. Row: its id.
with registered as (
    insert into worker (name, boot_id, pod_uid, namespace, workflows, forms, build_id, python, expires_at)
    values (:name::text, :boot_id::uuid, :pod_uid::text, :namespace::text, :workflows::text[], :forms::text[], :build_id::text,
            :python::text, now() + make_interval(secs => :ttl_seconds::float8))
    returning id
)
insert into fence (worker_id, slot)
select registered.id, slots.slot from registered, generate_series(0, :slots::integer - 1) as slots(slot)
returning worker_id;

-- name: renew_lease
-- A sign of life: one HOT update, on a row that no flush touches; is_ours is false if the worker has been buried. The same
-- statement tells who else is expired and when anybody last looked, so that an idle worker sends no other for it.
with renewed as (
    update worker
       set expires_at = now() + make_interval(secs => :ttl_seconds::float8)
     where id = :worker_id::bigint
    returning id
)
select exists (select from renewed) as is_ours,
       array(select id from worker where expires_at < now() and id <> :worker_id::bigint order by expires_at) as expired,
       extract(epoch from now() - checked_at)::float8 as burial_check_seconds
  from burial_check;

-- name: drain_worker
update worker set is_draining = true where id = :worker_id::bigint;

-- name: expired_workers
-- Who has given no sign of life for too long; and a note that somebody has looked.
with checked as (
    update burial_check set checked_at = now()
)
select id from worker where expires_at < now() order by expires_at;

-- name: workers_of_pod
-- Index: worker_pod.
select id from worker where pod_uid = :pod_uid::text and pod_uid <> '' order by id;

-- name: list_workers
-- Every registered worker with how many runs it holds. Index: due_held.
select id, name, pod_uid, namespace, workflows, build_id, python, started_at, expires_at, expires_at < now() as is_expired,
       is_draining, (select count(*) from due where due.worker_id = worker.id)::integer as runs
  from worker
 order by id;

-- name: may_bury
-- Whether the worker is there, and dead or to be buried all the same.
select exists (select from worker where id = :worker_id::bigint and (:even_if_alive::boolean or expires_at < now())) as may_bury;

-- name: end_backends
-- Ends what the dead left open: a frozen process with an open transaction, or a flush whose last bytes never come, would
-- hold its fence row for ever. So would one that was frozen while it buried somebody: that connection has no worker's name, but
-- nothing of the engine leaves a transaction waiting for its client for seconds, and no time-out of PostgreSQL ends one that
-- waits for the last bytes of a statement. Names are seen by the whole cluster, so this database alone. The role is the same,
-- so it may.
select count(pg_terminate_backend(pid)) as ended
  from pg_stat_activity
 where datname = current_database() and pid <> pg_backend_pid()
   and (application_name = :application_name::text
        or application_name = 'romancy' and state <> 'idle' and wait_event = 'ClientRead'
           and xact_start < now() - interval '2 seconds');

-- name: delete_worker
-- Burial, first of two statements of one transaction (I2): waits for flushes and claims on their way, and refuses all later
-- ones. A renewal on its way spares the worker: the delete waits for it, and looks at expires_at again. Row: who it was.
with dead as (
    delete from worker
     where id = :worker_id::bigint and (:even_if_alive::boolean or expires_at < now())
    returning id, name, build_id
), fences as (
    delete from fence using dead where fence.worker_id = dead.id returning fence.slot
)
select dead.name, dead.build_id, (select count(*) from fences) as fences from dead;

-- name: free_runs
-- Burial, second statement. As one with the first it would use the snapshot from before the wait, and leave the runs that
-- the last flush began or the last claim took with the dead for ever. One more loss for each; from :losses_max on a run is
-- Blocked, for it may be what kills its workers. Row: the freed. Index: due_held.
with mine as materialized (
    select id from due where worker_id = :worker_id::bigint order by id for no key update
), freed as (
    update due
       set worker_id = null,
           lost_count = due.lost_count + 1,
           phase = case when due.lost_count + 1 >= :losses_max::integer then 'Blocked' else due.phase end,
           wake_at = case when due.lost_count + 1 < :losses_max::integer then now() end,
           reason = case when due.lost_count + 1 >= :losses_max::integer then 'WorkerLost' else due.reason end,
           message = case when due.lost_count + 1 >= :losses_max::integer then format(:message::text, due.lost_count + 1)
                          else due.message end,
           blocked_builds = case when due.lost_count + 1 >= :losses_max::integer and :build_id::text <> all(due.blocked_builds)
                                 then due.blocked_builds || :build_id::text else due.blocked_builds end
      from mine
     where due.id = mine.id
    returning due.id, due.queue, due.is_resource, due.wake_at is not null as is_due
), owed as (
    update mirror
       set version = mirror.version + 1, mirror_at = coalesce(mirror.mirror_at, now())
      from freed
     where mirror.run_id = freed.id and freed.is_resource
    returning mirror.run_id
)
select array(select id from freed) as freed,
       (select count(pg_notify(:due_channel::text, queue)) from (select distinct queue from freed where is_due) as queues) as notified,
       (select count(pg_notify(:mirror_channel::text, '')) from (select from owed limit 1) as any_owed) as leader_notified;

-- name: now
select clock_timestamp() as now;
