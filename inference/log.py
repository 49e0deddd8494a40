"""One line per event on stderr, the same for our own events and for libraries' log records.

JSON for machines, aligned text for a terminal. Of requests it knows what lines call them; callers
bind their context with structlog. Local variables never reach a traceback, so payloads stay out of
the log.
"""

import contextlib
import json
import logging
import sys
import threading
import warnings
from typing import BinaryIO, Literal, TypeAlias

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["auto", "json", "console"]

_SERVICE = "loupe"
# What these libraries say below a warning, our own events say better.
_QUIET_LIBRARIES = (
    "PIL",
    "asyncio",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "litestar",
    "transformers",
    "uvicorn",
)

_log = structlog.get_logger()


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
    output = _Output(sys.stderr.buffer)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_rendering(config),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryRecords()]
    root.setLevel(level)
    for library in _QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(max(level, logging.WARNING))
    _route_warnings()


def request_names(request_id: str, traceparent: str) -> dict[str, str]:
    """Name a request in a line of the engine's, so that the web side's lines about it are found.

    traceparent: the W3C name of its span, or empty.
    """
    names = {"request_id": request_id}
    if traceparent:
        names["trace_id"] = traceparent.split("-")[1]
    return names


class _Output:
    """Writes whole lines; a log that nobody can take must not stop the service."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def write(self, line: bytes) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._file.write(line)
            self._file.flush()

    debug = info = warning = error = critical = write


class _LibraryRecords(logging.Handler):
    """Passes the standard library's records on as events of ours, with the library's name."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _log.log(
                min(record.levelno // 10 * 10, logging.CRITICAL),
                record.getMessage(),
                logger=record.name,
                exc_info=record.exc_info,
            )
        except Exception:  # noqa: BLE001 - the standard library's own rule for handlers
            self.handleError(record)


def _rendering(config: LogConfig) -> list[Processor]:
    """List what makes a line of an event; the last returns its bytes."""
    as_json = config.format == "json" or (config.format == "auto" and not sys.stderr.isatty())
    if as_json:
        head = _JsonHead(config.process)
        return [structlog.processors.format_exc_info, head, _render_json]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )

    def render_text(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
        # The service's own name would say nothing on a terminal.
        text = console(logger, method, {"process": config.process, **event})
        return text.encode(errors="backslashreplace") + b"\n"

    return [render_text]


class _JsonHead:
    """Puts what every line has first: when, how severe, what, who."""

    def __init__(self, process: str) -> None:
        self._process = process

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {
            "timestamp": event.pop("timestamp"),
            "level": event.pop("level"),
            "message": event.pop("event"),
            "service": _SERVICE,
            "process": self._process,
            **event,
        }


def _render_json(_: WrappedLogger, __: str, event: EventDict) -> bytes:
    try:
        return msgspec.json.encode(event, enc_hook=repr) + b"\n"
    except (ValueError, TypeError, OverflowError):
        # Lone surrogates, huge integers, odd keys: the line must appear all the same.
        return json.dumps(event, default=repr, skipkeys=True).encode() + b"\n"


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
