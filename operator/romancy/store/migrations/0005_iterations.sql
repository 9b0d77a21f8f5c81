-- The former iterations of a run: they are deleted before it is. Nothing but runs that begin anew is in it.
create index run_recurred on run (recurred_into) where recurred_into is not null;
