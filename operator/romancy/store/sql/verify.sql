-- name: find_breaches
-- What the invariants of docs/architecture.md and the schema promise, asked of a live database: one row a breach, at most :limit
-- of a kind. One statement, so one snapshot: what is on its way is seen whole or not at all. Reads every table once or twice.
-- Row: breach (verify.py says of each what it means and what to do), run or worker, what is there.
with
-- runs: open is to have a row in due, done is to have a phase
run_nowhere as (
    select run.id as run_id, null::bigint as worker_id, 'it has neither a phase nor a row in due' as found
      from run left join due on due.id = run.id
     where run.phase is null and due.id is null limit :limit::integer
), run_open_and_done as (
    select run.id as run_id, null::bigint as worker_id, format('phase %s, and %s in due', run.phase, due.phase) as found
      from run join due on due.id = run.id
     where run.phase is not null limit :limit::integer
), due_of_no_run as (
    select due.id as run_id, null::bigint as worker_id, format('phase %s of workflow %s', due.phase, due.workflow) as found
      from due left join run on run.id = due.id
     where run.id is null limit :limit::integer
), due_unlike_run as (
    select run.id as run_id, null::bigint as worker_id,
           format('workflow %s, priority %s, is_resource %s in run; %s, %s, %s in due', run.workflow, run.priority,
                  run.is_resource, due.workflow, due.priority, due.is_resource) as found
      from run join due on due.id = run.id
     where (run.workflow, run.priority, run.is_resource) <> (due.workflow, due.priority, due.is_resource) limit :limit::integer
), phase_unknown as (
    select run.id as run_id, null::bigint as worker_id, format('phase %s', coalesce(due.phase, run.phase)) as found
      from run left join due on due.id = run.id
     where due.phase not in ('Pending', 'Running', 'Waiting', 'Suspended', 'Compensating', 'Blocked')
        or run.phase not in ('Succeeded', 'Failed', 'Cancelled')
     limit :limit::integer
), end_half_written as (
    select run.id as run_id, null::bigint as worker_id,
           format('phase %s, finished_at %s, output %s, failure %s', coalesce(run.phase, 'none'), coalesce(run.finished_at::text, 'none'),
                  case when run.output is null then 'none' else 'there' end,
                  case when run.failure is null then 'none' else 'there' end) as found
      from run
     where (run.phase is null) <> (run.finished_at is null)
        or (run.output is not null) <> coalesce(run.phase = 'Succeeded', false)
        or run.failure is not null and coalesce(run.phase, 'Succeeded') = 'Succeeded'
     limit :limit::integer
-- claims
), held_by_nobody as (
    select due.id as run_id, due.worker_id, format('phase %s, claim %s', due.phase, due.claim) as found
      from due left join worker on worker.id = due.worker_id
     where due.worker_id is not null and worker.id is null limit :limit::integer
), held_and_due as (
    select due.id as run_id, due.worker_id, format('phase %s, due at %s', due.phase, due.wake_at) as found
      from due
     where due.worker_id is not null and (due.wake_at is not null or due.phase not in ('Running', 'Compensating'))
     limit :limit::integer
), never_due as (
    select due.id as run_id, null::bigint as worker_id, format('phase %s, held by nobody, without a time', due.phase) as found
      from due
     where due.worker_id is null and due.wake_at is null and due.phase in ('Pending', 'Running', 'Compensating')
     limit :limit::integer
), blocked_but_due as (
    select due.id as run_id, due.worker_id, format('due at %s', due.wake_at) as found
      from due
     where due.phase = 'Blocked' and due.wake_at is not null limit :limit::integer
), queue_wrong as (
    select due.id as run_id, null::bigint as worker_id,
           format('queue %s, workflow %s, Python %s, claim %s', due.queue, due.workflow, coalesce(due.python, 'none'), due.claim) as found
      from due
     where due.queue <> due.workflow || coalesce('/' || due.python, '')
        or (due.started_at is null) <> (due.python is null) or due.started_at is not null and due.claim = 0
     limit :limit::integer
), losses_wrong as (
    select due.id as run_id, null::bigint as worker_id, format('%s lost, %s noted', due.lost_count, due.lost_noted) as found
      from due
     where due.lost_noted > due.lost_count or due.lost_noted < 0 limit :limit::integer
-- history; what a late copy of a flush wrote for an iteration that is over is of the past
), told as (
    select history.run_id, history.position, history.kind, history.at, history.number, history.inbox,
           coalesce(run.history_from, 0) as history_from
      from history left join run on run.id = history.run_id
     where history.position > coalesce(run.history_from, 0)
), put_aside as materialized (
    -- What stands no more since the run was retried.
    select distinct history.run_id, nth as position
      from history, generate_series((history.payload::json ->> 'from')::integer, (history.payload::json ->> 'to')::integer) as nth
     where history.kind = 'Retried'
), standing as (
    select told.run_id, told.position, told.kind, told.number, told.inbox
      from told left join put_aside on put_aside.run_id = told.run_id and put_aside.position = told.position
     where put_aside.position is null
), history_gap as (
    select told.run_id, null::bigint as worker_id,
           format('%s entries, positions %s to %s', count(*), min(told.position), max(told.position)) as found
      from told
     group by told.run_id
    having count(*) <> max(told.position) - min(told.history_from) or min(told.position) <> min(told.history_from) + 1
     limit :limit::integer
), history_of_no_run as (
    select history.run_id, null::bigint as worker_id, format('%s entries', count(*)) as found
      from history left join run on run.id = history.run_id
     where run.id is null
     group by history.run_id limit :limit::integer
), history_before_begin as (
    select history.run_id, null::bigint as worker_id, format('%s entries, and no claim has begun it', count(*)) as found
      from told as history join due on due.id = history.run_id
     where due.started_at is null
     group by history.run_id limit :limit::integer
), clock_went_back as (
    select each.run_id, null::bigint as worker_id,
           format('entry %s is of %s, what was before it of %s', each.position, each.at, each.before) as found
      from (select history.run_id, history.position, history.at,
                   lag(history.at, 1, coalesce(due.started_at, run.started_at))
                       over (partition by history.run_id order by history.position) as before
              from told as history
              join run on run.id = history.run_id
              left join due on due.id = history.run_id) as each
     where each.at < each.before limit :limit::integer
), answered_twice as (
    select history.run_id, null::bigint as worker_id,
           format('%s %s has the entries %s', answered.what, history.number,
                  string_agg(history.position::text, ', ' order by history.position)) as found
      from standing as history,
           lateral (select case when history.kind like 'Timer%' then 'timer' when history.kind like 'Child%' then 'child'
                                else 'activity' end as what) as answered
     where history.kind in ('ActivityCompleted', 'ActivityFailed', 'ActivityCancelled', 'TimerFired', 'ChildCompleted',
                            'ChildFailed', 'ChildCancelled')
     group by history.run_id, answered.what, history.number
    having count(*) > 1
     limit :limit::integer
), attempt_gap as (
    select attempt.run_id, null::bigint as worker_id,
           format('activity %s: %s attempts, numbers %s to %s', attempt.number, count(*), min(attempt.attempt), max(attempt.attempt)) as found
      from attempt left join run on run.id = attempt.run_id
     where attempt.number > coalesce((run.numbers::json ->> 'activity')::integer, 0)
     group by attempt.run_id, attempt.number
    having count(*) <> max(attempt.attempt) or min(attempt.attempt) <> 1
     limit :limit::integer
), attempt_of_no_run as (
    select attempt.run_id, null::bigint as worker_id, format('%s attempts', count(*)) as found
      from attempt left join run on run.id = attempt.run_id
     where run.id is null
     group by attempt.run_id limit :limit::integer
-- inbox
), inbox_gap as (
    select inbox.run_id, null::bigint as worker_id,
           format('%s messages, numbers %s to %s, inbox version %s', count(*), min(inbox.number), max(inbox.number),
                  coalesce(max(due.inbox_version)::text, 'none (done)')) as found
      from inbox left join due on due.id = inbox.run_id
     group by inbox.run_id
    having count(*) <> max(inbox.number) or min(inbox.number) <> 1 or max(due.inbox_version) <> max(inbox.number)
     limit :limit::integer
), inbox_lost as (
    select due.id as run_id, null::bigint as worker_id, format('inbox version %s, and no message', due.inbox_version) as found
      from due
     where due.inbox_version <> 0 and not exists (select from inbox where inbox.run_id = due.id) limit :limit::integer
), inbox_of_no_run as (
    select inbox.run_id, null::bigint as worker_id, format('%s messages', count(*)) as found
      from inbox left join run on run.id = inbox.run_id
     where run.id is null
     group by inbox.run_id limit :limit::integer
), mail_twice as (
    -- A former iteration has its history, and the messages are those of the run.
    select coalesce(run.recurred_into, history.run_id) as run_id, null::bigint as worker_id,
           format('message %s is in the entries %s', history.inbox, string_agg(history.position::text, ', ' order by history.position)) as found
      from standing as history
      left join run on run.id = history.run_id and run.recurred_into is not null
      left join inbox on inbox.run_id = coalesce(run.recurred_into, history.run_id) and inbox.number = history.inbox
     where history.inbox is not null
     group by coalesce(run.recurred_into, history.run_id), history.inbox
    having count(*) > 1 or count(inbox.number) = 0
     limit :limit::integer
), cancel_unheard as (
    select due.id as run_id, null::bigint as worker_id,
           format('phase %s until %s, message %s', due.phase, coalesce(due.wake_at::text, 'something comes'), cancel.number) as found
      from due, lateral (select inbox.number from inbox where inbox.run_id = due.id and inbox.kind = 'Cancel'
                            -- a retry overtakes what was asked for before it
                            and not exists (select from inbox as retry where retry.run_id = due.id and retry.kind = 'Retry' and retry.number > inbox.number)
                          limit 1) as cancel
     where due.worker_id is null and due.phase in ('Pending', 'Waiting', 'Suspended')
       -- a suspect that is put off for some seconds has not read it yet
       and coalesce(due.wake_at > now() + interval '1 minute', true)
       -- its next iteration will
       and not exists (select from outbox where outbox.run_id = due.id and outbox.kind = 'Recur')
       and not exists (select from history where history.run_id = due.id and history.kind = 'CancelRequested')
     limit :limit::integer
-- outbox, subscriptions, children
), outbox_of_no_run as (
    select outbox.run_id, null::bigint as worker_id, format('%s of number %s', outbox.kind, outbox.number) as found
      from outbox left join run on run.id = outbox.run_id
     where run.id is null limit :limit::integer
), outbox_stuck as (
    select outbox.run_id, outbox.worker_id, format('%s of number %s lies there since %s', outbox.kind, outbox.number, outbox.at) as found
      from outbox
     where outbox.at < now() - interval '5 minutes' and exists (select from worker) limit :limit::integer
), subscribed_and_done as (
    select subscription.run_id, null::bigint as worker_id, format('subscription %s', subscription.number) as found
      from subscription left join due on due.id = subscription.run_id
     where due.id is null and not exists (select from outbox where outbox.run_id = subscription.run_id and outbox.kind = 'Ended')
     limit :limit::integer
), parent_untold as (
    select child.id as run_id, null::bigint as worker_id, format('it is %s, and run %s has not been told', child.phase, due.id) as found
      from run as child
      join due on due.id = child.parent_id
      join run as parent on parent.id = due.id
     where child.phase is not null and child.parent_number > coalesce((parent.numbers::json ->> 'child')::integer, 0)
       and not exists (select from inbox where inbox.run_id = due.id and inbox.source = 'child:' || child.id)
       and not exists (select from outbox where outbox.run_id = child.id and outbox.kind = 'Ended')
     limit :limit::integer
), child_left as (
    select due.id as run_id, null::bigint as worker_id, format('phase %s, and run %s has ended', due.phase, parent.id) as found
      from due
      join run as child on child.id = due.id
      join run as parent on parent.id = child.parent_id
     where parent.phase is not null and child.parent_close = 'Cancel'
       and not exists (select from inbox where inbox.run_id = due.id and inbox.kind = 'Cancel')
       and not exists (select from outbox where outbox.run_id = parent.id and outbox.kind = 'Ended')
     limit :limit::integer
), message_stuck as (
    select demand.run_id, null::bigint as worker_id,
           format('it wants a message of channel %s since %s, and one is pending', demand.channel, demand.at) as found
      from demand join due on due.id = demand.run_id
     where demand.at < now() - interval '1 minute' and exists (select from pending where pending.channel = demand.channel)
       and exists (select from event join pending on pending.event_id = event.id
                    where pending.channel = demand.channel and event.at < now() - interval '1 minute')
     limit :limit::integer
), message_lost as (
    select null::uuid as run_id, null::bigint as worker_id, format('message %s of channel %s', pending.event_id, pending.channel) as found
      from pending left join event on event.id = pending.event_id
     where event.id is null limit :limit::integer
), value_of_no_run as (
    select value.run_id, null::bigint as worker_id, format('value %s', value.name) as found
      from value left join run on run.id = value.run_id
     where run.id is null limit :limit::integer
-- mirror
), mirror_of_none as (
    select mirror.run_id, null::bigint as worker_id,
           case when run.id is null then 'there is no such run' when not run.is_resource then 'it is no resource'
                else format('its resource is gone since %s', run.resource_gone_at) end as found
      from mirror left join run on run.id = mirror.run_id
     where run.id is null or not run.is_resource or run.resource_gone_at is not null limit :limit::integer
), mirror_missing as (
    select run.id as run_id, null::bigint as worker_id, format('phase %s', due.phase) as found
      from due
      join run on run.id = due.id
      left join mirror on mirror.run_id = due.id
     where run.is_resource and run.resource_gone_at is null and mirror.run_id is null limit :limit::integer
), mirror_wrong as (
    select mirror.run_id, null::bigint as worker_id,
           format('version %s, mirrored %s, owed since %s, final %s, %s', mirror.version, mirror.mirrored,
                  coalesce(mirror.mirror_at::text, 'never'), mirror.is_final, case when run.phase is null then 'open' else 'done' end) as found
      from mirror join run on run.id = mirror.run_id
     where mirror.mirrored > mirror.version or (mirror.mirrored < mirror.version) <> (mirror.mirror_at is not null)
        or mirror.is_final <> (run.phase is not null)
     limit :limit::integer
-- workers
), fence_of_no_worker as (
    select null::uuid as run_id, fence.worker_id, format('%s slots', count(*)) as found
      from fence left join worker on worker.id = fence.worker_id
     where worker.id is null
     group by fence.worker_id limit :limit::integer
), worker_without_fence as (
    select null::uuid as run_id, worker.id as worker_id, format('named %s', worker.name) as found
      from worker
     where not exists (select from fence where fence.worker_id = worker.id) limit :limit::integer
), burial_check_lost as (
    select null::uuid as run_id, null::bigint as worker_id, 'the table is empty' as found
     where not exists (select from burial_check)
), emitter_missing as (
    select emitted.run_id, null::bigint as worker_id, format('%s events', count(*)) as found
      from emitted where not exists (select from emitter where emitter.run_id = emitted.run_id)
     group by emitted.run_id limit :limit::integer
), breaches as (
    select 'RunNowhere' as breach, run_id, worker_id, found from run_nowhere
    union all select 'RunOpenAndDone', run_id, worker_id, found from run_open_and_done
    union all select 'DueOfNoRun', run_id, worker_id, found from due_of_no_run
    union all select 'DueUnlikeRun', run_id, worker_id, found from due_unlike_run
    union all select 'PhaseUnknown', run_id, worker_id, found from phase_unknown
    union all select 'EndHalfWritten', run_id, worker_id, found from end_half_written
    union all select 'HeldByNobody', run_id, worker_id, found from held_by_nobody
    union all select 'HeldAndDue', run_id, worker_id, found from held_and_due
    union all select 'NeverDue', run_id, worker_id, found from never_due
    union all select 'BlockedButDue', run_id, worker_id, found from blocked_but_due
    union all select 'QueueWrong', run_id, worker_id, found from queue_wrong
    union all select 'LossesWrong', run_id, worker_id, found from losses_wrong
    union all select 'HistoryGap', run_id, worker_id, found from history_gap
    union all select 'HistoryOfNoRun', run_id, worker_id, found from history_of_no_run
    union all select 'HistoryBeforeBegin', run_id, worker_id, found from history_before_begin
    union all select 'ClockWentBack', run_id, worker_id, found from clock_went_back
    union all select 'AnsweredTwice', run_id, worker_id, found from answered_twice
    union all select 'AttemptGap', run_id, worker_id, found from attempt_gap
    union all select 'AttemptOfNoRun', run_id, worker_id, found from attempt_of_no_run
    union all select 'InboxGap', run_id, worker_id, found from inbox_gap
    union all select 'InboxLost', run_id, worker_id, found from inbox_lost
    union all select 'InboxOfNoRun', run_id, worker_id, found from inbox_of_no_run
    union all select 'MailTwice', run_id, worker_id, found from mail_twice
    union all select 'CancelUnheard', run_id, worker_id, found from cancel_unheard
    union all select 'OutboxOfNoRun', run_id, worker_id, found from outbox_of_no_run
    union all select 'OutboxStuck', run_id, worker_id, found from outbox_stuck
    union all select 'EmitterMissing', run_id, worker_id, found from emitter_missing
    union all select 'SubscribedAndDone', run_id, worker_id, found from subscribed_and_done
    union all select 'ParentUntold', run_id, worker_id, found from parent_untold
    union all select 'ChildLeft', run_id, worker_id, found from child_left
    union all select 'MessageStuck', run_id, worker_id, found from message_stuck
    union all select 'MessageLost', run_id, worker_id, found from message_lost
    union all select 'ValueOfNoRun', run_id, worker_id, found from value_of_no_run
    union all select 'MirrorOfNone', run_id, worker_id, found from mirror_of_none
    union all select 'MirrorMissing', run_id, worker_id, found from mirror_missing
    union all select 'MirrorWrong', run_id, worker_id, found from mirror_wrong
    union all select 'FenceOfNoWorker', run_id, worker_id, found from fence_of_no_worker
    union all select 'WorkerWithoutFence', run_id, worker_id, found from worker_without_fence
    union all select 'BurialCheckLost', run_id, worker_id, found from burial_check_lost
)
select breaches.breach, breaches.run_id, run.namespace || '/' || run.name as run, breaches.worker_id, breaches.found
  from breaches left join run on run.id = breaches.run_id
 order by breaches.breach, run.created_at, breaches.run_id, breaches.worker_id;

-- name: size_up
-- How much there was to look at.
select (select count(*) from run) as runs, (select count(*) from due) as open, (select count(*) from history) as entries,
       (select count(*) from worker) as workers;
