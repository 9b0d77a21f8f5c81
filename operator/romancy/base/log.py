"""structlog, set up once per process: JSON lines on stdout for machines, coloured ones in a terminal.

An event is a fact in the past, its values are fields and never in the text; secrets are no fields.
"""

import logging
import sys
from typing import Any, Final

import structlog

# Without the values of variables, which structlog prints otherwise, in JSON as in a terminal: among them are inputs and secrets.
_TRACES: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure(*, level: str = "INFO", as_json: bool = True) -> None:
    """Set up structlog and route the standard library's logging through it."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    end: list[Any] = (
        [_TRACES, structlog.processors.JSONRenderer(default=str)]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    structlog.configure(
        processors=[*shared, *end],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *end]
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def configure_library() -> None:
    """In somebody's own program that has not set up structlog: warnings and errors, on stderr."""
    if not structlog.is_configured():
        *shown, _console = structlog.get_config()["processors"]
        structlog.configure(
            processors=[
                *shown,
                structlog.dev.ConsoleRenderer(
                    colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
                ),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        )


def get(name: str) -> Any:
    """A logger whose lines carry the name of the module that they come from."""
    # Not bound here: that would fix the configuration at import, before `configure` is called.
    return structlog.get_logger(module=name)
