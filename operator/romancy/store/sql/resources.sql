-- name: set_wishes
-- What the owners want. The due rows are locked first, in order: they guard the rows `run`, which a finish changes too.
with wanted as materialized (
    select id, suspend, cancel, deletion_policy, ttl_seconds
      from unnest(:ids::uuid[], :suspends::boolean[], :cancels::boolean[], :deletion_policies::text[], :ttls::integer[])
           as w(id, suspend, cancel, deletion_policy, ttl_seconds)
), guarded as materialized (
    select due.id from wanted join due on due.id = wanted.id order by due.id for no key update of due
)
update run
   set wish_suspend = wanted.suspend,
       wish_cancel = wanted.cancel,
       deletion_policy = wanted.deletion_policy,
       ttl_seconds = wanted.ttl_seconds,
       resource_due_at = run.finished_at + make_interval(secs => wanted.ttl_seconds)
  from wanted
 where run.id = wanted.id and (select count(*) from guarded) >= 0;

-- name: resources
-- Runs whose objects control looks after: open, or with a status or a deletion still owed, and not gone.
-- Index: run_resource (namespace, id) where is_resource and resource_gone_at is null.
select run.id, run.namespace, run.name, coalesce(due.phase, run.phase) as phase, run.wish_suspend, run.wish_cancel,
       run.deletion_policy, run.ttl_seconds
  from run
  left join due on due.id = run.id
 where run.is_resource and run.resource_gone_at is null
   and (:namespaces::text[] is null or run.namespace = any(:namespaces::text[]))
   and (run.phase is null or run.ttl_seconds is not null
        or exists (select from mirror where mirror.run_id = run.id and mirror.mirror_at is not null))
 order by run.namespace, run.id;

-- name: read_resources
-- The same for these ids, whether gone or not. Index: the primary keys.
select run.id, run.namespace, run.name, coalesce(due.phase, run.phase) as phase, run.wish_suspend, run.wish_cancel,
       run.deletion_policy, run.ttl_seconds
  from run
  left join due on due.id = run.id
 where run.id = any(:ids::uuid[]) and run.is_resource;

-- name: resources_gone
-- Their objects are deleted, so nothing is owed to them. The due rows are locked first, in order: they guard the others.
with guarded as materialized (
    select due.id from due where due.id = any(:ids::uuid[]) order by due.id for no key update
), forgiven as (
    delete from mirror where mirror.run_id = any(:ids::uuid[]) and (select count(*) from guarded) >= 0
)
update run
   set resource_gone_at = now()
 where run.id = any(:ids::uuid[])
   and (run.is_resource and run.resource_gone_at is null) is true  -- `is true`: by key, not through all of run_resource
   and (select count(*) from guarded) >= 0;

-- name: expired_resources
-- Done runs whose objects have lived long enough, the longest overdue first; not before their last status was written.
-- Index: run_resource_due (resource_due_at) where resource_due_at is not null and resource_gone_at is null.
select run.id, run.namespace, run.name, run.phase, run.wish_suspend, run.wish_cancel, run.deletion_policy, run.ttl_seconds
  from run
 where run.resource_due_at <= now() and run.resource_gone_at is null
   and not exists (select from mirror where mirror.run_id = run.id and mirror.mirror_at is not null)
 order by run.resource_due_at
 limit :limit::integer;

-- name: stranded_queues
-- Queues with runs that are due and that no live worker offers, and whether any run has been told so.
-- Row: at least one; queue is null if there is none. Index: due_claim, one step for each pair of priority and queue; due_stranded.
with recursive used(priority, queue) as (
    (select due.priority, due.queue from due where due.wake_at is not null order by due.priority, due.queue limit 1)
    union all
    select following.priority, following.queue
      from used,
           lateral (select due.priority, due.queue from due
                     where due.wake_at is not null and (due.priority, due.queue) > (used.priority, used.queue)
                     order by due.priority, due.queue limit 1) as following
)
select found.priority, found.queue, found.workflow, found.python,
       exists (select from due where due.reason = 'WorkflowNotRegistered') as has_told
  from (values (1)) as always
  left join (select used.priority, used.queue, stranded.workflow, stranded.python
               from used,
                    lateral (select due.workflow, due.python from due
                              where due.priority = used.priority and due.queue = used.queue and due.wake_at <= now()
                              order by due.wake_at limit 1) as stranded
              where not exists (select from worker, unnest(worker.workflows) as w(workflow)
                                 where worker.expires_at >= now()
                                   and used.queue in (w.workflow, w.workflow || '/' || worker.python))) as found on true;

-- name: offers
-- What live workers have, with the Python minors that they run on. A draining one counts until it is gone, or each roll-out
-- would make runs look stranded for a moment.
select w.workflow, array_agg(distinct worker.python) as pythons
  from worker, unnest(worker.workflows) as w(workflow)
 where worker.expires_at >= now()
 group by w.workflow
 order by w.workflow;

-- name: strand
-- Says of the due runs of one queue why they do not move, a part at a time, from :since on. Rows that others hold are skipped,
-- and found by the next look: they need no order then. Row: how many, the last one's wake_at, the time of the question.
-- Index: due_claim.
with stranded as materialized (
    select due.id, due.wake_at
      from due
     where due.priority = :priority::smallint and due.queue = :queue::text
       and due.wake_at >= :since::timestamptz and due.wake_at <= now()
       and (due.reason, due.message) is distinct from ('WorkflowNotRegistered', :message::text)
     order by due.wake_at
     limit :limit::integer
       for no key update skip locked
), said as (
    update due
       set reason = 'WorkflowNotRegistered', message = :message::text
      from stranded
     where due.id = stranded.id
    returning due.id, due.is_resource
), owed as (
    update mirror
       set version = mirror.version + 1, mirror_at = coalesce(mirror.mirror_at, now())
      from said
     where mirror.run_id = said.id and said.is_resource
    returning mirror.run_id
)
select (select count(*) from said)::integer as changed, (select max(wake_at) from stranded) as last_at, now() as asked_at,
       (select count(pg_notify(:mirror_channel::text, '')) from (select from owed limit 1) as any_owed) as leader_notified;

-- name: unstrand
-- Takes that back of runs whose queue is offered again, a part at a time; :queues are those that are not. Row: how many.
-- Index: due_stranded (queue), one step a queue.
with recursive told(queue) as (
    (select due.queue from due where due.reason = 'WorkflowNotRegistered' order by due.queue limit 1)
    union all
    select (select due.queue from due where due.reason = 'WorkflowNotRegistered' and due.queue > told.queue
             order by due.queue limit 1)
      from told where told.queue is not null
), offered as materialized (
    select found.id
      from told,
           lateral (select due.id from due
                     where due.reason = 'WorkflowNotRegistered' and due.queue = told.queue and told.queue <> all(:queues::text[])
                     limit :limit::integer
                       for no key update skip locked) as found
     limit :limit::integer
), said as (
    update due set reason = '', message = '' from offered where due.id = offered.id
    returning due.id, due.is_resource
), owed as (
    update mirror
       set version = mirror.version + 1, mirror_at = coalesce(mirror.mirror_at, now())
      from said
     where mirror.run_id = said.id and said.is_resource
    returning mirror.run_id
)
select (select count(*) from said)::integer as changed,
       (select count(pg_notify(:mirror_channel::text, '')) from (select from owed limit 1) as any_owed) as leader_notified;

-- name: backlog
-- The counts of the health view: reads `due` once, so open runs alone.
select count(*) filter (where wake_at <= now())::integer as due,
       count(worker_id)::integer as held,
       count(*)::integer as open,
       count(*) filter (where phase = 'Blocked')::integer as blocked,
       coalesce(extract(epoch from now() - min(wake_at) filter (where wake_at <= now())), 0)::float8 as oldest_due_seconds,
       (select count(*) from (select from emitted limit 100001) as counted)::integer as emitted,
       (select count(*) from (select from dead_letter limit 100001) as counted)::integer as dead_letters
  from due;
