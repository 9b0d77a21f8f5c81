-- How much work there is now and soon, for whoever adds workers (KEDA): a role with usage on the schema and select on this view
-- needs nothing else. Runs in hands count as well: a scaler that looks at the backlog alone reads 0 from workers that keep up, and
-- takes them away. Of no use to more workers are Blocked runs and those of a workflow that nobody has, so they do not count.
-- Index: due_held, and due_claim, one step a pair of priority and queue; sleeping runs cost nothing, and no queue more than its limit.
create view scale as
with recursive used(priority, queue) as (
    (select due.priority, due.queue from due where due.wake_at is not null order by due.priority, due.queue limit 1)
    union all
    select following.priority, following.queue
      from used,
           lateral (select due.priority, due.queue from due
                     where due.wake_at is not null and (due.priority, due.queue) > (used.priority, used.queue)
                     order by due.priority, due.queue limit 1) as following
), coming as (
    select count(*) filter (where found.wake_at <= now()) as due, count(*) filter (where found.wake_at > now()) as soon
      from used,
           lateral (select due.wake_at from due
                     where due.priority = used.priority and due.queue = used.queue
                       and due.wake_at <= now() + interval '30 seconds' and due.reason <> 'WorkflowNotRegistered'
                     order by due.wake_at limit 10000) as found
), held as (
    -- In an order, so that it goes through the index before the first statistics too.
    select count(*) as held from (select from due where due.worker_id is not null order by due.worker_id limit 10000) as found
)
select coming.due + coming.soon + held.held as runs, coming.due, coming.soon, held.held from coming, held;
