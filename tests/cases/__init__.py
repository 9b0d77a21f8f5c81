"""The black-box cases of such an engine, each a test on PostgreSQL; those about logic also with a crash at every save."""
