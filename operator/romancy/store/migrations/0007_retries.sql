-- What a failed run must have kept to be retried: null in both of those that ended before.
alter table due add column is_compensated boolean not null default false;  -- something was taken back, in this iteration
alter table run add column claim integer,            -- the last one, written at the end
                add column is_compensated boolean;   -- written at the end
