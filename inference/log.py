"""One line per event on stderr, the same for our own events and for libraries' log records.

JSON for machines, aligned text for a terminal. It knows nothing of requests: callers bind their
context with structlog. Local variables never reach a traceback, so payloads stay out of the log.
"""

import json
import logging
import sys
import warnings
from typing import Literal, TypeAlias

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["auto", "json", "console"]

_SERVICE = "loupe"
# What these libraries say below a warning, our own events say better.
_QUIET_LIBRARIES = ("uvicorn", "httpx", "httpcore", "PIL", "asyncio", "transformers", "litestar")


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one process logs.

    level: least severe event to show. format: `auto` is `console` on a terminal, else `json`.
    process: the process's name in every line, such as `worker 0`.
    """

    level: LogLevel = "info"
    format: LogFormat = "auto"
    process: str


def configure_logging(config: LogConfig) -> None:
    """Send every event of this process, structlog's and the standard library's, to stderr."""
    level = logging.getLevelNamesMapping()[config.level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(config))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for library in _QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(max(level, logging.WARNING))
    _route_warnings()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
    ]


def _formatter(config: LogConfig) -> logging.Formatter:
    as_json = config.format == "json" or (config.format == "auto" and not sys.stderr.isatty())
    rendering: list[Processor]
    if as_json:
        rendering = [
            structlog.processors.format_exc_info,
            _render_json,
        ]
    else:
        rendering = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared_processors(), _name_the_library],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _NameTheProcess(config.process, full=as_json),
            *rendering,
        ],
    )


class _NameTheProcess:
    """Adds who speaks; on a terminal the service's own name would say nothing."""

    def __init__(self, process: str, *, full: bool) -> None:
        self._names = {"service": _SERVICE, "process": process} if full else {"process": process}

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        head = {key: event.pop(key) for key in ("timestamp", "level", "event")}
        return {**head, **self._names, **event}


def _name_the_library(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    record: logging.LogRecord = event["_record"]
    event["logger"] = record.name
    return event


def _render_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    event = {"message" if key == "event" else key: value for key, value in event.items()}
    try:
        return msgspec.json.encode(event, enc_hook=repr).decode()
    except UnicodeEncodeError:  # a lone surrogate is no UTF-8; the line must appear all the same
        return json.dumps(event, default=repr)


def _route_warnings() -> None:
    def log_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        logging.getLogger("py.warnings").warning(
            "%s: %s (%s:%d)", category.__name__, message, filename, lineno
        )

    warnings.showwarning = log_warning
