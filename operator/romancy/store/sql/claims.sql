-- name: claim_runs
-- Makes this worker the one owner of due runs, best priority first, if it is not fenced (I2). The priorities in use are found
-- by a loose scan of the index, one step each; :turn rotates the workflows, so that none of equal priority is always last.
-- The first claim begins the run: its clock, its Python minor (from here on a part of its queue) and the form of its input.
-- History and inbox are read by the next statement: this one's snapshot may be older than the rows that it locks.
-- Row: at least one; is_alive is false for a fenced worker, id is null if nothing was due.
-- Index: due_claim (priority, queue, wake_at) where wake_at is not null: sleeping runs and other queues cost nothing.
with recursive me as materialized (
    select fence.worker_id as id, worker.workflows, worker.forms, worker.build_id, worker.python
      from fence join worker on worker.id = fence.worker_id
     where fence.worker_id = :worker_id::bigint and fence.slot = :slot::smallint
       for key share of fence
), used(priority) as (
    (select due.priority from due where due.wake_at is not null order by due.priority desc limit 1)
    union all
    select (select due.priority from due where due.wake_at is not null and due.priority < used.priority
             order by due.priority desc limit 1)
      from used where used.priority is not null
), look as materialized (
    select used.priority, offered.queue
      from me, used, unnest(me.workflows) with ordinality as w(workflow, nth),
           lateral (values (w.workflow || '/' || me.python), (w.workflow)) as offered(queue)
     where used.priority is not null
     order by used.priority desc, (w.nth + :turn::integer) % cardinality(me.workflows), offered.queue
), ready as materialized (
    select found.id, found.phase
      from me, look,
           lateral (select due.id, due.phase from due
                     where due.priority = look.priority and due.queue = look.queue and due.wake_at <= now()
                       and me.id is not null and me.build_id <> all(due.blocked_builds)
                     order by due.wake_at
                     limit :limit::integer
                       for no key update of due skip locked) as found
     limit :limit::integer
), taken as (
    update due
       set phase = case when due.phase = 'Compensating' then due.phase else 'Running' end,
           reason = case when due.phase = 'Compensating' then due.reason else '' end,
           message = case when due.phase = 'Compensating' then due.message else '' end,
           worker_id = me.id,
           claim = due.claim + 1,
           wake_at = null,
           queue = due.workflow || '/' || coalesce(due.python, me.python),
           python = coalesce(due.python, me.python),
           started_at = coalesce(due.started_at, clock_timestamp()),
           form = coalesce(due.form, me.forms[array_position(me.workflows, due.workflow)])
      from me, ready
     where due.id = ready.id
    returning due.id, due.claim, due.workflow, due.inbox_version, due.phase, due.lost_count, due.lost_noted,
              due.is_resource and due.phase <> ready.phase as is_shown, ready.phase = 'Suspended' as was_suspended
), owed as (
    update mirror
       set version = mirror.version + 1, mirror_at = coalesce(mirror.mirror_at, now())
      from taken
     where mirror.run_id = taken.id and taken.is_shown
    returning mirror.run_id
)
select exists (select from me) as is_alive, exists (select from owed) as is_owed, taken.id, taken.claim, taken.workflow,
       taken.inbox_version, taken.phase, taken.lost_count, taken.lost_noted, taken.was_suspended
  from (values (1)) as always left join taken on true;

-- name: claim_blocked
-- The same for Blocked runs that this worker's build has not been tried on. Few, and far from urgent: oldest run id first.
-- Index: due_blocked (queue) where phase = 'Blocked'.
with me as materialized (
    select fence.worker_id as id, worker.workflows, worker.forms, worker.build_id, worker.python
      from fence join worker on worker.id = fence.worker_id
     where fence.worker_id = :worker_id::bigint and fence.slot = :slot::smallint
       for key share of fence
), look as materialized (
    select offered.queue
      from me, unnest(me.workflows) as w(workflow),
           lateral (values (w.workflow || '/' || me.python), (w.workflow)) as offered(queue)
), ready as materialized (
    select found.id
      from me, look,
           lateral (select due.id from due
                     where due.phase = 'Blocked' and due.queue = look.queue and due.worker_id is null
                       and me.id is not null and me.build_id <> all(due.blocked_builds)
                     order by due.id
                     limit :limit::integer
                       for no key update of due skip locked) as found
     limit :limit::integer
), taken as (
    update due
       set phase = 'Running',
           reason = '',
           message = '',
           worker_id = me.id,
           claim = due.claim + 1,
           wake_at = null,
           queue = due.workflow || '/' || coalesce(due.python, me.python),
           python = coalesce(due.python, me.python),
           started_at = coalesce(due.started_at, clock_timestamp()),
           form = coalesce(due.form, me.forms[array_position(me.workflows, due.workflow)])
      from me, ready
     where due.id = ready.id
    returning due.id, due.claim, due.workflow, due.inbox_version, due.phase, due.lost_count, due.lost_noted, due.is_resource
), owed as (
    update mirror
       set version = mirror.version + 1, mirror_at = coalesce(mirror.mirror_at, now())
      from taken
     where mirror.run_id = taken.id and taken.is_resource
    returning mirror.run_id
)
select exists (select from me) as is_alive, exists (select from owed) as is_owed, taken.id, taken.claim, taken.workflow,
       taken.inbox_version, taken.phase, taken.lost_count, taken.lost_noted
  from (values (1)) as always left join taken on true;

-- name: read_begun
-- What claimed runs were started with, and what their first claim wrote. No row: the run is at its end (a zombie asks).
select run.id, run.namespace, run.name, run.workflow, run.input, due.form, run.labels::text as labels, due.started_at,
       run.timeout_seconds, exists (select from outbox where outbox.run_id = run.id) as has_outbox,
       run.parent_id is not null as is_child, run.numbers, run.history_from
  from due join run on run.id = due.id
 where due.id = any(:run_ids::uuid[]);

-- name: poll
-- All that the slow poll wants to know: the clock, when the next run is due that this worker could claim, whether it could
-- claim a blocked one, whether something lies in the outbox for too long, when an emitted event is due, and the runs that are its own by the row but not in its hands (the answer of their claim was lost).
-- Row: at least one; id is null if it has all its runs in its hands.
-- Index: due_held, due_blocked, emitter_due, emitter_failing, and due_claim, one step a pair of priority and queue.
with recursive used(priority) as (
    (select due.priority from due where due.wake_at is not null order by due.priority desc limit 1)
    union all
    select (select due.priority from due where due.wake_at is not null and due.priority < used.priority
             order by due.priority desc limit 1)
      from used where used.priority is not null
), offered as materialized (
    select offered.queue, worker.build_id
      from worker, unnest(worker.workflows) as w(workflow),
           lateral (values (w.workflow || '/' || worker.python), (w.workflow)) as offered(queue)
     where worker.id = :worker_id::bigint
), coming as materialized (
    select min(found.wake_at) as due_at
      from used, offered,
           lateral (select due.wake_at from due
                     where due.priority = used.priority and due.queue = offered.queue and due.wake_at is not null
                       and offered.build_id <> all(due.blocked_builds)
                     order by due.wake_at limit 1) as found
     where used.priority is not null
), unseen as (
    select due.id, due.claim, due.workflow, due.inbox_version, due.phase, due.lost_count, due.lost_noted
      from due
     where due.worker_id = :worker_id::bigint
       and (due.id, due.claim) not in (select hand.id, hand.claim
                                         from unnest(:run_ids::uuid[], :claims::integer[]) as hand(id, claim))
)
select clock_timestamp() as now, coming.due_at,
       exists (select from offered, lateral (select from due
                where due.phase = 'Blocked' and due.queue = offered.queue and due.worker_id is null
                  and offered.build_id <> all(due.blocked_builds) limit 1) as found) as has_blocked,
       exists (select from outbox left join due on due.id = outbox.run_id
                where due.worker_id is null
                  and (outbox.at < now() - interval '2 seconds'
                       or not exists (select from worker where worker.id = outbox.worker_id))) as has_left,
       least((select emitter.due_at from emitter where emitter.attempts = 0 order by emitter.due_at limit 1),
             (select emitter.due_at from emitter where emitter.attempts > 0 order by emitter.due_at limit 1)) as emitted_due_at,
       unseen.id, unseen.claim, unseen.workflow, unseen.inbox_version, unseen.phase, unseen.lost_count, unseen.lost_noted
  from coming left join unseen on true;

-- name: next_due_at
-- When the next run is due that this worker could claim. Index: due_claim, one step a pair of priority and queue.
with recursive used(priority) as (
    (select due.priority from due where due.wake_at is not null order by due.priority desc limit 1)
    union all
    select (select due.priority from due where due.wake_at is not null and due.priority < used.priority
             order by due.priority desc limit 1)
      from used where used.priority is not null
)
select min(found.wake_at) as next_due_at
  from worker, used, unnest(worker.workflows) as w(workflow),
       lateral (values (w.workflow || '/' || worker.python), (w.workflow)) as offered(queue),
       lateral (select due.wake_at from due
                 where due.priority = used.priority and due.queue = offered.queue and due.wake_at is not null
                   and worker.build_id <> all(due.blocked_builds)
                 order by due.wake_at limit 1) as found
 where worker.id = :worker_id::bigint and used.priority is not null;
