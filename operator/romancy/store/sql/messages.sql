-- name: send
-- Stores messages and wakes their runs: both touch the run's due row, so that a park on its way sees the new version or the
-- wake-up sees the parked run (I7). A row's number is the version after its update. A waiting run is due now; a delayed,
-- suspended or blocked one keeps its time, but a cancel wakes delayed and suspended ones, a resume suspended ones.
-- Row: how many were new, and the events that they brought, each as often as it was. 23505: the same message was on its way; sent again it is found.
-- Order of locks: due rows by id, then what they guard. Index: the primary keys, inbox (run_id, source).
with mail as materialized (
    select m.run_id, m.kind, m.source, m.payload, m.event_id,
           row_number() over (partition by m.run_id order by m.ordinality)::integer as nth
      from unnest(:run_ids::uuid[], :kinds::text[], :sources::text[], :payloads::text[],
                  :event_ids::bigint[])
           with ordinality as m(run_id, kind, source, payload, event_id, ordinality)
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
    insert into inbox (run_id, number, kind, source, payload, event_id)
    select mail.run_id, changed.before + mail.nth, mail.kind, mail.source, mail.payload, mail.event_id
      from changed join mail on mail.run_id = changed.id
    returning event_id
)
select (select count(*) from stored) as stored,
       array(select event_id from stored where event_id is not null) as event_ids,
       (select count(pg_notify(:due_channel::text, queue))
          from (select distinct queue from changed where is_due) as woken) as queues_notified,
       (select count(pg_notify(:inbox_channel::text || worker_id, run_ids))
          from (select worker_id, string_agg(replace(id::text, '-', ''), ',') as run_ids
                  from (select worker_id, id, row_number() over (partition by worker_id) / :ids_max::integer as part
                          from changed where worker_id is not null) as held
                 group by worker_id, part) as holders) as workers_notified;

-- name: end_unbegun
-- Ends runs that no worker has ever taken, and that have a cancel in their inbox.
-- A claim on its way holds the due row: it is waited for, and then the run has begun. Row: how many ended.
-- Index: the primary keys.
with locked as materialized (
    select due.id from due
     where due.id = any(:run_ids::uuid[]) and due.worker_id is null and due.started_at is null
     order by due.id for update
), asked as materialized (
    select a.run_id, a.reason, a.message
      from unnest(:run_ids::uuid[], :reasons::text[], :messages::text[]) as a(run_id, reason, message)
      join locked on locked.id = a.run_id
     where exists (select from inbox where inbox.run_id = a.run_id and inbox.kind = 'Cancel')
), gone as (
    delete from due using asked where due.id = asked.run_id returning due.id, asked.reason, asked.message
), ended as (
    update run
       set phase = 'Cancelled', reason = gone.reason, message = gone.message, finished_at = clock_timestamp(),
           resource_due_at = case when run.is_resource then clock_timestamp() + make_interval(secs => run.ttl_seconds) end
      from gone
     where run.id = gone.id
    returning run.id, run.is_resource, run.parent_id
), told as (
    -- A child's parent is to hear of it: whoever polls next sends this.
    insert into outbox (run_id, number, kind, payload)
    select ended.id, 0, 'Ended', '' from ended where ended.parent_id is not null
    on conflict (run_id, number) do nothing
), owed as (
    update mirror
       set version = mirror.version + 1, mirror_at = coalesce(mirror.mirror_at, now()), is_final = true
      from ended
     where mirror.run_id = ended.id and ended.is_resource
    returning mirror.run_id
)
select (select count(*) from ended) as ended,
       (select count(pg_notify(:mirror_channel::text, '')) from (select from owed limit 1) as woken) as notified;

-- name: read_inboxes
-- The mail of some runs, in order; each from the number after the one given. Index: the primary key.
select inbox.run_id, inbox.number, inbox.kind, inbox.source, coalesce(event.payload, inbox.payload) as payload,
       coalesce(event.at, inbox.at) as at
  from unnest(:run_ids::uuid[], :afters::integer[]) as seen(run_id, after)
  join inbox on inbox.run_id = seen.run_id and inbox.number > seen.after and not inbox.is_had
  left join event on event.id = inbox.event_id
 order by inbox.run_id, inbox.number;
