-- name: notify
-- Wakes who listens: pairs of channel and payload. The same pair twice in one transaction is heard once.
select count(pg_notify(told.channel, told.payload))
  from unnest(:channels::text[], :payloads::text[]) as told(channel, payload);

-- name: probe
-- A sign of life of a connection that only listens.
select 1;
