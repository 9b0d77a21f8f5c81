-- name: send
-- Stores messages and wakes their runs: both touch the run's due row, so that a park on its way sees the new version or the
-- wake-up sees the parked run (I7). A row's number is the version after its update. A waiting run is due now; a delayed,
-- suspended or blocked one keeps its time, but a cancel wakes delayed and suspended ones, a resume suspended ones.
-- Row: how many were new. 23505: the same message was on its way; sent again it is found.
-- Order of locks: due rows by id, then what they guard. Index: the primary keys, inbox (run_id, source).
with mail as materialized (
    select m.run_id, m.kind, m.source, m.payload,
           row_number() over (partition by m.run_id order by m.ordinality)::integer as nth
      from unnest(:run_ids::uuid[], :kinds::text[], :sources::text[], :payloads::text[])
           with ordinality as m(run_id, kind, source, payload, ordinality)
     where not exists (select from inbox where inbox.run_id = m.run_id and inbox.source = m.source)
), wanted as materialized (
    select run_id, count(*)::integer as messages, bool_or(kind = 'Cancel') as cancels, bool_or(kind = 'Resume') as resumes
      from mail
     group by run_id
     order by run_id
), locked as materialized (
    -- Row by row in the order of `wanted`, each by its key, whatever the statistics say.
    select open_run.id, w.messages, w.cancels, w.resumes
      from wanted as w,
           lateral (select due.id from due where due.id = w.run_id for no key update) as open_run
), changed as (
    update due
       set inbox_version = due.inbox_version + l.messages,
           wake_at = case when due.worker_id is not null then due.wake_at
                          when due.phase = 'Waiting' or l.cancels and due.phase in ('Pending', 'Suspended')
                            or l.resumes and due.phase = 'Suspended' then least(due.wake_at, now())
                          else due.wake_at end
      from locked as l
     where due.id = l.id
    returning due.id, due.queue, due.worker_id, due.inbox_version - l.messages as before, due.wake_at <= now() as is_due
), stored as (
    insert into inbox (run_id, number, kind, source, payload)
    select mail.run_id, changed.before + mail.nth, mail.kind, mail.source, mail.payload
      from changed join mail on mail.run_id = changed.id
    returning run_id
)
select (select count(*) from stored) as stored,
       (select count(pg_notify(:due_channel::text, queue))
          from (select distinct queue from changed where is_due) as woken) as queues_notified,
       (select count(pg_notify(:inbox_channel::text || worker_id, run_ids))
          from (select worker_id, string_agg(replace(id::text, '-', ''), ',') as run_ids
                  from changed where worker_id is not null group by worker_id) as holders) as workers_notified;

-- name: read_inboxes
-- The mail of some runs, in order; each from the number after the one given. Index: the primary key.
select inbox.run_id, inbox.number, inbox.kind, inbox.source, inbox.payload, inbox.at
  from unnest(:run_ids::uuid[], :afters::integer[]) as seen(run_id, after)
  join inbox on inbox.run_id = seen.run_id and inbox.number > seen.after
 order by inbox.run_id, inbox.number;
