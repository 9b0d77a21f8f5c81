-- name: read_outboxes
-- What some runs have put into the outbox and nobody has sent, in order. Index: the primary key.
select outbox.run_id, outbox.number, outbox.kind, outbox.payload
  from outbox
 where outbox.run_id = any(:run_ids::uuid[])
 order by outbox.run_id, outbox.number;

-- name: read_left
-- What its writer has not sent in the time that it takes, or never will, of runs that nobody holds: whoever holds a run sends what
-- is its. The table has nothing in it but what is on its way. Index: outbox_left.
select outbox.run_id, outbox.number, outbox.kind, outbox.payload
  from outbox left join due on due.id = outbox.run_id
 where due.worker_id is null
   and (outbox.at < now() - interval '2 seconds' or not exists (select from worker where worker.id = outbox.worker_id))
 order by outbox.at, outbox.run_id, outbox.number
 limit :limit::integer;

-- name: delete_sent
-- What has been carried out.
delete from outbox
 using unnest(:run_ids::uuid[], :numbers::integer[]) as sent(run_id, number)
 where outbox.run_id = sent.run_id and outbox.number = sent.number;
