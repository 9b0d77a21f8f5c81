"""PostgreSQL's part, in memory: what each statement of store/sql/ does, on dicts of frozen rows. One module a file there."""
