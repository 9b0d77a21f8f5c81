"""PostgresStore keeps what every Store promises."""

from tests.store.conformance import StoreConformance

ON_EVERY_POSTGRES = True


class TestPostgresStore(StoreConformance):
    pass
