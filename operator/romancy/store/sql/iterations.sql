-- name: recur
-- Begins the next iteration of runs: what was becomes a run of its own, with its history; the run is due, with an empty one. Only for
-- the claim that has come to that end, and while nobody holds the run: who has claimed it since comes to the same end by himself, and
-- says so anew. Deletes what asked for it, also where that is overtaken. Row: which began.
-- Order of locks: due rows by id, then what they guard. The claim is compared on the row itself: it tells that this statement's
-- snapshot has all that the claim wrote.
with asked as materialized (
    select a.run_id, a.number, a.claim, a.archive, a.input, a.numbers, a.position, a.sent, a.seen, a.kept
      from unnest(:run_ids::uuid[], :numbers::integer[], :claims::integer[], :archives::uuid[], :inputs::text[],
                  :counts::text[], :positions::integer[], :sents::integer[], :seens::integer[], :kepts::text[])
           as a(run_id, number, claim, archive, input, numbers, position, sent, seen, kept)
      join outbox on outbox.run_id = a.run_id and outbox.number = a.number
     order by a.run_id
), locked as materialized (
    select asked.run_id, asked.number, asked.archive, asked.input, asked.numbers, asked.position, asked.sent, asked.seen, asked.kept,
           open_run.started_at, open_run.python, open_run.form
      from asked,
           lateral (select due.started_at, due.python, due.form from due
                     where due.id = asked.run_id and due.worker_id is null and due.claim = asked.claim
                       for no key update) as open_run
), archived as (
    insert into run (id, namespace, name, workflow, priority, labels, input, timeout_seconds, created_at, form, python, started_at,
                     phase, reason, message, output, finished_at, numbers, recurred_into, history_from, outbox_from)
    select l.archive, run.namespace, run.name, run.workflow, run.priority, run.labels, run.input, run.timeout_seconds,
           run.created_at, l.form, l.python, l.started_at, 'Succeeded', 'Recurred', '', 'null', clock_timestamp(), run.numbers, run.id,
           run.history_from, run.outbox_from
      from locked as l join run on run.id = l.run_id
    on conflict (id) do nothing
), renewed as (
    update run
       set input = l.input, numbers = l.numbers, first_input = coalesce(run.first_input, run.input), started_at = null, python = null,
           history_from = l.position, outbox_from = l.sent
      from locked as l
     where run.id = l.run_id
), moved as (
    update history set run_id = l.archive
      from locked as l join run on run.id = l.run_id
     where history.run_id = l.run_id and history.position > run.history_from
), forgotten as (
    delete from history  -- what came late for an iteration before that
     using locked as l join run on run.id = l.run_id
     where history.run_id = l.run_id and history.position <= run.history_from
), untried as (
    delete from attempt using locked as l where attempt.run_id = l.run_id
), had as (
    update inbox set is_had = true
      from locked as l
     where inbox.run_id = l.run_id and inbox.number <= l.seen and not inbox.is_had
       and inbox.kind not in ('Suspend', 'Resume') and inbox.number <> all(string_to_array(l.kept, ',')::integer[])
), unsubscribed as (
    delete from subscription using locked as l where subscription.run_id = l.run_id
), opened as (
    update due
       set phase = 'Pending', reason = '', message = '', wake_at = now(), queue = due.workflow, python = null, started_at = null,
           lost_count = 0, lost_noted = 0, is_compensated = false
      from locked as l
     where due.id = l.run_id
    returning due.id, due.queue
), sent as (
    delete from outbox
     using asked left join due on due.id = asked.run_id
     where outbox.run_id = asked.run_id and outbox.number = asked.number
       and (asked.run_id in (select locked.run_id from locked) or due.claim is distinct from asked.claim)
)
select array(select opened.id from opened) as began,
       (select count(pg_notify(:due_channel::text, queue)) from (select distinct queue from opened) as woken) as notified;

-- name: set_values
-- Sets values of runs; one that was set later stays. Index: the primary key.
insert into value (run_id, name, number, payload)
select distinct on (v.run_id, v.name) v.run_id, v.name, v.number, v.payload
  from unnest(:run_ids::uuid[], :names::text[], :numbers::integer[], :payloads::text[]) as v(run_id, name, number, payload)
  join run on run.id = v.run_id
 order by v.run_id, v.name, v.number desc
on conflict (run_id, name) do update set number = excluded.number, payload = excluded.payload where value.number < excluded.number;

-- name: read_set_values
-- What a run shows to outsiders. Index: the primary key.
select value.name, value.number, value.payload from value where value.run_id = :run_id::uuid order by value.name;
