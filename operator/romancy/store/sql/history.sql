-- name: read_histories
-- All that happened to some runs, in order. For a claimed run always a statement of its own, after the claim: the claim's
-- snapshot may be older than the row that it locked. Index: the primary key.
select run_id, position, kind, at, number, name, digest, payload, inbox
  from history
 where run_id = any(:run_ids::uuid[])
 order by run_id, position;

-- name: read_attempts
-- The failed attempts of some runs, in order. Index: the primary key.
select run_id, number, attempt, failure, failed_at, next_at
  from attempt
 where run_id = any(:run_ids::uuid[])
 order by run_id, number, attempt;
