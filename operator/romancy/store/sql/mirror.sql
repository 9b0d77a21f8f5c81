-- name: take_unmirrored
-- Runs whose status is owed: final ones first, then the longest owed. The first write of a run waits :hold_seconds, so that a
-- short run costs one. Nothing is marked: whoever crashes before mark_mirrored only writes the same status twice.
-- Index: mirror_owed (is_final desc, mirror_at) where mirror_at is not null.
with owed as materialized (
    select run_id, version, is_final, mirror_at
      from mirror
     where mirror_at is not null
       and (is_final or mirrored > 0 or mirror_at <= now() - make_interval(secs => :hold_seconds::float8))
     order by is_final desc, mirror_at
     limit :limit::integer
)
select shown.id, shown.namespace, shown.name, shown.workflow, shown.input, shown.form, shown.priority, shown.phase,
       shown.reason, shown.message, shown.labels, shown.created_at, shown.started_at, shown.finished_at, shown.wake_at,
       shown.worker, shown.python, shown.timeout_seconds, shown.output, shown.failure, shown.is_resource,
       shown.wish_suspend, shown.wish_cancel, shown.deletion_policy, shown.ttl_seconds, shown.numbers, shown.recurred_into,
       shown.first_input, owed.version,
       (select count(*) from attempt
         where attempt.run_id = owed.run_id
           and not exists (select from history
                            where history.run_id = attempt.run_id and history.number = attempt.number and history.at >= attempt.failed_at
                              and history.kind in ('ActivityCompleted', 'ActivityFailed', 'ActivityCancelled')))::integer as attempts
  from owed join run_shown as shown on shown.id = owed.run_id
 order by owed.is_final desc, owed.mirror_at;

-- name: mark_mirrored
-- What was written is owed no more, where the version is still that one; a row whose run is done has served. One that a flush
-- holds is skipped: the flush raises its version. (Waiting for it could deadlock: the flush may hold one row and want another.)
with written as materialized (
    select mirror.run_id, mirror.version, mirror.is_final, w.version as mirrored
      from unnest(:run_ids::uuid[], :versions::integer[]) as w(run_id, version)
      join mirror on mirror.run_id = w.run_id
     order by mirror.run_id
       for update of mirror skip locked
), served as (
    delete from mirror using written
     where mirror.run_id = written.run_id and written.is_final and written.version = written.mirrored
)
update mirror
   set mirrored = greatest(mirror.mirrored, written.mirrored),
       mirror_at = case when written.version > written.mirrored then mirror.mirror_at end
  from written
 where mirror.run_id = written.run_id and not (written.is_final and written.version = written.mirrored);
