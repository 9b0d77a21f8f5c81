-- name: may_purge
-- Whether it is time to look for runs that are kept no longer: true to one of all who ask, once in so many seconds.
insert into purge_check (checked_at) values (now())
    on conflict (is_only) do update set checked_at = now()
       where purge_check.checked_at < now() - make_interval(secs => :every_seconds::float8)
returning true as may_purge;

-- name: purge_runs
-- Deletes some runs that ended long enough ago, the oldest first, with all that is theirs: at most :runs_max, and no further one
-- once these have :rows_max rows. Ended runs have no due row, and nothing is written to them any more; one whose resource is there
-- stays, and so does one that somebody has locked. (No mirror row: it goes with the resource.) Whoever starts a run of the
-- same id meanwhile waits for the deleted row, and what he writes then is not seen by this statement.
-- A run with former iterations waits for `purge_former`; these are purged here by their own age only while it goes on, for their
-- messages are those of the run.
-- Row: how many, and when the last of them ended: where to look on. Index: run_finished (phase, finished_at), the primary keys.
with old as materialized (
    select run.id, run.finished_at
      from run
     where run.phase = :phase::text
       and run.finished_at < now() - make_interval(secs => :older_than_seconds::float8)
       and run.finished_at >= coalesce(:since::timestamptz, '-infinity')
       and (:namespace::text is null or run.namespace = :namespace::text)
       and (:workflow::text is null or run.workflow = :workflow::text)
       and (not run.is_resource or run.resource_gone_at is not null)
       and (run.recurred_into is null or exists (select from due where due.id = run.recurred_into))
       and not exists (select from run as former where former.recurred_into = run.id)
     order by run.finished_at
     limit :runs_max::integer
       for update skip locked
), sized as materialized (
    select old.id,
           sum(has.amount) over (order by old.finished_at, old.id rows unbounded preceding) - has.amount as amount_before
      from old,
           lateral (select coalesce((select max(history.position) from history where history.run_id = old.id), 0)
                           + coalesce((select max(inbox.number) from inbox where inbox.run_id = old.id), 0) as amount) as has
), purged as (
    delete from run using sized
     where run.id = sized.id and sized.amount_before < :rows_max::integer
       and not exists (select from outbox where outbox.run_id = sized.id)  -- its end is not carried out yet
    returning run.id, run.finished_at
), entries as (
    delete from history using purged where history.run_id = purged.id
), attempts as (
    delete from attempt using purged where attempt.run_id = purged.id
), mail as (
    delete from inbox using purged where inbox.run_id = purged.id
), shown as (
    delete from value using purged where value.run_id = purged.id
), membership as (
    delete from member using purged where member.run_id = purged.id
)
select count(*)::integer as runs, max(finished_at) as last_at from purged;

-- name: purge_former
-- Deletes some former iterations of runs that `purge_runs` deletes when they have none left. Row: how many.
-- Index: run_finished (phase, finished_at), run_recurred (recurred_into), the primary keys.
with old as materialized (
    select run.id, run.finished_at
      from run
     where run.phase = :phase::text
       and run.finished_at < now() - make_interval(secs => :older_than_seconds::float8)
       and (:namespace::text is null or run.namespace = :namespace::text)
       and (:workflow::text is null or run.workflow = :workflow::text)
       and (not run.is_resource or run.resource_gone_at is not null)
       and run.recurred_into is null and exists (select from run as former where former.recurred_into = run.id)
     order by run.finished_at
     limit :runs_max::integer
), former as materialized (
    select earlier.id
      from old,
           lateral (select run.id from run where run.recurred_into = old.id limit :runs_max::integer for update skip locked) as earlier
     limit :runs_max::integer
), sized as materialized (
    select former.id, sum(has.amount) over (order by former.id rows unbounded preceding) - has.amount as amount_before
      from former,
           lateral (select coalesce((select max(history.position) from history where history.run_id = former.id), 0) as amount) as has
), purged as (
    delete from run using sized where run.id = sized.id and sized.amount_before < :rows_max::integer
    returning run.id
), entries as (
    delete from history using purged where history.run_id = purged.id
)
select count(*)::integer as runs from purged;

-- name: purge_events
-- Deletes some events that came long enough ago, the oldest first. One that waits in a channel, or in the inbox of an open run, stays: it
-- is still to be received. Row: how many, and the last that was looked at; null if none is that old.
-- Index: the primary key: numbers grow with time; inbox_event, pending_event.
with old as materialized (
    select event.id
      from event
     where event.id > :after::bigint and event.at < now() - make_interval(secs => :older_than_seconds::float8)
     order by event.id
     limit :limit::integer
), gone as (
    delete from event using old
     where event.id = old.id
       and not exists (select from pending where pending.event_id = old.id)
       and not exists (select from inbox join due on due.id = inbox.run_id where inbox.event_id = old.id)
    returning event.id
)
select (select count(*) from gone)::integer as events, (select max(old.id) from old) as last;

-- name: count_purgeable
-- How many runs `purge_runs` would delete now, batch after batch, and former iterations of runs that go on. Index: run_finished.
select count(*)::integer as runs
  from run
 where run.phase = :phase::text
   and run.finished_at < now() - make_interval(secs => :older_than_seconds::float8)
   and (:namespace::text is null or run.namespace = :namespace::text)
   and (:workflow::text is null or run.workflow = :workflow::text)
   and (not run.is_resource or run.resource_gone_at is not null)
   and (run.recurred_into is null or exists (select from due where due.id = run.recurred_into));
