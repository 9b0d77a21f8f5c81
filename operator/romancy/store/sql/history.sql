-- name: read_histories
-- All that happened to some runs, in order. For a claimed run always a statement of its own, after the claim: the claim's
-- snapshot may be older than the row that it locked. Index: the primary key.
-- What a late copy of a flush wrote for an iteration that is over is of the past.
select history.run_id, history.position, history.kind, history.at, history.number, history.name, history.digest, history.payload,
       history.inbox
  from run
  join history on history.run_id = run.id and history.position > run.history_from
 where run.id = any(:run_ids::uuid[])
 order by history.run_id, history.position;

-- name: read_attempts
-- The failed attempts of some runs, in order. Index: the primary key.
select run_id, number, attempt, failure, failed_at, next_at
  from attempt
 where run_id = any(:run_ids::uuid[])
 order by run_id, number, attempt;
