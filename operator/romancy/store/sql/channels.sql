-- name: fix_modes
-- The modes of channels: of those that are new, the one that is asked for. Row: name and mode; a channel that another connection is
-- just making may be missing: asked again it is there. Index: the primary key.
with made as (
    insert into channel (name, mode)
    select distinct on (c.name) c.name, c.mode
      from unnest(:names::text[], :modes::text[]) as c(name, mode)
     order by c.name
    on conflict (name) do nothing
    returning name, mode
)
select made.name, made.mode from made
union all
select channel.name, channel.mode from channel where channel.name = any(:names::text[]);

-- name: enqueue
-- A message of a competing channel, once for each source and id: nobody's until somebody takes it. Row: whether it is new.
with stored as (
    insert into event (source, event_id, type, payload, attributes)
    values (:source::text, :event_id::text, :type::text, :payload::text, '{}')
    on conflict (source, event_id) do nothing
    returning id
), waits as (
    insert into pending (channel, event_id) select :channel::text, stored.id from stored
    returning event_id
)
select exists (select from waits) as is_new;

-- name: demand
-- Runs want a message, as long as the outbox row that asks for it is there: a late copy wants nothing. Rows that are handed out were
-- deleted from the outbox before or will be: an answer that is there is not asked for again.
insert into demand (channel, run_id, number)
select d.channel, d.run_id, d.number
  from unnest(:channels::text[], :run_ids::uuid[], :numbers::integer[]) as d(channel, run_id, number),
       lateral (select from outbox where outbox.run_id = d.run_id and outbox.number = d.number for key share) as row
 where not exists (select from inbox where inbox.run_id = d.run_id and inbox.kind = 'Answer'
                      and inbox.source like 'answer:' || d.number || ':%')
on conflict do nothing;

-- name: undemand
-- They want it no more. What has been handed out meanwhile comes all the same.
delete from demand
 using unnest(:run_ids::uuid[], :numbers::integer[]) as gone(run_id, number)
 where demand.run_id = gone.run_id and demand.number = gone.number;

-- name: hand_out
-- The oldest messages of a channel to those who have waited longest, each with its run's inbox in one: a message is pending or with
-- somebody. Two who hand out wait for each other at the first message. Who commits a message or a demand hands out after that, so the
-- later of both sees both. A run that is done is passed over: its demands go when its end is carried out, and then this runs again.
-- Order of locks: messages, demands, due rows by id. Row: how many, and what must be woken.
with messages as materialized (
    select pending.event_id from pending
     where pending.channel = :channel::text
     order by pending.event_id limit :limit::integer
       for update
), wanting as materialized (
    select demand.run_id, demand.number, demand.at from demand
     where demand.channel = :channel::text and exists (select from messages)
       and exists (select from due where due.id = demand.run_id)
     order by demand.channel, demand.at, demand.run_id, demand.number limit :limit::integer
       for update of demand
), pairs as materialized (
    select m.event_id, w.run_id, w.number
      from (select event_id, row_number() over (order by event_id) as nth from messages) as m
      join (select run_id, number, row_number() over (order by at, run_id, number) as nth from wanting) as w on w.nth = m.nth
), locked as materialized (
    select runs.run_id, open_run.inbox_version, runs.messages
      from (select pairs.run_id, count(*)::integer as messages from pairs group by pairs.run_id order by pairs.run_id) as runs,
           lateral (select due.inbox_version from due where due.id = runs.run_id for no key update) as open_run
), given as materialized (
    select pairs.event_id, pairs.run_id, pairs.number,
           row_number() over (partition by pairs.run_id order by pairs.event_id)::integer as nth
      from pairs where pairs.run_id in (select locked.run_id from locked)
), changed as (
    update due
       set inbox_version = due.inbox_version + l.messages,
           wake_at = case when due.worker_id is null and due.phase = 'Waiting' then least(due.wake_at, now()) else due.wake_at end
      from locked as l
     where due.id = l.run_id
    returning due.id, due.queue, due.worker_id, due.inbox_version - l.messages as before, due.wake_at <= now() as is_due
), stored as (
    insert into inbox (run_id, number, kind, source, payload, event_id)
    select given.run_id, changed.before + given.nth, 'Answer', 'answer:' || given.number || ':' || given.event_id, '', given.event_id
      from given join changed on changed.id = given.run_id
    returning run_id
), taken as (
    delete from pending using given where pending.channel = :channel::text and pending.event_id = given.event_id
), served as (
    delete from demand using given where demand.run_id = given.run_id and demand.number = given.number
)
select (select count(*) from stored) as handed,
       (select count(pg_notify(:due_channel::text, queue)) from (select distinct queue from changed where is_due) as woken) as queues_notified,
       (select count(pg_notify(:inbox_channel::text || worker_id, replace(id::text, '-', '')))
          from changed where worker_id is not null) as workers_notified;

-- name: give_back
-- Messages that came too late for who took them are pending again; each once, by the outbox row that says so. Row: their channels.
with sent as (
    delete from outbox
     using unnest(:run_ids::uuid[], :numbers::integer[], :event_ids::bigint[]) as g(run_id, number, event_id)
     where outbox.run_id = g.run_id and outbox.number = g.number
    returning g.event_id
), back as (
    insert into pending (channel, event_id)
    select substr(event.type, length('romancy.channel/') + 1), event.id from sent join event on event.id = sent.event_id
    on conflict do nothing
    returning channel
)
select distinct back.channel from back;

-- name: return_untaken
-- Runs that are done, or whose iteration is over, give back what was handed to them up to a number and did not come into their history;
-- each once: it counts as had from then on. Their demands go. (`is not null` would go through all that bring events.) Row: the channels that have something, or somebody, again.
with ended as materialized (
    select e.run_id, e.number from unnest(:run_ids::uuid[], :numbers::integer[]) as e(run_id, number)
), lost as (
    update inbox set is_had = true
      from ended
     where inbox.run_id = ended.run_id and inbox.kind = 'Answer' and num_nulls(inbox.event_id) = 0 and not inbox.is_had
       and split_part(inbox.source, ':', 2)::integer <= ended.number
       and not exists (select from history where history.run_id = ended.run_id and history.inbox = inbox.number)
    returning inbox.event_id
), back as (
    insert into pending (channel, event_id)
    select substr(event.type, length('romancy.channel/') + 1), event.id from lost join event on event.id = lost.event_id
    on conflict do nothing
    returning channel
), gone as (
    delete from demand using ended where demand.run_id = ended.run_id and demand.number <= ended.number
    returning demand.channel
)
select back.channel from back union select gone.channel from gone;

-- name: join_groups
-- Runs become members, as long as the outbox row that says so is there.
insert into member (group_name, run_id)
select j.group_name, j.run_id
  from unnest(:groups::text[], :run_ids::uuid[], :numbers::integer[]) as j(group_name, run_id, number),
       lateral (select from outbox where outbox.run_id = j.run_id and outbox.number = j.number for key share) as row
on conflict do nothing;

-- name: leave_groups
-- Runs leave a group, or all.
delete from member
 using unnest(:groups::text[], :run_ids::uuid[]) as l(group_name, run_id)
 where member.run_id = l.run_id and member.group_name = coalesce(l.group_name, member.group_name);

-- name: read_members
-- The open runs of a group, oldest name first. Index: the primary keys.
select member.run_id from member join due on due.id = member.run_id where member.group_name = :group::text order by member.run_id;
