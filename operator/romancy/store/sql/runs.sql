-- name: start_runs
-- Inserts runs that nobody holds yet; one that exists stays as it is (I6). In order of id, so that two who start the same
-- ids in another order can't deadlock. A suspended run sleeps until it is resumed; a delayed one until its time.
-- Row: the ids that are new. NOTIFY here, in the transaction that makes them due, and only if one is new.
with wanted as materialized (
    select id, namespace, name, workflow, input, form, priority, timeout_seconds, labels, start_at, is_resource,
           wish_suspend, wish_cancel, deletion_policy, ttl_seconds, parent_id, parent_number, parent_close
      from unnest(:ids::uuid[], :namespaces::text[], :names::text[], :workflows::text[], :inputs::text[], :forms::text[],
                  :priorities::smallint[], :timeouts::float8[], :labels::text[], :start_ats::timestamptz[],
                  :are_resources::boolean[], :suspends::boolean[], :cancels::boolean[], :deletion_policies::text[],
                  :ttls::integer[], :parent_ids::uuid[], :parent_numbers::integer[], :parent_closes::text[])
           as w(id, namespace, name, workflow, input, form, priority, timeout_seconds, labels, start_at, is_resource,
                wish_suspend, wish_cancel, deletion_policy, ttl_seconds, parent_id, parent_number, parent_close)
), started as (
    insert into run (id, namespace, name, workflow, priority, labels, input, timeout_seconds, is_resource,
                     wish_suspend, wish_cancel, deletion_policy, ttl_seconds, parent_id, parent_number, parent_close)
    select id, namespace, name, workflow, priority, labels::jsonb, input, timeout_seconds, is_resource,
           wish_suspend, wish_cancel, deletion_policy, ttl_seconds, parent_id, parent_number, parent_close
      from wanted
     order by id
    on conflict (id) do nothing
    returning id
), opened as (
    insert into due (id, queue, workflow, priority, phase, reason, wake_at, form, is_resource)
    select id, workflow, workflow, priority,
           case when wish_suspend then 'Suspended' else 'Pending' end,
           case when wish_suspend then 'Suspended' when start_at > now() then 'Delayed' else '' end,
           case when not wish_suspend then greatest(start_at, now()) end, form, is_resource
      from wanted
     where (id in (select started.id from started)) is true  -- `is true` keeps the planner from joining row by row
    returning id, workflow
), owed as (
    insert into mirror (run_id, mirror_at)
    select id, now() from wanted where is_resource and (id in (select started.id from started)) is true
    returning run_id
)
select array(select id from opened) as started,
       (select count(pg_notify(:due_channel::text, workflow)) from (select distinct workflow from opened) as queues) as notified,
       (select count(pg_notify(:mirror_channel::text, '')) from (select from owed limit 1) as any_owed) as leader_notified;

-- name: read_runs
-- Runs as people see them, open or done. Index: the primary keys.
select id, namespace, name, workflow, input, form, priority, phase, reason, message, labels, created_at, started_at,
       finished_at, wake_at, worker, python, timeout_seconds, output, failure, is_resource, wish_suspend, wish_cancel,
       deletion_policy, ttl_seconds, numbers, recurred_into, first_input
  from run_shown
 where id = any(:ids::uuid[]);

-- name: find_run
-- The newest run of a name. Planned with its values: a generic plan that was made while the table was empty reads all runs of
-- the namespace, newest first, and is kept. Index: run_name (namespace, name, created_at desc).
select id, namespace, name, workflow, input, form, priority, phase, reason, message, labels, created_at, started_at,
       finished_at, wake_at, worker, python, timeout_seconds, output, failure, is_resource, wish_suspend, wish_cancel,
       deletion_policy, ttl_seconds, numbers, recurred_into, first_input
  from run_shown
 where namespace = :namespace::text and name = :name::text and recurred_into is null
 order by created_at desc, id desc
 limit 1;

-- name: list_any_runs
-- A page of a list that shows open and done runs, newest first. Planned with its values, so that filters not given fold away.
-- What has no index (a part of a name, the input) is looked at run by run in that order, until the page is full or time is up.
-- Index: run_listed_by_namespace, else run_listed; run_labels where few have the labels; run_pkey (ids).
select shown.id, shown.namespace, shown.name, shown.workflow, shown.input, shown.form, shown.priority, shown.phase,
       shown.reason, shown.message, shown.labels, shown.created_at, shown.started_at, shown.finished_at, shown.wake_at,
       shown.worker, shown.python, shown.timeout_seconds, shown.output, shown.failure, shown.is_resource,
       shown.wish_suspend, shown.wish_cancel, shown.deletion_policy, shown.ttl_seconds, shown.numbers, shown.recurred_into,
       shown.first_input
  from (select run.id from run
         where run.recurred_into is null and (:namespace::text is null or run.namespace = :namespace::text)
           and (:workflow::text is null or run.workflow = :workflow::text)
           and (:phases::text[] is null
                or coalesce((select due.phase from due where due.id = run.id), run.phase) = any(:phases::text[]))
           and (:labels::text is null or run.labels <> '{}' and run.labels @> :labels::jsonb)
           and (:name_part::text is null or strpos(run.name, :name_part::text) > 0)
           and (:id_first::uuid is null or run.id between :id_first::uuid and :id_last::uuid)
           and (:created_from::timestamptz is null or run.created_at >= :created_from::timestamptz)
           and (:created_before::timestamptz is null or run.created_at < :created_before::timestamptz)
           and (:input_part::text is null or json_contains(run.input, :input_part::text::jsonb))
           and (:after_at::timestamptz is null or (run.created_at, run.id) < (:after_at::timestamptz, :after_id::uuid))
         order by run.created_at desc, run.id desc
         limit :limit::integer) as found
  join run_shown as shown on shown.id = found.id
 order by shown.created_at desc, shown.id desc
 limit :limit::integer;

-- name: list_open_runs
-- The same for phases of open runs alone: reads `due`, which holds no done runs, however many there are.
select shown.id, shown.namespace, shown.name, shown.workflow, shown.input, shown.form, shown.priority, shown.phase,
       shown.reason, shown.message, shown.labels, shown.created_at, shown.started_at, shown.finished_at, shown.wake_at,
       shown.worker, shown.python, shown.timeout_seconds, shown.output, shown.failure, shown.is_resource,
       shown.wish_suspend, shown.wish_cancel, shown.deletion_policy, shown.ttl_seconds, shown.numbers, shown.recurred_into,
       shown.first_input
  from due as open_run
  join run_shown as shown on shown.id = open_run.id
 where open_run.phase = any(:phases::text[])
   and (:namespace::text is null or shown.namespace = :namespace::text)
   and (:workflow::text is null or open_run.workflow = :workflow::text)
   and (:labels::text is null or shown.labels::jsonb @> :labels::jsonb)
   and (:name_part::text is null or strpos(shown.name, :name_part::text) > 0)
   and (:id_first::uuid is null or open_run.id between :id_first::uuid and :id_last::uuid)
   and (:created_from::timestamptz is null or shown.created_at >= :created_from::timestamptz)
   and (:created_before::timestamptz is null or shown.created_at < :created_before::timestamptz)
   and (:input_part::text is null or json_contains(shown.input, :input_part::text::jsonb))
   and (:after_at::timestamptz is null or (shown.created_at, shown.id) < (:after_at::timestamptz, :after_id::uuid))
 order by shown.created_at desc, shown.id desc
 limit :limit::integer;

-- name: list_done_runs
-- The same for phases of done runs alone. Index: run_done (phase, created_at desc, id desc), one range a phase; where few ended in
-- the time that is asked for, run_finished (phase, finished_at).
select shown.id, shown.namespace, shown.name, shown.workflow, shown.input, shown.form, shown.priority, shown.phase,
       shown.reason, shown.message, shown.labels, shown.created_at, shown.started_at, shown.finished_at, shown.wake_at,
       shown.worker, shown.python, shown.timeout_seconds, shown.output, shown.failure, shown.is_resource,
       shown.wish_suspend, shown.wish_cancel, shown.deletion_policy, shown.ttl_seconds, shown.numbers, shown.recurred_into,
       shown.first_input
  from unnest(:phases::text[]) as wanted(phase),
       lateral (select run.id from run
                 where run.phase = wanted.phase and run.recurred_into is null
                   and (:namespace::text is null or run.namespace = :namespace::text)
                   and (:workflow::text is null or run.workflow = :workflow::text)
                   and (:labels::text is null or run.labels @> :labels::jsonb)
                   and (:name_part::text is null or strpos(run.name, :name_part::text) > 0)
                   and (:id_first::uuid is null or run.id between :id_first::uuid and :id_last::uuid)
                   and (:created_from::timestamptz is null or run.created_at >= :created_from::timestamptz)
                   and (:created_before::timestamptz is null or run.created_at < :created_before::timestamptz)
                   and (:finished_from::timestamptz is null or run.finished_at >= :finished_from::timestamptz)
                   and (:finished_before::timestamptz is null or run.finished_at < :finished_before::timestamptz)
                   and (:input_part::text is null or json_contains(run.input, :input_part::text::jsonb))
                   and (:after_at::timestamptz is null or (run.created_at, run.id) < (:after_at::timestamptz, :after_id::uuid))
                 order by run.created_at desc, run.id desc
                 limit :limit::integer) as found
  join run_shown as shown on shown.id = found.id
 order by shown.created_at desc, shown.id desc
 limit :limit::integer;
