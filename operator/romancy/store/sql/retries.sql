-- name: retry_run
-- Opens a failed run again: its due row is made anew, and a message says which entries stand no more. Claims are counted on, so that
-- a late copy of what was written before is told from what is of now; versions of its status as well. Failed attempts are
-- forgotten: what is asked for again has all of its attempts. Only if it is as it was found (:finished_at), what it had open
-- elsewhere is closed, nothing was taken back, and no other run knows of its end or was ended by it. Two who ask at once: the
-- second waits for the row, and finds it open. Orders of before are had: a retry overtakes a cancel and a suspension. What its
-- resource wants was told to nobody if that changed since its end: a second message says whether it is to be suspended, with the
-- generation of the newest order, so that none of a leader before is followed.
-- Row: whether it was done, and what stood against it.
-- Order of locks: the row of the run, as a purge does; then what it guards. Index: the primary keys, run_parent.
with found as materialized (
    select run.id, run.workflow, run.priority, run.started_at, run.python, run.form, run.is_resource, run.claim, run.wish_suspend,
           coalesce((select max(inbox.number) from inbox where inbox.run_id = run.id), 0) + 1 as number
      from run
     where run.id = :run_id::uuid and run.phase = 'Failed' and run.finished_at = :finished_at::timestamptz
       and run.recurred_into is null and run.is_compensated = false and not run.wish_cancel and run.resource_gone_at is null
       and (run.parent_id is null or run.parent_close = 'Abandon'
                                     and not exists (select from inbox where inbox.run_id = run.parent_id and inbox.source = 'child:' || run.id))
       and not exists (select from outbox where outbox.run_id = run.id)
       and not exists (select from run as child
                        where child.parent_id = run.id and child.parent_number > coalesce((run.numbers::json ->> 'child')::integer, 0)
                          and (child.parent_close = 'Cancel' or child.phase is not null)
                          and not exists (select from inbox where inbox.run_id = run.id and inbox.source = 'child:' || child.id))
       for update of run
), opened as (
    insert into due (id, queue, workflow, priority, phase, claim, wake_at, inbox_version, started_at, python, form, is_resource)
    select id, workflow || '/' || python, workflow, priority, 'Pending', claim, now(),
           case when is_resource then number + 1 else number end, started_at, python, form, is_resource
      from found
    returning id, queue
), reopened as (
    update run
       set phase = null, reason = null, message = null, failure = null, finished_at = null, resource_due_at = null,
           is_compensated = null
      from found
     where run.id = found.id
), untried as (
    delete from attempt using found where attempt.run_id = found.id
), orders as materialized (
    select coalesce(max(substring(inbox.source from '^resource:.*:([0-9]+)$')::bigint), 0) as generation
      from found join inbox on inbox.run_id = found.id
     where inbox.kind in ('Suspend', 'Resume')
), overtaken as (
    update inbox
       set is_had = true,
           -- Whoever asks for it once more asks for something else.
           source = case when inbox.kind = 'Cancel' then inbox.source || '/before-' || found.number else inbox.source end
      from found
     where inbox.run_id = found.id and inbox.kind in ('Cancel', 'Suspend', 'Resume') and not inbox.is_had
), asked as (
    insert into inbox (run_id, number, kind, source, payload)
    select id, number, 'Retry', 'retry:' || number, :payload::text from found
    union all
    select id, number + 1, case when wish_suspend then 'Suspend' else 'Resume' end,
           'resource:retry/' || number || ':' || orders.generation, '{}'
      from found, orders where is_resource
), owed as (
    insert into mirror (run_id, version, mirrored, mirror_at)
    -- Higher than any version that was written before: whoever wrote that remembers it.
    select id, number * 1000000 + 1, number * 1000000, now() from found where is_resource
    on conflict (run_id) do update
       set version = excluded.version, mirrored = excluded.mirrored, mirror_at = excluded.mirror_at, is_final = false
    returning run_id
)
select exists (select from opened) as is_retried, run.is_compensated, run.resource_gone_at is not null as is_gone,
       run.parent_id is not null
       and (run.parent_close = 'Cancel'
            or exists (select from inbox where inbox.run_id = run.parent_id and inbox.source = 'child:' || run.id)) as is_child,
       (select count(pg_notify(:due_channel::text, queue)) from opened) as notified,
       (select count(pg_notify(:mirror_channel::text, '')) from owed) as leader_notified
  from run
 where run.id = :run_id::uuid;
