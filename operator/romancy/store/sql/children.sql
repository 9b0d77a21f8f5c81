-- name: read_parents
-- Who has started some runs. Index: the primary key.
select run.id, run.parent_id, run.parent_number from run where run.id = any(:run_ids::uuid[]);

-- name: read_ended
-- What the parents of these runs are to be told. Index: the primary key (`is not null` would go through all children).
select run.id, run.parent_id, run.parent_number, run.phase, run.reason, run.message, run.output, run.failure
  from run
 where run.id = any(:run_ids::uuid[]) and num_nulls(run.parent_id, run.phase) = 0;

-- name: read_open_children
-- The children of these runs, up to a number, that are to be cancelled with them. Index: run_parent, and the primary key of due.
select run.id, run.parent_id
  from unnest(:run_ids::uuid[], :numbers::integer[]) as ended(run_id, number)
  join run on run.parent_id = ended.run_id and run.parent_number <= ended.number and run.parent_close = 'Cancel'
  join due on due.id = run.id
 order by run.id;
