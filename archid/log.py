"""The daemon's log: one line an outcome, with fields, to standard error.

JSON lines by default, which journald keeps and programs read; a readable form on a terminal or by
``[log] format = "console"``. Secrets are taken out here, in one place, by the name of the field
and by what the text looks like, whoever logs it. What a user of a command sees is not a log; that
is `archid.cli`'s business.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, TextIO

from archid.config import LogSettings
from archid.lean_structlog import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

REDACTED: Final = "[redacted]"
_SECRET_WORDS: Final = frozenset(
    {"secret", "token", "passphrase", "password", "private_key", "authorization", "cookie"}
)
_SECRET_TEXT: Final = re.compile(
    r"(?i:archid-join-)[A-Za-z0-9_=-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^/@\s:]*:[^/@\s]*(?=@)"
    r"|(?<=[?&]password=)[^&\s]+",
    re.DOTALL,
)
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_MAX_DEPTH: Final = 8
_MAX_TEXT: Final = 16_384  # an exception's chain can be long; a line has to stay readable


def get_logger(name: str) -> FilteringBoundLogger:
    """The logger of a module; `name` becomes the field ``module``."""
    logger: FilteringBoundLogger = structlog.get_logger(module=name)
    return logger


class SparingLog:
    """For what strangers can cause as often as they like: so many lines a minute of each event.

    What was left out is counted, and said in the field ``left_out`` of the next line of that
    event. Each module makes its own.
    """

    def __init__(
        self,
        logger: FilteringBoundLogger,
        *,
        lines: int = 60,
        period_s: float = 60.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._lines = lines
        self._period_s = period_s
        self._now = now
        self._periods: dict[str, tuple[float, int]] = {}
        """For each event, when its period began and how often it happened since."""

    def info(self, event: str, **fields: object) -> None:
        """Log an outcome, or count it."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log something odd, or count it."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log a failure, or count it."""
        self._log(logging.ERROR, event, fields)

    def _log(self, level: int, event: str, fields: dict[str, object]) -> None:
        now = self._now()
        began, count = self._periods.get(event, (now, 0))
        if now - began >= self._period_s:
            if count > self._lines:
                fields["left_out"] = count - self._lines
            began, count = now, 0
        self._periods[event] = began, count + 1
        if count < self._lines:
            self._logger.log(level, event, **fields)


def configure(settings: LogSettings, *, stream: TextIO | None = None) -> None:
    """Send every log line of this process, other libraries' included, to `stream` (stderr).

    May be called again while the process runs: loggers that are in use follow.
    """
    stream = sys.stderr if stream is None else stream
    console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    level = getattr(logging, settings.level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        shared += [_exception_as_text(with_trace=level <= logging.DEBUG), redact]
        colors = stream.isatty() and not os.environ.get("NO_COLOR")
        renderer: Processor = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        )
    else:
        # local variables stay out: they are where keys and secrets live
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared += [structlog.processors.ExceptionRenderer(transformer), redact, _reading_order]
        renderer = structlog.processors.JSONRenderer(sort_keys=False)
    _in_effect.set(level, [*shared, renderer])
    structlog.configure(
        processors=[_in_effect],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _ToStructlog):
            root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    root.setLevel(max(level, logging.WARNING))  # what libraries say below that is their own affair
    logging.captureWarnings(True)


class _Settings:
    """A processor that does what the newest settings say.

    Loggers keep the processors that they were first used with; this one they share.
    """

    def __init__(self) -> None:
        self._level = logging.INFO
        self._processors: Sequence[Processor] = ()

    def set(self, level: int, processors: Sequence[Processor]) -> None:
        self._level, self._processors = level, tuple(processors)

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> Any:
        if _LEVELS.get(method, logging.ERROR) < self._level:
            raise structlog.DropEvent
        line: Any = event
        for processor in self._processors:
            line = processor(logger, method, line)
        return line


_in_effect: Final = _Settings()


class _ToStructlog(logging.Handler):
    """Hands what libraries log over to structlog, so that there is one kind of line."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(module=record.name)
        logger.log(record.levelno, "library", message=record.getMessage(), exc_info=record.exc_info)


def _exception_as_text(*, with_trace: bool) -> Processor:
    """On a console an exception is its last line; the whole trace is for the level debug."""
    if with_trace:
        return structlog.processors.format_exc_info

    def render(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        del logger, method
        info = event.pop("exc_info", None)
        if info is True:
            info = sys.exc_info()
        error = info[1] if isinstance(info, tuple) else info
        if isinstance(error, BaseException):
            event["error"] = f"{type(error).__name__}: {error}"
        return event

    return render


def _reading_order(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """When, how bad and what come first, for whoever reads the raw lines."""
    del logger, method
    first = [key for key in ("timestamp", "level", "event") if key in event]
    return {key: event[key] for key in dict.fromkeys([*first, *event])}


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Take secrets out of the fields, and make bytes and paths readable (a structlog processor)."""
    del logger, method
    return {key: _clean(key, value, _MAX_DEPTH) for key, value in event.items()}


def _is_secret(key: str) -> bool:
    lowered = key.lower()
    return any(lowered == word or lowered.endswith("_" + word) for word in _SECRET_WORDS)


def _clean(key: str, value: Any, depth: int) -> Any:
    if _is_secret(key):
        return REDACTED
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _SECRET_TEXT.sub(REDACTED, value)[:_MAX_TEXT]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value[:64]).hex()
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        return {str(inner): _clean(str(inner), each, depth - 1) for inner, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(key, each, depth - 1) for each in value]
    if isinstance(value, PurePath):
        return str(value)
    return _SECRET_TEXT.sub(REDACTED, str(value))[:_MAX_TEXT]
