"""The version of this engine."""

from importlib.metadata import PackageNotFoundError, version


def engine_version() -> str:
    """As it is installed; a checkout that is not has none."""
    try:
        return version("romancy")
    except PackageNotFoundError:
        return "0.dev"
