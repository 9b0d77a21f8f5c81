-- name: hold_run
-- An activity has done its work in its own transaction: whether this worker is not fenced (I2) and still holds the run. From here to
-- the end of the transaction nobody can bury it, and so nobody can take the run. Row: is_alive, is_held. Index: the primary keys.
with me as materialized (
    select worker_id as id from fence where worker_id = :worker_id::bigint and slot = :slot::smallint for key share
)
select exists (select from me) as is_alive,
       exists (select from me,  -- `is not distinct from`: found by its key, not among all that this worker holds
                           lateral (select due.id from due
                                     where due.id = :run_id::uuid and due.worker_id is not distinct from me.id
                                       and due.claim = :claim::integer) as held) as is_held;

-- name: checkpoint
-- The last statement of that transaction: that the activity has ended, what the code has asked for since, and what the activity
-- publishes. The positions are free: all earlier entries are durable, and later ones wait for the commit.
-- Order of locks: what the activity has locked; own fence row; the due row. Row: is_held. Index: the primary keys.
with me as materialized (
    select worker_id as id from fence where worker_id = :worker_id::bigint and slot = :slot::smallint for key share
), held as materialized (
    select here.id, here.lost_count
      from me,
           lateral (select due.id, due.lost_count from due
                     where due.id = :run_id::uuid and due.worker_id is not distinct from me.id
                       and due.claim = :claim::integer) as here
), counted as (
    update due set lost_count = 0, lost_noted = 0 from held where due.id = held.id and held.lost_count > 0
), appended as (
    insert into history (run_id, position, kind, at, number, name, digest, payload)
    select held.id, e.position, e.kind, e.at, e.number, e.name, e.digest, e.payload
      from held, unnest(:e_positions::integer[], :e_kinds::text[], :e_ats::timestamptz[], :e_numbers::integer[], :e_names::text[],
                        :e_digests::text[], :e_payloads::text[])
                 as e(position, kind, at, number, name, digest, payload)
), posted as (
    insert into outbox (run_id, number, kind, payload, worker_id)
    select held.id, o.number, o.kind, o.payload, me.id
      from me, held, unnest(:o_numbers::integer[], :o_kinds::text[], :o_payloads::text[]) as o(number, kind, payload)
    on conflict (run_id, number) do nothing
)
select exists (select from held) as is_held;
