-- name: store_events
-- Events, once for each source and id, numbered in the order given; stored in the order of source and id, so that two who send the
-- same can't deadlock. Row: place, number, and whether it is new; the number is null if another connection is just storing it: asked
-- again it is found. Index: event (source, event_id).
with given as materialized (
    select g.place, g.source, g.event_id, g.type, g.target, g.payload, g.attributes,
           nextval(pg_get_serial_sequence('event', 'id')) as number
      from unnest(:sources::text[], :event_ids::text[], :types::text[], :targets::uuid[], :payloads::text[], :attributes::text[])
           with ordinality as g(source, event_id, type, target, payload, attributes, place)
), stored as (
    insert into event (id, source, event_id, type, target, payload, attributes) overriding system value
    select number, source, event_id, type, target, payload, attributes::jsonb from given order by source, event_id, place
    on conflict (source, event_id) do nothing
    returning id
)
select given.place, coalesce(new.id, known.id) as id, new.id is not null as is_new
  from given
  left join lateral (select stored.id from stored where stored.id = given.number) as new on true
  left join lateral (select event.id from event
                      where event.source = given.source and event.event_id = given.event_id) as known on true
 order by given.place;

-- name: read_interest
-- The sets of attributes that anybody has asked for with these types, and the workflows that they start. Always after the events have
-- been committed: whoever subscribes meanwhile looks back after that, and one of both sees the other. Index: shape's key, starter_type.
select shape.type, shape.attributes, null as namespace, null as workflow, null as wanted, null as form
  from unnest(:types::text[]) as asked(type) join shape on shape.type = asked.type
union all
select starter.type, null, starter.namespace, starter.workflow, starter.wanted, starter.form
  from unnest(:types::text[]) as asked(type) join starter on starter.type = asked.type;

-- name: set_starters
-- What a worker says of the workflows that it offers: which of them events start, and that the others are started by none.
with gone as (
    delete from starter
     where starter.namespace = :namespace::text and starter.workflow = any(:offered::text[])
       and starter.workflow <> all(:workflows::text[])
)
insert into starter (namespace, workflow, type, wanted, form)
select :namespace::text, s.workflow, s.type, s.wanted, s.form
  from unnest(:workflows::text[], :types::text[], :wanteds::text[], :forms::text[]) as s(workflow, type, wanted, form)
 order by s.workflow
on conflict (namespace, workflow) do update
   set type = excluded.type, wanted = excluded.wanted, form = excluded.form
 where (starter.type, starter.wanted, starter.form) is distinct from (excluded.type, excluded.wanted, excluded.form);

-- name: find_waiting
-- The runs that have subscribed to any of these keys. Index: subscription_key: what others wait for costs nothing.
select distinct probe.key, subscription.run_id
  from unnest(:keys::uuid[]) as probe(key)
  join subscription on subscription.key = probe.key;

-- name: subscribe
-- Subscribes runs, as long as the outbox row that asks for it is there: a late copy of it subscribes nobody. The shapes before the
-- look back, which is a statement of its own. Order of locks: outbox rows by key, shapes by key. Row: since when each is asked for,
-- by the database's clock: what the run causes after that comes later.
with asked as materialized (
    select a.run_id, a.number, a.key, a.type, a.attributes
      from unnest(:run_ids::uuid[], :numbers::integer[], :keys::uuid[], :types::text[], :shapes::text[])
           as a(run_id, number, key, type, attributes)
     order by a.run_id, a.number
), there as materialized (
    select asked.run_id, asked.number, asked.key, asked.type, asked.attributes, row.at
      from asked,
           lateral (select outbox.at from outbox where outbox.run_id = asked.run_id and outbox.number = asked.number for key share) as row
), shaped as (
    insert into shape (type, attributes)
    select distinct there.type, there.attributes from there order by there.type, there.attributes
    on conflict do nothing
), made as (
    insert into subscription (run_id, number, key)
    select there.run_id, there.number, there.key from there
    on conflict do nothing
)
select there.run_id, there.number, there.at from there;

-- name: unsubscribe
delete from subscription
 using unnest(:run_ids::uuid[], :numbers::integer[]) as gone(run_id, number)
 where subscription.run_id = gone.run_id and subscription.number = gone.number;

-- name: unsubscribe_all
-- Runs that are done wait for nothing. (One that is retried meanwhile has subscribed anew.)
delete from subscription
 where subscription.run_id = any(:run_ids::uuid[]) and not exists (select from due where due.id = subscription.run_id);

-- name: find_events
-- Kept events that runs ask for and have not had yet, oldest first. Index: event_attributes; the order is computed, so that it is not
-- taken for a reason to read all events by their numbers; and the run is asked for apart: joined, all of them would be read.
select asked.run_id, found.id
  from unnest(:run_ids::uuid[], :matches::text[], :sinces::timestamptz[]) as asked(run_id, match, since),
       lateral (select event.id from event
                 where event.attributes @> asked.match::jsonb and event.target is null
                   and event.at >= coalesce(asked.since, (select run.created_at from run where run.id = asked.run_id))
                   and not exists (select from inbox where inbox.run_id = asked.run_id and inbox.source = 'event:' || event.id)
                 order by event.id + 0
                 limit :limit::integer) as found
 order by asked.run_id, found.id;

-- name: find_events_of_type
-- The same for whoever asks for any event of a type. Index: event_type.
select asked.run_id, found.id
  from unnest(:run_ids::uuid[], :types::text[], :sinces::timestamptz[]) as asked(run_id, type, since),
       lateral (select event.id from event
                 where event.type = asked.type and event.target is null
                   and event.at >= coalesce(asked.since, (select run.created_at from run where run.id = asked.run_id))
                   and not exists (select from inbox where inbox.run_id = asked.run_id and inbox.source = 'event:' || event.id)
                 order by event.at, event.id
                 limit :limit::integer) as found
 order by asked.run_id, found.id;
