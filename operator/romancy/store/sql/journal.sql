-- name: flush
-- Everything that one journal connection has to write: all of it, or nothing if its fence row is gone (I2). At most one row a
-- run in the begun (b_) or changed (c_) ones, for a statement sees nothing of its own parts. Sent again it means the same.
-- An act is Keep, Park, Release, Block, Finish, or Progress (entries after losses); a begun run without one is simply held.
-- Order of locks: own fence row; new runs by id; due rows by id; then only what these guard.
-- Row: is_alive; ids begun; how many entries are there as sent, and whose if some are not; runs changed, and which if some were
-- not ours; stays: not parked, there is new mail (I7, compared on the row itself); what must be woken.
with me as materialized (
    select worker_id as id from fence where worker_id = :worker_id::bigint and slot = :slot::smallint for key share
), b as materialized (
    select id, namespace, name, workflow, input, form, priority, timeout_seconds, labels, started_at, python, number,
           act, phase, reason, message, wake_at, output, failure, build_id
      from unnest(:b_ids::uuid[], :b_namespaces::text[], :b_names::text[], :b_workflows::text[], :b_inputs::text[],
                  :b_forms::text[], :b_priorities::smallint[], :b_timeouts::float8[], :b_labels::text[],
                  :b_started_ats::timestamptz[], :b_pythons::text[], :b_numbers::integer[], :b_acts::text[],
                  :b_phases::text[], :b_reasons::text[], :b_messages::text[], :b_wake_ats::timestamptz[],
                  :b_outputs::text[], :b_failures::text[], :b_builds::text[])
           as rows(id, namespace, name, workflow, input, form, priority, timeout_seconds, labels, started_at, python,
                   number, act, phase, reason, message, wake_at, output, failure, build_id)
), began as (
    insert into run (id, namespace, name, workflow, priority, labels, input, timeout_seconds, begun_by, begun_number, created_at,
                     form, python, started_at, phase, reason, message, output, failure, finished_at, claim, is_compensated)
    select b.id, b.namespace, b.name, b.workflow, b.priority, b.labels::jsonb, b.input, b.timeout_seconds, me.id, b.number,
           least(b.started_at, now()), b.form, b.python, b.started_at,
           case when b.act = 'Finish' then b.phase end, case when b.act = 'Finish' then b.reason end,
           case when b.act = 'Finish' then b.message end, case when b.act = 'Finish' then b.output end,
           case when b.act = 'Finish' then b.failure end, case when b.act = 'Finish' then clock_timestamp() end,
           case when b.act = 'Finish' then 1 end, case when b.act = 'Finish' then false end
      from me, b
     order by b.id
    on conflict (id) do nothing  -- never an update: it would lock a foreign run out of order
    returning id
), opened as (
    insert into due (id, queue, workflow, priority, phase, reason, message, worker_id, claim, wake_at, started_at, python, form,
                     blocked_builds)
    select b.id, b.workflow || '/' || b.python, b.workflow, b.priority,
           case b.act when 'Keep' then b.phase when 'Park' then b.phase when 'Block' then 'Blocked' else 'Running' end,
           b.reason, b.message,
           case when b.act in ('Keep', 'Progress', '') then me.id end, 1,
           case b.act when 'Park' then b.wake_at when 'Release' then now() end, b.started_at, b.python, b.form,
           case when b.act = 'Block' then array[b.build_id] else '{}' end
      from me, b
     where (b.id in (select began.id from began)) is true and b.act <> 'Finish'  -- `is true`: hashed, not joined row by row
    returning queue, wake_at <= now() as is_due
), wanted as materialized (
    select id, claim, act, phase, reason, message, seen, wake_at, output, failure, build_id, is_noted, has_entries
      from unnest(:c_ids::uuid[], :c_claims::integer[], :c_acts::text[], :c_phases::text[], :c_reasons::text[],
                  :c_messages::text[], :c_seens::integer[], :c_wake_ats::timestamptz[], :c_outputs::text[], :c_failures::text[],
                  :c_builds::text[], :c_noted::boolean[], :c_entries::boolean[])
           as rows(id, claim, act, phase, reason, message, seen, wake_at, output, failure, build_id, is_noted, has_entries)
     order by id
), locked as materialized (
    -- Row by row in the order of `wanted`, each by its key: as a join it was planned on an empty table to read all runs of
    -- this worker for each of these, 50 ms instead of 1. The claim: a late copy takes nothing from under a new owner.
    select held.id, held.old_phase, held.old_reason, held.old_message,
           w.act, w.phase, w.reason, w.message, w.seen, w.wake_at, w.output, w.failure, w.build_id, w.is_noted, w.has_entries
      from me, wanted as w,
           lateral (select due.id, due.phase as old_phase, due.reason as old_reason, due.message as old_message
                      from due
                     where due.id = w.id and due.worker_id is not distinct from me.id and due.claim = w.claim
                       for no key update) as held
     where (select count(*) from began) >= 0  -- new runs come first
), changed as (
    update due
       set phase = case when l.act = 'Keep' or l.act = 'Park' and due.inbox_version = l.seen then l.phase
                        when l.act = 'Block' then 'Blocked' else due.phase end,
           reason = case when l.act in ('Keep', 'Block') or l.act = 'Park' and due.inbox_version = l.seen then l.reason
                         else due.reason end,
           message = case when l.act in ('Keep', 'Block') or l.act = 'Park' and due.inbox_version = l.seen then l.message
                          else due.message end,
           worker_id = case when l.act in ('Keep', 'Progress') or l.act = 'Park' and due.inbox_version <> l.seen
                            then due.worker_id end,
           wake_at = case when l.act = 'Park' and due.inbox_version = l.seen then l.wake_at when l.act = 'Release' then now() end,
           lost_count = case when l.has_entries then 0 else due.lost_count end,
           lost_noted = case when l.has_entries then 0 when l.is_noted then due.lost_count else due.lost_noted end,
           blocked_builds = case when l.act = 'Block' and l.build_id <> all(due.blocked_builds)
                                 then due.blocked_builds || l.build_id else due.blocked_builds end,
           is_compensated = due.is_compensated or due.phase = 'Compensating'
      from locked as l
     where due.id = l.id and l.act <> 'Finish'
    returning due.id, due.queue, l.act, l.act = 'Park' and due.worker_id is not null as stays,
              due.is_resource and (l.act = 'Release' or (due.phase, due.reason, due.message) <> (l.old_phase, l.old_reason, l.old_message))
              as is_shown
), gone as (
    delete from due using locked as l
     where due.id = l.id and l.act = 'Finish'
    returning due.id, due.started_at, due.python, due.form, due.is_resource, due.claim, due.is_compensated or due.phase = 'Compensating' as is_compensated,
              l.phase, l.reason, l.message, l.output, l.failure
), ended as (
    update run
       set phase = gone.phase, reason = gone.reason, message = gone.message, output = gone.output, failure = gone.failure,
           started_at = gone.started_at, python = gone.python, form = gone.form, finished_at = clock_timestamp(),
           claim = gone.claim, is_compensated = gone.is_compensated,
           resource_due_at = case when run.is_resource then clock_timestamp() + make_interval(secs => run.ttl_seconds) end
      from gone
     where run.id = gone.id
    returning run.id
), shown as materialized (
    -- Not a subquery of the update: where that waits for a row that is being marked as mirrored, PostgreSQL looks at its join once
    -- more for that row alone, and in a `union all` of what other parts return it mostly does not find it: the update is lost.
    select id, false as is_final from changed where is_shown
    union all
    select id, true from gone where is_resource
), owed as (
    update mirror
       set version = mirror.version + 1, mirror_at = coalesce(mirror.mirror_at, now()), is_final = mirror.is_final or shown.is_final
      from shown
     where mirror.run_id = shown.id
    returning mirror.run_id
), appended as (
    insert into history (run_id, position, kind, at, number, name, digest, payload, inbox)
    select e.run_id, e.position, e.kind, e.at, e.number, e.name, e.digest, e.payload, e.inbox
      from me, unnest(:e_run_ids::uuid[], :e_positions::integer[], :e_kinds::text[], :e_ats::timestamptz[], :e_numbers::integer[],
                      :e_names::text[], :e_digests::text[], :e_payloads::text[], :e_inboxes::integer[], :e_begun::boolean[])
               as e(run_id, position, kind, at, number, name, digest, payload, inbox, is_begun)
     where not e.is_begun or e.run_id in (select began.id from began)  -- a begin that is refused leaves no trace
    on conflict (run_id, position) do update set kind = history.kind   -- `do nothing` would not see a first copy on its way
       where (history.kind, history.at, history.number, history.name, history.digest, history.payload, history.inbox)
             is not distinct from
             (excluded.kind, excluded.at, excluded.number, excluded.name, excluded.digest, excluded.payload, excluded.inbox)
    returning run_id, xmax = 0 as is_new
), tried as (
    insert into attempt (run_id, number, attempt, failure, failed_at, next_at)
    select a.run_id, a.number, a.attempt, a.failure, a.failed_at, a.next_at
      from me, unnest(:a_run_ids::uuid[], :a_numbers::integer[], :a_attempts::integer[], :a_failures::text[],
                      :a_failed_ats::timestamptz[], :a_next_ats::timestamptz[], :a_begun::boolean[])
               as a(run_id, number, attempt, failure, failed_at, next_at, is_begun)
     where not a.is_begun or a.run_id in (select began.id from began)
    on conflict (run_id, number, attempt) do nothing
), posted as (
    insert into outbox (run_id, number, kind, payload, worker_id)
    select o.run_id, o.number, o.kind, o.payload, me.id
      from me, unnest(:o_run_ids::uuid[], :o_numbers::integer[], :o_kinds::text[], :o_payloads::text[], :o_begun::boolean[])
               as o(run_id, number, kind, payload, is_begun)
      left join run on run.id = o.run_id
     where (not o.is_begun or o.run_id in (select began.id from began))
       -- A late copy of a flush must not have carried out again what was long ago; a new iteration knows by itself.
       and (o.kind = 'Recur' or o.kind = 'Ended' and (o.is_begun or o.run_id in (select ended.id from ended))
            -- Of a change of phase: it may be there without an entry, and must not be if the run was not parked.
            or o.kind = 'Tell' and o.run_id not in (select changed.id from changed where changed.stays)
            or o.number > coalesce(run.outbox_from, 0) and o.run_id in (select appended.run_id from appended where appended.is_new))
    on conflict (run_id, number) do nothing
)
select exists (select from me) as is_alive,
       array(select id from began) as began,
       (select count(*) from appended) as appended,
       case when (select count(*) from appended) < cardinality(:e_run_ids::uuid[]) then array(select run_id from appended) end
           as appended_of,
       case when (select count(*) from changed) + (select count(*) from ended) < cardinality(:c_ids::uuid[])
            then array(select id from changed union all select id from ended) end as changed_of,
       array(select id from changed where stays) as stays,
       array(select queue from changed where act = 'Release' union select queue from opened where is_due) as woken,
       exists (select from owed) as is_owed;

-- name: flush_entries
-- The same for a flush of entries alone, which is what most are: 0.07 ms less.
with me as materialized (
    select worker_id as id from fence where worker_id = :worker_id::bigint and slot = :slot::smallint for key share
), appended as (
    insert into history (run_id, position, kind, at, number, name, digest, payload, inbox)
    select e.run_id, e.position, e.kind, e.at, e.number, e.name, e.digest, e.payload, e.inbox
      from me, unnest(:e_run_ids::uuid[], :e_positions::integer[], :e_kinds::text[], :e_ats::timestamptz[], :e_numbers::integer[],
                      :e_names::text[], :e_digests::text[], :e_payloads::text[], :e_inboxes::integer[])
               as e(run_id, position, kind, at, number, name, digest, payload, inbox)
    on conflict (run_id, position) do update set kind = history.kind
       where (history.kind, history.at, history.number, history.name, history.digest, history.payload, history.inbox)
             is not distinct from
             (excluded.kind, excluded.at, excluded.number, excluded.name, excluded.digest, excluded.payload, excluded.inbox)
    returning run_id
)
select exists (select from me) as is_alive,
       (select count(*) from appended) as appended,
       case when (select count(*) from appended) < cardinality(:e_run_ids::uuid[]) then array(select run_id from appended) end
           as appended_of;

-- name: flush_begun
-- After a flush that was sent again: which of the runs that it found there were begun by its first copy. A statement of its
-- own, for the copy may have committed after the flush's snapshot.
select run.id
  from unnest(:ids::uuid[], :numbers::integer[]) as b(id, number)
  join run on run.id = b.id
 where run.begun_by = :worker_id::bigint and run.begun_number = b.number;
