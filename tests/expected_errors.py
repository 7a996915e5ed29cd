"""The rule that a test fails on an ERROR in a log that it did not expect.

`ErrorWatch` collects errors from this process's structlog and logging, and from the log files of
daemons that a test starts. The autouse fixture in ``conftest.py`` has one per test; a fixture
that keeps daemons for a whole module makes its own and calls `check` when it ends.
"""

from __future__ import annotations

import json
import logging
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ERROR_LEVELS = frozenset({"error", "critical", "exception"})


@dataclass(frozen=True)
class SeenError:
    """One line at level ERROR or above: what happened, and the whole line."""

    event: str
    line: str


class ErrorWatch:
    """What was logged at ERROR, against what the test said it expects."""

    def __init__(self) -> None:
        self._seen: list[SeenError] = []
        self._expected: set[str] = set()
        self._allowed: set[str] = set()
        self._files: dict[Path, int] = {}

    def expect(self, *events: str) -> None:
        """These events must be logged at ERROR before the test ends."""
        self._expected.update(events)

    def allow(self, *events: str) -> None:
        """These events may be logged at ERROR: whether they are depends on a race."""
        self._allowed.update(events)

    def watch(self, path: Path, *, from_start: bool = True) -> None:
        """Also read a daemon's JSON log lines in `path` when `check` is called."""
        self._files[path] = 0 if from_start or not path.exists() else path.stat().st_size

    def record(self, logger: object, method: str, event: MutableMapping[str, Any]) -> Any:
        """A structlog processor that keeps what is bad and passes everything on."""
        del logger
        if method in _ERROR_LEVELS and event.get("event") != "library":
            self._seen.append(SeenError(str(event.get("event")), repr(dict(event))))
        return event

    def handler(self) -> logging.Handler:
        """The same for the standard library's logging; the logger's name is the event."""
        seen = self._seen

        class Keep(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                seen.append(SeenError(record.name, record.getMessage()))

        return Keep(logging.ERROR)

    def seen(self) -> list[SeenError]:
        """Everything at ERROR so far, daemons' files included."""
        found = list(self._seen)
        for path, offset in self._files.items():
            if path.exists():
                found += _errors_in(path.read_bytes()[offset:].decode("utf-8", "replace"))
        return found

    def check(self) -> None:
        """Raise AssertionError about what was not expected, and about what did not come."""
        seen = self.seen()
        unexpected = [
            error.line for error in seen if error.event not in self._expected | self._allowed
        ]
        missing = self._expected - {error.event for error in seen}
        if unexpected:
            listed = "\n  ".join(unexpected)
            raise AssertionError(f"the log has ERRORs that nobody expected:\n  {listed}")
        if missing:
            raise AssertionError(f"these ERRORs were expected and not logged: {sorted(missing)}")


def _errors_in(text: str) -> list[SeenError]:
    found = []
    for line in text.splitlines():
        if line.startswith("Traceback (most recent call last)"):
            found.append(SeenError("traceback", "a traceback outside the log: see the file"))
            continue
        try:
            fields = json.loads(line)
        except ValueError:
            continue  # something that is not a log line, such as a message of the interpreter
        if isinstance(fields, dict) and fields.get("level") in _ERROR_LEVELS:
            found.append(SeenError(str(fields.get("event")), line))
    return found
