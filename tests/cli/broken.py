"""A module with an error."""

1 / 0  # noqa: B018
