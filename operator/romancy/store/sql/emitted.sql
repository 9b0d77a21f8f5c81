-- name: emit
-- Moves what these runs have emitted from the outbox to where relays find it: all of it, in the order in which it was written, and once,
-- however often it is asked for. What is there is durable, so an earlier row is never behind a later one: whoever comes second waits
-- for the rows of the first. Of one write, an even number below zero goes first and an odd one last (model/outbox.py: told_number).
-- Order of locks: outbox rows by key, emitters by run. Index: the primary keys.
with there as materialized (
    select outbox.run_id, outbox.number
      from outbox
     where outbox.run_id = any(:run_ids::uuid[]) and outbox.kind = any(:kinds::text[])
     order by outbox.run_id, outbox.number
       for update
), gone as (
    delete from outbox using there
     where outbox.run_id = there.run_id and outbox.number = there.number
    returning outbox.run_id, outbox.number, outbox.at, outbox.payload
), moved as (
    insert into emitted (run_id, namespace, at, payload)
    select gone.run_id, (select run.namespace from run where run.id = gone.run_id), gone.at, gone.payload
      from gone
     order by gone.run_id, gone.at, case when gone.number > 0 then 1 when gone.number % 2 = 0 then 0 else 2 end, gone.number
    returning run_id
)
insert into emitter (run_id, due_at)
select distinct moved.run_id, now() from moved order by moved.run_id
on conflict (run_id) do update set version = emitter.version + 1;

-- name: claim_emitters
-- Takes as many runs with events that are due as there is room for, for so many seconds; at most :failing_max of those whose first event
-- has failed before, so that what fails never takes all the room. A relay that dies has them found again when its time is over.
-- Row: how often and how long the first event has failed. Index: emitter_due, emitter_failing.
with failing as materialized (
    select emitter.run_id from emitter
     where emitter.attempts > 0 and emitter.due_at <= now()
     order by emitter.due_at limit :failing_max::integer for update skip locked
), fresh as materialized (
    select emitter.run_id from emitter
     where emitter.attempts = 0 and emitter.due_at <= now()
     order by emitter.due_at limit :room::integer - (select count(*) from failing) for update skip locked
)
update emitter
   set claim = emitter.claim + 1, due_at = now() + make_interval(secs => :lease_seconds::float8)
  from (select fresh.run_id from fresh union all select failing.run_id from failing) as taken
 where emitter.run_id = taken.run_id
returning emitter.run_id, emitter.claim, emitter.version, emitter.attempts,
          coalesce(extract(epoch from now() - emitter.failing_since), 0)::float8 as failing_seconds;

-- name: read_emitted
-- The first events of some runs, in order; after the claim, so that all are seen that its version counts. Index: the primary key.
select asked.run_id, first.position, first.payload
  from unnest(:run_ids::uuid[]) as asked(run_id),
       lateral (select emitted.position, emitted.payload from emitted
                 where emitted.run_id = asked.run_id
                 order by emitted.position limit :limit::integer) as first
 order by asked.run_id, first.position;

-- name: settle_emitters
-- What came of claimed runs: their events up to a position are delivered, the one after that may be dead or be tried again after
-- some time. A run without further events goes away, if none has come since it was claimed (compared on the row itself).
-- Whoever's claim is not the last one changes nothing. Row: how many were delivered, and how many died.
-- Index: the primary keys. Order of locks: emitters by run.
with given as materialized (
    select g.run_id, g.claim, g.version, g.delivered_to, g.dead, g.failure, g.attempts, g.delay, g.has_more
      from unnest(:run_ids::uuid[], :claims::integer[], :versions::integer[], :delivered_tos::bigint[], :deads::bigint[],
                  :failures::text[], :attempts::integer[], :delays::float8[], :has_mores::boolean[])
           as g(run_id, claim, version, delivered_to, dead, failure, attempts, delay, has_more)
     order by g.run_id
), held as materialized (
    select given.run_id, given.delivered_to, given.dead, given.failure, given.attempts, given.delay,
           given.delay is not null or given.has_more or mine.version <> given.version as stays
      from given,
           lateral (select emitter.version from emitter
                     where emitter.run_id = given.run_id and emitter.claim = given.claim for update) as mine
), delivered as (
    delete from emitted using held
     where emitted.run_id = held.run_id and emitted.position <= held.delivered_to
    returning emitted.run_id
), died as (
    delete from emitted using held
     where emitted.run_id = held.run_id and emitted.position = held.dead
    returning emitted.run_id, emitted.namespace, emitted.at, emitted.payload, held.attempts, held.failure
), buried as (
    insert into dead_letter (run_id, namespace, at, attempts, failure, payload)
    select died.run_id, died.namespace, died.at, died.attempts, died.failure, died.payload from died
), kept as (
    update emitter
       set due_at = now() + make_interval(secs => coalesce(held.delay, 0)),
           attempts = case when held.delay is null then 0 else held.attempts end,
           failing_since = case when held.delay is null then null when held.attempts > 1 then emitter.failing_since else now() end,
           failure = case when held.delay is null then '' else held.failure end
      from held
     where emitter.run_id = held.run_id and held.stays
), gone as (
    delete from emitter using held where emitter.run_id = held.run_id and not held.stays
)
select (select count(*) from delivered)::integer as delivered, (select count(*) from died)::integer as died;

-- name: list_dead_letters
-- Newest first; with :before those that died before that one. Index: dead_letter_listed, or the primary key without a namespace.
select dead_letter.id, dead_letter.run_id, dead_letter.namespace, run.name as run_name, dead_letter.at, dead_letter.died_at,
       dead_letter.attempts, dead_letter.failure, dead_letter.payload
  from dead_letter left join run on run.id = dead_letter.run_id
 where (:namespace::text is null or dead_letter.namespace = :namespace::text)
   and (:before::bigint is null or dead_letter.id < :before::bigint)
 order by dead_letter.id desc
 limit :limit::integer;

-- name: resend_dead_letter
-- Puts a dead letter back, behind what its run has emitted since. Row: its run, if it was there.
with gone as (
    delete from dead_letter
     where dead_letter.id = :letter_id::bigint and (:namespace::text is null or dead_letter.namespace = :namespace::text)
    returning dead_letter.run_id, dead_letter.namespace, dead_letter.at, dead_letter.payload
), back as (
    insert into emitted (run_id, namespace, at, payload)
    select gone.run_id, gone.namespace, gone.at, gone.payload from gone
    returning run_id
)
insert into emitter (run_id, due_at) select back.run_id, now() from back
on conflict (run_id) do update set version = emitter.version + 1
returning emitter.run_id;

-- name: delete_dead_letter
delete from dead_letter
 where dead_letter.id = :letter_id::bigint and (:namespace::text is null or dead_letter.namespace = :namespace::text)
returning dead_letter.id;

-- name: purge_dead_letters
-- Deletes some that died long enough ago, the oldest first. Row: each. Index: the primary key, which grows with time.
delete from dead_letter
 where dead_letter.id in (select old.id from dead_letter as old
                           where old.died_at < now() - make_interval(secs => :older_than_seconds::float8)
                           order by old.id limit :limit::integer)
returning dead_letter.id;
